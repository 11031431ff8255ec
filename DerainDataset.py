"""Rainy and clean images: finding the pairs, packing them into one HDF5 file, cutting patches.

    pairs = find_pairs(Path("datasets/train/RainTrainL"))      # any common layout
    packed = prepare(Path("datasets/train/RainTrainL"))        # datasets/train/RainTrainL.h5
    rainy, clean = DerainDataset(packed, patch_size=100, stride=80)[0]

The HDF5 file holds every image once, as uint8. Patches are cut when they are read, so patch
size, stride and flips are choices of the run and need no second copy of the data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch.utils.data import Dataset

from utils import IMAGE_SUFFIXES, InputError, atomic_path, read_rgb

RAINY_FOLDERS = ("rainy", "rain", "input")
CLEAN_FOLDERS = ("clean", "groundtruth", "ground_truth", "gt", "norain", "target")
LAYOUTS = (
    "rainy/ with the clean images beside it or in clean/, groundtruth/ or norain/; rain/ + norain/; "
    "input/ + target/; or rain-1.png + norain-1.png in one folder"
)
_PREFIX = re.compile(r"^(no-?)?rainy?([-_ ]|(?=[0-9])|$)", re.I)  # rain-1, norain-1, rain1, but not rainbow
SYNTHETIC_MARKER = "synthetic.json"  # in every folder that derain.data.synthesize made
FORMAT, VERSION = "DARGNet training pairs", 1

# RainTrainH's image n shows BSD300 photograph (n - 1) mod 300, in string order. These 91 are
# also the backgrounds of Rain100H and Rain100L, so the strict set leaves their 546 images out.
RAINTRAINH_PAIRS, BSD300_PHOTOGRAPHS = 1800, 300
RAIN100_BACKGROUNDS = frozenset({0, 9, *range(99, 188)})


# What h5py raises for damaged files, and what their content leads to.
DAMAGED = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


# ---------------------------------------------------------------- finding images


class UnknownLayout(InputError):
    """A folder that is no set of pairs in any layout, as against a set with something wrong in it."""


@dataclasses.dataclass(frozen=True)
class Pair:
    """A rainy image file and the clean image file of the same scene; `key` is what their names share."""

    key: str
    rainy: Path
    clean: Path

    @property
    def number(self) -> int | None:
        return int(self.key) if self.key.isdigit() and self.key.isascii() else None


def rainy_file(picture: Pair | Path) -> Path:
    """The rainy image's file, of a pair or of a picture that has no clean one."""
    return picture if isinstance(picture, Path) else picture.rainy


def natural_order(path: Path) -> list[tuple[int, int, str]]:
    """Sort key under which rain-2.png comes before rain-10.png, on every file system."""
    parts = re.split(r"([0-9]+)", path.name)
    return [(0, int(p), "") if p.isdigit() and p.isascii() else (1, 0, p) for p in parts if p]


def list_images(folder: Path) -> list[Path]:
    """The image files directly in a folder, hidden ones left out, in natural order."""
    try:
        files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.name[0] != "."]
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    return sorted(files, key=natural_order)


