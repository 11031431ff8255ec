"""Identify images by fingerprints of their pixels: which data set they are, and which backgrounds they share.

identify_pairs(find_pairs(Path("datasets/test/Rain100L"))).label  # 'Rain100L', or what it is instead
"""

import contextlib
import dataclasses
import math
from collections.abc import Collection, Sequence

import numpy as np

from derain.fingerprints import (
    SIZE,
    KnownSet,
    content_signs,
    first_match,
    known_sets,
    photographs,
    pixel_hash,
)
from derain.pairs import Pair, is_strict, read_pair
from SSIM import psnr_y
from utils import InputError

LISTED = 12  # numbers, or ranges of numbers, in one line
SAME_RAIN = 1.0  # dB between mean PSNRs of the rainy images: a crop or a re-encoded copy stays within it


@dataclasses.dataclass(frozen=True)
class Image:
    """A pair, or an image without one (`rainy` is ''): its fingerprints, and the scores of its rain.

    size: width, height. clean, rainy: pixel hashes. signs: (255,) content of the clean image. fault: why the pair
    doesn't fit, or ''.
    """

    name: str
    number: int | None
    size: tuple[int, int]
    clean: str
    signs: np.ndarray
    rainy: str = ""
    psnr_y: float = math.nan
    ssim_y: float = math.nan
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which known set images are.

    name: the set, or None. exact: how many pairs have its pixels on both sides (images without pairs: on theirs).
    total: how many it has. label: what tables call the images, the set's name only if all of it is there, exactly.
    lines: what else there is to say. photographs: the BSDS500 photograph of each image, or None. wrong: some images
    differ from the original's while others don't.
    """

    name: str | None
    exact: int
    total: int
    label: str
    lines: list[str]
    photographs: list[str | None]
    wrong: bool = False


def fingerprint(pair: Pair, clean: np.ndarray, rainy: np.ndarray | None = None) -> Image:
    """Take the fingerprints of a pair, or of an image without one, each (H, W, 3) uint8 RGB."""
    height, width, _ = clean.shape
    image = Image(pair.rainy.name, pair.number, (width, height), pixel_hash(clean), content_signs(clean))
    rain = {} if rainy is None else {"rainy": pixel_hash(rainy), "psnr_y": psnr_y(rainy, clean)}
    return dataclasses.replace(image, **rain)


def identify_pairs(pairs: Sequence[Pair]) -> Identity:
    """Read pairs and identify them, in about two seconds for 100; unreadable ones count as missing."""
    images = []
    for pair in pairs:
        with contextlib.suppress(InputError):
            rainy, clean = read_pair(pair)
            images.append(fingerprint(pair, clean, rainy))
    return identify(images)


def identify(images: Sequence[Image]) -> Identity:
    """Return the known set of which more than half of the images are: with its pixels, or as changed copies.

    A changed copy is identified by the photograph that it shows under its number.
    """
    if not images:
        return Identity(None, 0, 0, "no readable image", [], [])
    shown, found = shown_photographs(images), []
    for known in known_sets().values():
        exact = [_is_exact(known, image) for image in images]
        content = [p is not None and known.photographs.get(i.number) == p for p, i in zip(shown, images, strict=True)]
        ours = [image for image, *same in zip(images, exact, content, strict=True) if any(same)]
        found.append((len(ours), sum(exact), -_distance(known, images), known, ours))
    most, exact_count, _, known, ours = max(found, key=lambda f: f[:3])
    if 2 * most <= len(images):
        count, different = sum(map(bool, shown)), len(set(shown) - {None})
        lines = [f"{count} of {len(images)} images show {different} of the 500 photographs of BSDS500"] if count else []
        return Identity(None, 0, 0, f"{len(images)} images of no known set", lines, shown)
    names = " and ".join(f[3].name for f in found if f[0] == most)  # several have equal clean sides
    if exact_count == 0 and _has_other_rain(known, images):
        return Identity(None, 0, 0, f"backgrounds of {names} with other rainy images", [], shown)
    label = _label(known, names, images, exact_count)
    lines, wrong = _differences(known, images, ours)
    return Identity(known.name, exact_count, len(known.photographs), label, lines, shown, wrong)


def shown_photographs(images: Sequence[Image]) -> list[str | None]:
    """Return the BSDS500 photograph that each image shows, None for any other image."""
    names, found = list(photographs().hashes), first_match(_signs(images), photographs().signs)
    by_hash = {pixels: name for name, pixels in photographs().hashes.items()}
    return [by_hash.get(i.clean, names[m] if m >= 0 else None) for i, m in zip(images, found, strict=True)]


def _is_exact(known: KnownSet, image: Image) -> bool:
    """Whether an image has the pixels of a known set: a pair under any number, a clean image under its own."""
    if image.rainy:
        return known.clean.get(known.originals.get(image.rainy)) == image.clean
    return known.clean.get(image.number) == image.clean or image.clean in known.originals


def _distance(known: KnownSet, images: Sequence[Image]) -> float:
    """Return how far, in dB, the mean PSNR of the rainy images is from the set's; 0 where either is unknown."""
    if known.input_psnr_y is None or not images[0].rainy:
        return 0.0
    return abs(float(np.mean([min(image.psnr_y, 100) for image in images])) - known.input_psnr_y)


