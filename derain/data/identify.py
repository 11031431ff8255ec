"""Which data set images are, by their fingerprints, and which backgrounds they share. derain.data.check prints it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Collection, Sequence

import numpy as np

from derain.data.fingerprints import KnownSet, first_match, known_sets, photographs
from derain.data.pairs import is_strict

LISTED = 12  # numbers, or ranges of numbers, in one line


@dataclasses.dataclass(frozen=True)
class Image:
    """A pair, or an image without one (`rainy` is ''): what identifies it, and the scores of its rain.

    size: width, height. clean, rainy: pixel hashes. signs: (255,) of the clean image. lines: sorted
    int64 digests of its rows and columns. fault: why the pair doesn't fit, or ''.
    """

    name: str
    number: int | None
    size: tuple[int, int]
    clean: str
    signs: np.ndarray
    lines: np.ndarray
    rainy: str = ""
    psnr_y: float = math.nan
    ssim_y: float = math.nan
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Identity:
    """Which known sets images are: one, none, or two that share clean sides; in words; and what each image shows.

    photographs: for each image the BSDS500 photograph, None for any other image. wrong: some
    images differ from the original's while others don't.
    """

    names: tuple[str, ...]
    lines: list[str]
    photographs: list[str | None]
    wrong: bool = False


# ---------------------------------------------------------------- sets


def identify(images: Sequence[Image]) -> Identity:
    """Say which set images are: the one that shows, under most of their numbers, what they show."""
    shown = shown_photographs(images)
    hits = {
        name: [i for i, photo in zip(images, shown, strict=True) if photo and known.photographs.get(i.number) == photo]
        for name, known in known_sets().items()
    }
    most = max(map(len, hits.values()))
    if 2 * most <= len(images):
        return Identity((), unknown(images, shown), shown)
    candidates = [known_sets()[name] for name, found in hits.items() if len(found) == most]
    if images[0].rainy:
        candidates = [_nearest_rain(candidates, images)]
    known = candidates[0]
    lines, wrong = compare(known, [image.name for image in candidates], images, hits[known.name])
    return Identity(tuple(candidate.name for candidate in candidates), lines, shown, wrong)


def shown_photographs(images: Sequence[Image]) -> list[str | None]:
    """Return the BSDS500 photograph that each image shows, None for any other image."""
    known = photographs()
    by_hash = dict(zip(known.hashes, known.names, strict=True))
    found = first_match(_signs(images), known.signs)
    matched = [known.names[match] if match >= 0 else None for match in found]
    return [by_hash.get(image.clean, name) for image, name in zip(images, matched, strict=True)]


def compare(
    known: KnownSet, names: Sequence[str], images: Sequence[Image], hits: Sequence[Image]
) -> tuple[list[str], bool]:
    """Return lines on how images differ from a known set, and whether something is wrong.

    names: the set's, or those of all sets with these clean sides. hits: the images that show what
    the set shows under their number.
    """
    rainy = [image for image in hits if image.rainy and image.number in known.rainy]
    other_clean = [image for image in hits if image.clean != known.clean[image.number]]
    other_rainy = [image for image in rainy if image.rainy != known.rainy[image.number]]
    numbers = {image.number for image in hits}
    ids = {id(image) for image in hits}
    others = [image for image in images if id(image) not in ids]
    missing = known.photographs.keys() - numbers

    name = " and ".join(names) if images[0].rainy else f"clean side of {' and '.join(names)}"
    kind = "pairs" if images[0].rainy else "images"
    like = "like " if others or other_clean or other_rainy else ""
    count = f"{len(numbers)} of {len(known.photographs)} {kind}, missing {ranges(missing)}"
    lines = [f"{like}{name}: {count if missing else f'all {len(numbers)} {kind}'}"]
    if others:
        lines.append(f"{len(others)} more that it has not, or not under these numbers: {listed(others)}")
    lines.append(_pixels("clean images", hits, other_clean))
    if rainy:
        lines.append(_pixels("rainy images", rainy, other_rainy))
    if images[0].rainy and len(rainy) < len(hits):
        lines.append(
            f"of {len(hits) - len(rainy)} rainy images of {known.name} no fingerprint is known{_by_rain(known, hits)}"
        )
    if known.name == "RainTrainH":
        leaking = {number for number in numbers if not is_strict(number)}
        lines.append(f"strict rule: {len(numbers - leaking)} show no background of Rain100H and Rain100L")
        if leaking:
            lines.append(f"strict rule: {len(leaking)} do, and train_rain100H.py leaves them out: {ranges(leaking)}")
    partly = any(0 < len(other) < len(side) for other, side in ((other_clean, hits), (other_rainy, rainy)))
    return lines, partly


def unknown(images: Sequence[Image], shown: Sequence[str | None]) -> list[str]:
    """Return lines on images that are no known set: what they show, and known rainy images under other names."""
    count, different = sum(map(bool, shown)), len(set(shown) - {None})
    lines = ["none of the known sets under these numbers"]
    if count:
        lines.append(f"{count} of {len(images)} images show {different} of the 500 photographs of BSDS500")
    owner = {pixels: known.name for known in known_sets().values() for pixels in known.rainy.values()}
    renamed = Counter(owner[i.rainy or i.clean] for i in images if (i.rainy or i.clean) in owner)
    lines += [f"{n} rainy images are {name}'s, under other names or without pairs" for name, n in renamed.items()]
    return lines


def _nearest_rain(candidates: Sequence[KnownSet], images: Sequence[Image]) -> KnownSet:
    """Return the set, of those with equal clean sides, whose rain this is, or whose mean PSNR is nearest."""
    mean = float(np.mean([min(image.psnr_y, 100) for image in images]))

    def rank(known: KnownSet) -> tuple[int, float]:
        same = sum(known.rainy.get(image.number) == image.rainy for image in images)
        return same, -abs(mean - (known.input_psnr_y or mean))

    return max(candidates, key=rank)


def _pixels(what: str, images: Sequence[Image], other: Sequence[Image]) -> str:
    if not other:
        return f"{what}: all {len(images)} have the original's pixels"
    if len(other) == len(images):
        return f"{what}: none has the original's pixels: cropped, scaled, encoded again, or another version"
    return f"WRONG {what}: {len(other)} of {len(images)} differ from the original's: {listed(other)}"


def _by_rain(known: KnownSet, hits: Sequence[Image]) -> str:
    if known.input_psnr_y is None or len(hits) < len(known.photographs):
        return ""
    mean = np.mean([image.psnr_y for image in hits])
    verdict = "equal" if abs(mean - known.input_psnr_y) <= 0.01 else "another version"
    return f"; mean PSNR_Y {mean:.2f} dB, published {known.input_psnr_y:.2f}: {verdict}"


# ---------------------------------------------------------------- backgrounds


def shared_with_tests(images: Sequence[Image], identity: Identity) -> list[str]:
    """Return lines on which backgrounds of the known test sets these images show, but for the set that they are."""
    shown, lines = set(identity.photographs), []
    for names, their in ((("Rain100H", "Rain100L"), "their"), (("Rain12",), "its")):
        if set(names) & set(identity.names):
            continue
        theirs = known_sets()[names[0]].photographs
        found = [number for number, photograph in theirs.items() if photograph in shown]
        count = f"{len(found)} of {their} {len(theirs)} backgrounds are here: {ranges(found)}"
        lines.append(
            f"{' and '.join(names)}: {count if found else f'none of {their} {len(theirs)} backgrounds is here'}"
        )
    return lines


def matching(images: Sequence[Image], others: Sequence[Image]) -> list[Image]:
    """Return the images whose background is among the others': the same content, or an equal row or column of pixels.

    The first finds copies that were changed, the second crops of any size along one side.
    """
    pixels, lines = {image.clean for image in others}, np.unique(np.concatenate([image.lines for image in others]))

    def shares_lines(image: Image) -> bool:
        places = np.searchsorted(lines, image.lines)
        return bool((lines[np.minimum(places, len(lines) - 1)] == image.lines).any()) if len(lines) else False

    matches = zip(images, first_match(_signs(images), _signs(others)), strict=True)
    return [image for image, match in matches if match >= 0 or image.clean in pixels or shares_lines(image)]


def count_backgrounds(images: Sequence[Image]) -> int:
    """Return how many different backgrounds images show; images of one colour count by their pixels."""
    found = first_match(_signs(images), _signs(images))
    return len({image.clean if match < 0 else match for image, match in zip(images, found, strict=True)})


def _signs(images: Sequence[Image]) -> np.ndarray:
    return np.array([image.signs for image in images])


# ---------------------------------------------------------------- words


def listed(images: Sequence[Image]) -> str:
    """Return images by their numbers, by their names if one has none."""
    numbers = [image.number for image in images]
    return joined([image.name for image in images]) if None in numbers else ranges(numbers)


def ranges(numbers: Collection[int]) -> str:
    """Return '1-8, 10 and 12' for 1, 2, ..., 8, 10, 12."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return joined([str(first) if first == last else f"{first}-{last}" for first, last in runs])


def joined(items: Sequence[str]) -> str:
    """Return 'a, b and c', or the first ones and dots."""
    if len(items) > LISTED:
        return f"{', '.join(items[:LISTED])}, ..."
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]])) if items else "none"