def find_pairs(folder: Path) -> list[Pair]:
    """Pair the rainy and clean images of a folder in any of the layouts named by LAYOUTS.

    Names are paired by number (rain-001 with norain-1) or, without one, by the rest of the
    name; the order is natural. One level of nesting (a folder that holds nothing but the set)
    is looked through.

    Raises InputError for a missing folder, an unknown layout (UnknownLayout), an image without its
    partner (both names are given) or two images for one place.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; see datasets/README.md for how to get the data sets")
    rainy, clean, place = _sides(folder)
    if not rainy:
        inner = [p for p in sorted(folder.iterdir()) if p.is_dir() and _sides(p)[0]]
        if len(inner) == 1:
            rainy, clean, place = _sides(inner[0])
    if not rainy:
        raise UnknownLayout(f"{folder}: no rainy and clean images in a known layout ({LAYOUTS})")
    rainy_by_key, clean_by_key = _by_key(rainy), _by_key(clean)
    for key, path in rainy_by_key.items():
        if key not in clean_by_key:
            raise InputError(f"{path}: its clean image {_partner_name(path, clean)} is not in {place}; add it")
    for key, path in clean_by_key.items():
        if key not in rainy_by_key:
            wanted = rainy[0].with_name(_partner_name(path, rainy))
            raise InputError(f"{path}: its rainy image {wanted} is missing; add it or remove {path.name}")
    return [Pair(key, path, clean_by_key[key]) for key, path in rainy_by_key.items()]


def folders_below(folder: Path, leave_out: Path) -> list[Path]:
    """A folder and all its subfolders, hidden ones left out, in natural order.

    Links are followed, but no folder is taken twice, wherever links lead. leave_out: a subfolder
    not to be taken, for results lie there.
    """
    folders: list[Path] = []
    taken, waiting = {os.path.realpath(leave_out)} - {os.path.realpath(folder)}, [folder]
    while waiting:
        folder = waiting.pop()
        place = os.path.realpath(folder)
        if place in taken:
            continue
        taken.add(place)
        folders.append(folder)
        try:
            inner = [p for p in folder.iterdir() if p.is_dir() and p.name[0] != "."]
        except OSError as error:
            raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
        waiting += sorted(inner, key=natural_order, reverse=True)
    return folders


def find_rainy(path: Path) -> list[Path]:
    """Rainy images whose clean ones are not needed: one file, all images of a folder, or a data set's rainy ones.

    Raises InputError if there is none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such image, video or folder; check its spelling")
    images = list_images(path)
    try:
        pairs = find_pairs(path)
        if set(images) <= {file for pair in pairs for file in (pair.rainy, pair.clean)}:
            return [pair.rainy for pair in pairs]
    except InputError:
        pass  # then it is no data set, and nothing in it is left out by its name
    if not images:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """The pair's images, (H, W, 3) uint8 RGB.

    Raises InputError naming both files if one can't be read or their sizes differ.
    """
    images = []
    for path, partner in ((pair.rainy, pair.clean), (pair.clean, pair.rainy)):
        try:
            images.append(read_rgb(path))
        except InputError as error:
            raise InputError(f"{error} (its partner is {partner})") from error
    rainy, clean = images
    if rainy.shape != clean.shape:
        sizes = " and ".join(f"{image.shape[1]}x{image.shape[0]}" for image in (rainy, clean))
        raise InputError(f"{pair.rainy} and {pair.clean} differ in size ({sizes}); a pair must show the same pixels")
    return rainy, clean


def _sides(folder: Path) -> tuple[list[Path], list[Path], Path]:
    """A folder's rainy files, clean files, and where the clean ones lie; no rainy ones: no known layout."""
    children = {p.name.lower(): p for p in sorted(folder.iterdir()) if p.is_dir()}
    rainy_folder = next((children[name] for name in RAINY_FOLDERS if name in children), None)
    if rainy_folder is not None:
        clean_folder = next((children[name] for name in CLEAN_FOLDERS if name in children), folder)
        return list_images(rainy_folder), list_images(clean_folder), clean_folder
    images = list_images(folder)
    clean = [p for p in images if re.match(r"no-?rain", p.name, re.I)]
    rainy = [p for p in images if re.match(r"rain", p.name, re.I)]
    return (rainy if clean else []), clean, folder


def name_key(path: Path) -> str:
    """What the names of a pair share: the number without leading zeros, or what follows rain- or norain-."""
    rest = _PREFIX.sub("", path.stem)
    return str(int(rest)) if rest.isdigit() and rest.isascii() else rest