def _has_other_rain(known: KnownSet, images: Sequence[Image]) -> bool:
    """Whether pairs, none of which is the set's, are more than its pairs cropped or encoded again."""
    same_clean = all(i.clean == known.clean.get(i.number) and i.number in known.rainy for i in images if i.rainy)
    complete = len(images) == len(known.photographs)
    return bool(images[0].rainy) and (same_clean or (complete and _distance(known, images) > SAME_RAIN))


def _label(known: KnownSet, names: str, images: Sequence[Image], exact: int) -> str:
    """Return the label of an Identity. names: all sets that have these clean sides."""
    paired, total, count = bool(images[0].rainy), len(known.photographs), len(images)
    name, kind = known.name, "pairs" if paired else "images"
    if not paired and images[0].clean in known.originals:
        name = f"the rainy side of {name}"
    elif not paired:
        name = f"the clean side of {names}"
    if exact == count:
        moved = any(image.rainy != known.rainy.get(image.number) for image in images if paired)
        whole = name if exact == total else f"{exact} of the {total} {kind} of {name}"
        return f"{whole} under other numbers" if moved else whole
    same_clean = all(image.clean == known.clean.get(image.number) for image in images)
    if paired and same_clean and any(image.number not in known.rainy for image in images):
        return f"clean images of {name} ({count} of {total}), rainy ones partly unknown"
    if exact:
        return f"{name} with changes, {exact} of {count} {kind} exact"
    sizes = {(max(image.size), min(image.size)) for image in images}
    text = f"{name} re-encoded"
    if sizes != {SIZE}:
        text = f"{name} cropped or scaled" + "".join(f" to {w}x{h}" for w, h in sizes if len(sizes) == 1)
    return text if count == total else f"{text}, {count} {kind} (of {total})"


def _differences(known: KnownSet, images: Sequence[Image], ours: Sequence[Image]) -> tuple[list[str], bool]:
    """Return lines on how images differ from the set that they are, and whether only some do."""
    ids, lines, wrong = {id(image) for image in ours}, [], False
    others = [image for image in images if id(image) not in ids]
    missing = known.photographs.keys() - {known.originals.get(image.rainy, image.number) for image in ours}
    if others:
        lines.append(f"{len(others)} other images, or under other numbers: {listed(others)}")
    if missing and missing != known.photographs.keys():
        lines.append(f"missing: {ranges(missing)}")
    for side, originals in (("clean", known.clean), ("rainy", known.rainy)):
        here = [image for image in ours if getattr(image, side) and image.number in originals]
        other = [i for i in here if getattr(i, side) != originals[i.number] and not _is_exact(known, i)]
        if len(other) == len(here) > 0:
            lines.append(f"{side} images: none has the original's pixels")
        elif other:
            count = f"{len(other)} of {len(here)}"
            lines.append(f"WRONG {side} images: {count} differ from the original's: {listed(other)}")
            wrong = True
    unknown = [i for i in ours if i.rainy and i.number not in known.rainy and not _is_exact(known, i)]
    if unknown:
        lines.append(f"rainy images: {len(unknown)} of {len(ours)} have no known fingerprint")
    if known.name == "RainTrainH":
        leaking = {image.number for image in ours if image.number and not is_strict(image.number)}
        lines.append(f"strict rule: {len(leaking)} show backgrounds of Rain100H and Rain100L")
    return lines, wrong


# ---------------------------------------------------------------- backgrounds


def shared_with_tests(images: Sequence[Image], identity: Identity) -> list[str]:
    """Return lines on which backgrounds of the known test sets these images show, but for the set that they are."""
    shown, lines = set(identity.photographs), []
    for names in (("Rain100H", "Rain100L"), ("Rain12",)):
        if identity.name not in names:
            theirs = known_sets()[names[0]].photographs
            found = [number for number, photograph in theirs.items() if photograph in shown]
            numbers = f": {ranges(found)}" if found else ""
            lines.append(f"{' and '.join(names)}: {len(found)} of {len(theirs)} backgrounds are here{numbers}")
    return lines


def matching(images: Sequence[Image], others: Sequence[Image]) -> list[Image]:
    """Return the images whose background, changed or not, is among the others'."""
    pixels = {image.clean for image in others}
    matches = zip(images, first_match(_signs(images), _signs(others)), strict=True)
    return [image for image, match in matches if match >= 0 or image.clean in pixels]


def count_backgrounds(images: Sequence[Image]) -> int:
    """Return how many different backgrounds images show; images of one colour count by their pixels."""
    found = first_match(_signs(images), _signs(images))
    return len({image.clean if match < 0 else match for image, match in zip(images, found, strict=True)})


def _signs(images: Sequence[Image]) -> np.ndarray:
    return np.array([image.signs for image in images])


def listed(images: Sequence[Image]) -> str:
    """Return images by their numbers, by their names if one has none."""
    numbers = [image.number for image in images if image.number is not None]
    return ranges(numbers) if len(numbers) == len(images) else _joined([image.name for image in images])


def ranges(numbers: Collection[int]) -> str:
    """Return '1-8, 10, 12' for 1, 2, ..., 8, 10, 12."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return _joined([str(first) if first == last else f"{first}-{last}" for first, last in runs])


def _joined(items: Sequence[str]) -> str:
    return ", ".join([*items[:LISTED], *(["..."] if len(items) > LISTED else [])])