def _by_key(paths: Sequence[Path]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in paths:
        other = found.setdefault(name_key(path), path)
        if other is not path:
            raise InputError(f"{other} and {path}: two images for one place of the set; remove one")
    return found


def _partner_name(path: Path, others: Sequence[Path]) -> str:
    """The name that a missing partner would have, going by how its neighbours are named."""
    match = _PREFIX.match(others[0].stem) if others else None
    return (match.group() if match else "") + _PREFIX.sub("", path.stem) + path.suffix


# ---------------------------------------------------------------- the strict rule


def strict_raintrainh(pairs: Sequence[Pair]) -> tuple[list[Pair], str]:
    """Leave out the RainTrainH images whose backgrounds Rain100H and Rain100L show: 1,254 of 1,800 stay.

    Returns the pairs to train on and a sentence that says what was done. RainTrainH is told by
    its numbers, 1 to 1,800 or the strict ones among them; any other set is returned whole.
    """
    numbers = {pair.number for pair in pairs}
    every = set(range(1, RAINTRAINH_PAIRS + 1))
    if numbers not in (every, set(filter(is_strict, every))):
        return list(pairs), f"strict rule not applied: {len(pairs)} pairs that are not numbered as RainTrainH's 1,800"
    kept = [pair for pair in pairs if is_strict(pair.number)]
    return kept, f"strict RainTrainH: {len(kept)} of {len(pairs)} pairs, none with a background of Rain100H or Rain100L"


def is_strict(number: int) -> bool:
    """Whether RainTrainH's image `number` (1 to 1800) shows no background of Rain100H or Rain100L."""
    return (number - 1) % BSD300_PHOTOGRAPHS not in RAIN100_BACKGROUNDS


# ---------------------------------------------------------------- packing


def prepare(folder: Path, hdf5_path: Path | None = None, strict: bool = False, log: Any = print) -> Path:
    """Pack a folder of pairs into one HDF5 file, or find that it is packed already; returns its path.

    hdf5_path defaults to the folder's name with .h5, beside the folder. strict applies
    RainTrainH's rule (see strict_raintrainh); where that leaves pairs out, the name ends in
    .strict.h5. The file records its sources' names, sizes and times and is made anew when they
    changed, when it is cut off, or when it is damaged; a file of that name that we did not make is
    kept under another name. It is written under a temporary name and renamed, so it is there
    whole or not at all.

    Raises InputError for anything wrong with the images (see find_pairs and read_pair).
    """
    pairs, ending = find_pairs(folder), ".h5"
    if strict and not (folder / SYNTHETIC_MARKER).exists():
        kept, sentence = strict_raintrainh(pairs)
        log(sentence)
        pairs, ending = kept, ".h5" if len(kept) == len(pairs) else ".strict.h5"
    named = folder if folder.name.strip(".") else folder.resolve()  # '.' and '..' have names too
    path = hdf5_path or named.with_name(named.name + ending)
    sources = json.dumps([_describe(file, folder) for pair in pairs for file in (pair.rainy, pair.clean)])
    if path.exists():
        problem = _why_rebuild(path, sources)
        if problem is None:
            return path
        log(f"{path}: {problem}; packing again")
        if problem == "not made by this program":
            names = (path.with_name(f"{path.name}.foreign{i or ''}") for i in itertools.count())
            path.replace(next(name for name in names if not name.exists()))
    log(f"packing {len(pairs)} pairs of {folder} into {path}")
    began = time.monotonic()
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _pack(file, pairs, sources, log)
    log(f"packed in {time.monotonic() - began:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
    return path


def _describe(file: Path, folder: Path) -> list[Any]:
    status = file.stat()
    return [file.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns]


def _why_rebuild(path: Path, sources: str) -> str | None:
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") != FORMAT:
                return "not made by this program"
            if file.attrs.get("version") != VERSION:
                return "made by another version of this program"
            return None if file["sources"].asstr()[()] == sources else "the images changed since"
    except DAMAGED:
        return "cut off or damaged" if h5py.is_hdf5(path) else "not made by this program"


def _pack(file: h5py.File, pairs: Sequence[Pair], sources: str, log: Any) -> None:
    numbers: dict[bytes, int] = {}  # digest of an image's pixels -> its place in the file
    rows_seen: dict[bytes, int] = {}  # digest of a row or column -> the first clean image that has it
    parents: list[int] = []  # union-find over clean images: which show the same photograph
    index = np.zeros((len(pairs), 2), np.int64)
    backgrounds: dict[int, int] = {}
    for i, pair in enumerate(pairs):
        images = read_pair(pair)
        for side, image in enumerate(images):
            digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
            if digest not in numbers:
                numbers[digest] = len(numbers)
                file.create_dataset(f"images/{numbers[digest]}", data=image)
            index[i, side] = numbers[digest]
        clean = int(index[i, 1])
        if clean not in backgrounds:
            backgrounds[clean] = len(parents)
            parents.append(len(parents))
            for row in line_digests(images[1]):
                first = rows_seen.setdefault(row, backgrounds[clean])
                parents[_root(parents, backgrounds[clean])] = _root(parents, first)
        if (i + 1) % 100 == 0 or i + 1 == len(pairs):
            log(f"  {i + 1}/{len(pairs)}")
    file["pairs"] = index
    file["backgrounds"] = np.array([_root(parents, backgrounds[int(clean)]) for clean in index[:, 1]])
    file["sources"] = sources
    file.attrs["version"] = VERSION
    file.attrs["format"] = FORMAT  # last: its presence says that the file is whole


def line_digests(image: np.ndarray) -> list[bytes]:
    """Digests of an image's rows and columns, flat ones left out: two crops of one photograph share some.

    That tells the same background also where copies are cropped along one side, without any
    list of names.
    """
    lines = [line for side in (image, image.swapaxes(0, 1)) for line in side[side.std(axis=(1, 2)) > 4]]
    return [hashlib.blake2b(line.tobytes(), digest_size=12).digest() for line in lines]


def _root(parents: list[int], i: int) -> int:
    while parents[i] != i:
        parents[i] = parents[parents[i]]
        i = parents[i]
    return i


# ---------------------------------------------------------------- reading


class Patch(NamedTuple):
    """Where one training sample is cut, and how it is varied."""

    pair: int
    top: int
    left: int
    size: int
    mirrored: bool = False
    upside_down: bool = False
    rain: int | None = None  # seed of another pair's rain that this clean patch gets; None: its own


class DerainDataset(Dataset):
    """Patches of a packed training set: item i is (rainy, clean), each (3, P, P) float32 RGB in [0, 1].

    hdf5_path: a file made by `prepare`. patch_size, stride: pixels; patches lie on a grid from
    each image's top left, whole ones only. flip: add every patch's left-right mirror image
    (RainTrainL's recipe), doubling the length. pairs: the numbers of the pairs to use, all if None.

    All images are read into memory, as uint8: 0.2 GB for RainTrainL, 0.7 GB for the strict RainTrainH. Cutting
    a patch takes microseconds then, so training needs no worker processes.

    Raises InputError if the file cannot be used or an image is smaller than a patch.
    """

    def __init__(
        self,
        hdf5_path: Path,
        patch_size: int = 100,
        stride: int = 80,
        flip: bool = False,
        pairs: Sequence[int] | None = None,
    ) -> None:
        self.path, self.patch_size = Path(hdf5_path), patch_size
        try:
            with h5py.File(self.path, "r") as file:
                self._index = file["pairs"][()]
                self.backgrounds = file["backgrounds"][()]
                self.names = json.loads(file["sources"].asstr()[()])[::2]
                self._images = {int(i): file[f"images/{i}"][()] for i in np.unique(self._index)}
            self.names = [name for name, *_ in self.names]
            if any(x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 for x in self._images.values()):
                raise ValueError("not images as prepare writes them")
            if len({len(self._index), len(self.backgrounds), len(self.names)}) > 1:
                raise ValueError("pairs, backgrounds and names differ in number")
            if any(self._images[int(a)].shape != self._images[int(b)].shape for a, b in self._index):
                raise ValueError("rainy and clean images differ in size")
        except DAMAGED as error:
            raise InputError(f"{self.path}: not a packed training set; delete it and start again") from error
        self.pairs = list(range(len(self._index))) if pairs is None else list(pairs)
        self.check_size(patch_size)
        self._grid = [patch for pair in self.pairs for patch in self._grid_of(pair, stride)]
        if flip:
            self._grid += [patch._replace(mirrored=True) for patch in self._grid]

    def _grid_of(self, pair: int, stride: int) -> Iterator[Patch]:
        height, width = self.size(pair)
        for top in range(0, height - self.patch_size + 1, stride):
            for left in range(0, width - self.patch_size + 1, stride):
                yield Patch(pair, top, left, self.patch_size)

    def __len__(self) -> int:
        return len(self._grid)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        rainy, clean = self.batch([self._grid[i]])
        return rainy[0], clean[0]

    def grid_patch(self, i: int) -> Patch:
        """Patch i of the grid, which item i is cut from."""
        return self._grid[i]

    def batch(self, patches: Sequence[Patch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut patches of one size: rainy and clean, each (N, 3, P, P) float32 RGB in [0, 1], channels last."""
        pixels = np.stack([self._cut(patch) for patch in patches], axis=1)  # 2NHWC uint8
        return torch.from_numpy(pixels / np.float32(255)).permute(0, 1, 4, 2, 3).unbind()

    def _cut(self, patch: Patch) -> np.ndarray:
        """(2, P, P, 3) uint8: the rainy and the clean patch."""
        rainy, clean = (self._crop(image, patch) for image in self.whole_pair(patch.pair))
        if patch.rain is not None:
            rainy = np.minimum(255, clean + self._other_rain(patch)[..., None]).astype(np.uint8)
        return np.stack([rainy, clean])

    @staticmethod
    def _crop(image: np.ndarray, patch: Patch) -> np.ndarray:
        crop = image[patch.top : patch.top + patch.size, patch.left : patch.left + patch.size]
        crop = crop[:, ::-1] if patch.mirrored else crop
        return crop[::-1] if patch.upside_down else crop

    def _other_rain(self, patch: Patch) -> np.ndarray:
        """(P, P) int: a random crop of a random pair's rain, up to a fifth stronger or fainter; patch.rain decides.

        Rain is one grey layer, added and clipped at 255, so it is the difference of a pair. Where all channels are
        clipped it is lost: crops with more than a tenth of such pixels are drawn again, and the lost
        pixels take the rain from a third of the patch higher up.
        """
        random = np.random.RandomState(patch.rain)
        for _ in range(20):
            other = self._random_patch(random, patch.size)
            rainy, clean = (self._crop(image, other) for image in self.whole_pair(other.pair))
            lost = rainy.min(axis=2) == 255
            if lost.mean() < 0.1:
                break
        layer = (rainy.astype(np.int16) - clean).max(axis=2)
        layer = np.where(lost, np.roll(layer, patch.size // 3, axis=0), layer)
        return np.round(layer * random.uniform(0.8, 1.2)).astype(np.int16)

    def random_patch(
        self, random: np.random.RandomState, size: int, mirror: bool = False, recombine: float = 0
    ) -> Patch:
        """Draw a patch anywhere in the images. mirror: left-right and upside down at random.

        recombine: the probability that the patch gets the rain of another place of the set.
        """
        patch = self._random_patch(random, size)
        if not mirror:
            patch = patch._replace(mirrored=False, upside_down=False)
        rain = int(random.randint(2**31)) if random.rand() < recombine else None
        return patch._replace(rain=rain)

    def _random_patch(self, random: np.random.RandomState, size: int) -> Patch:
        pair = self.pairs[random.randint(len(self.pairs))]
        height, width = self.size(pair)
        top, left = random.randint(height - size + 1), random.randint(width - size + 1)
        mirrored, upside_down = random.randint(2, size=2).astype(bool)
        return Patch(pair, int(top), int(left), size, bool(mirrored), bool(upside_down))

    def size(self, pair: int) -> tuple[int, int]:
        """Height and width of a pair's images."""
        height, width, _ = self._images[int(self._index[pair, 0])].shape
        return height, width

    def check_size(self, size: int) -> None:
        """Raise InputError, naming the image, if one is smaller than `size` pixels."""
        for pair in self.pairs:
            if min(self.size(pair)) < size:
                height, width = self.size(pair)
                raise InputError(
                    f"{self.path}: {self.names[pair]} is {width}x{height}, smaller than a patch of {size}; "
                    "remove the pair, or train on smaller patches"
                )

    def whole_pair(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the uncut rainy and clean image of a pair, (H, W, 3) uint8 RGB, not to be written to."""
        rainy, clean = self._index[pair]
        return self._images[int(rainy)], self._images[int(clean)]

    def unshared_pairs(self, other: DerainDataset) -> list[int]:
        """Return the pairs whose background no pair of another data set shows: their clean images share no line.

        Raises InputError if there are none.
        """
        lines = {line for pair in other.pairs for line in line_digests(other.whole_pair(pair)[1])}
        shows: dict[int, bool] = {}  # by clean image, because many pairs share one
        for pair in self.pairs:
            clean = int(self._index[pair, 1])
            if clean not in shows:
                shows[clean] = not lines.isdisjoint(line_digests(self._images[clean]))
        shared = {self.backgrounds[pair] for pair in self.pairs if shows[int(self._index[pair, 1])]}
        unshared = [pair for pair in self.pairs if self.backgrounds[pair] not in shared]
        if not unshared:
            raise InputError(f"{self.path}: every pair shows a background of {other.path}; validate on other pairs")
        return unshared


class GridPatches:
    """The published order: batches of the grid's patches, shuffled in each epoch by seed and epoch.

    mirror: also mirror each patch left-right and upside down at random, by seed and step.
    """

    def __init__(self, data: DerainDataset, batch_size: int, seed: int, mirror: bool = False) -> None:
        self.data, self.batch_size, self.seed, self.mirror = data, batch_size, seed % 2**32, mirror
        self.steps_per_epoch = math.ceil(len(data) / batch_size)
        self._epoch, self._order = -1, np.empty(0, int)

    def at(self, step: int, progress: float) -> list[Patch]:
        """Return the patches of a step's batch."""
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.RandomState([self.seed, epoch]).permutation(len(self.data))
        patches = [self.data.grid_patch(n) for n in self._order[i * self.batch_size : (i + 1) * self.batch_size]]
        if not self.mirror:
            return patches
        draws = np.random.RandomState([self.seed, step]).randint(2, size=(len(patches), 2)).astype(bool).tolist()
        return [
            patch._replace(mirrored=patch.mirrored != mirrored, upside_down=upside_down)
            for patch, (mirrored, upside_down) in zip(patches, draws, strict=True)
        ]


class Stage(NamedTuple):
    """A part of a run with patches of one size: side in pixels, patches per step, share of the run's steps."""

    size: int
    batch_size: int
    share: float


class RandomPatches:
    """Random crops whose size grows in stages; seed and step decide where they are cut."""

    steps_per_epoch = 1000  # nothing is passed over: an epoch is only the interval of log lines and saved weights

    def __init__(
        self, data: DerainDataset, stages: Sequence[Stage], seed: int, mirror: bool = True, recombine: float = 0
    ) -> None:
        self.data, self.stages, self.seed, self.mirror, self.recombine = data, stages, seed % 2**32, mirror, recombine
        data.check_size(max(stage.size for stage in stages))

    def stage(self, progress: float) -> Stage:
        """Return the stage at a share (0 to 1) of the run's steps."""
        ends = itertools.accumulate(stage.share for stage in self.stages)
        total = sum(stage.share for stage in self.stages)
        return next((s for s, end in zip(self.stages, ends, strict=True) if progress < end / total), self.stages[-1])

    def at(self, step: int, progress: float) -> list[Patch]:
        """Return the patches of a step's batch."""
        stage, random = self.stage(progress), np.random.RandomState([self.seed, step])
        draw = self.data.random_patch
        return [draw(random, stage.size, self.mirror, self.recombine) for _ in range(stage.batch_size)]


def split_by_background(backgrounds: Sequence[int], held_out: int, seed: int) -> tuple[list[int], list[int]]:
    """Split pair numbers into training and validation so that no photograph is in both.

    backgrounds: for each pair, which photograph it shows. held_out: how many pairs, at least,
    validation gets (whole backgrounds, drawn by `seed`). Raises InputError if nothing would be
    left to train on.
    """
    backgrounds = np.asarray(backgrounds)
    validation: list[int] = []
    for background in np.random.RandomState(seed % 2**32).permutation(np.unique(backgrounds)):
        if len(validation) >= held_out:
            break
        validation += np.flatnonzero(backgrounds == background).tolist()
    training = sorted(set(range(len(backgrounds))) - set(validation))
    if not training:
        raise InputError(f"holding out {held_out} of {len(backgrounds)} pairs leaves no background to train on")
    return training, sorted(validation)
