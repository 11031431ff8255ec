"""Rainy and clean images: packing the pairs into one HDF5 file, cutting patches.

    packed = prepare(Path("datasets/train/RainTrainL"))        # datasets/train/RainTrainL.h5
    rainy, clean = DerainDataset(packed, patch_size=100, stride=80)[0]

The HDF5 file holds every image once, as uint8. Patches are cut when they are read, so patch
size, stride and flips are choices of the run and need no second copy of the data. How files are paired by their
names is in derain/pairs.py.
"""

import hashlib
import io
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from scipy.cluster.hierarchy import DisjointSet
from torch.utils.data import Dataset

from derain.cli import check_folder
from derain.pairs import Pair, find_pairs, read_pair, strict_raintrainh
from derain.synthesize import SYNTHETIC_MARKER
from utils import InputError, write_atomically

# Files are opened with locking=False: they are renamed when complete, and some file systems have no locks.
FORMAT, VERSION = "DARGNet training pairs", 1

# What h5py raises for damaged files, and what their content leads to.
DAMAGED = (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError, MemoryError)


# ---------------------------------------------------------------- packing


def prepare(
    folder: Path, strict: bool = False, log: Any = print, clean_dir: Path | None = None, cache: Path | None = None
) -> Path:
    """Pack a folder of pairs into one HDF5 file, or find that it is packed already, and return its path.

    The file has the folder's name with .h5, beside the folder, or in the user's cache if that place is read-only;
    cache: another folder for it.
    strict applies RainTrainH's rule (see strict_raintrainh); if that leaves pairs out, the name ends in .strict.h5.
    The file records its sources' names, sizes and times and is rebuilt when they change, or when it is cut off or
    damaged. It is written under a temporary name and renamed, so it is complete or not there at all. clean_dir: as
    find_pairs takes it.

    Raises InputError for anything wrong with the images (see find_pairs and read_pair), or for a file of that name
    that is not a packed set.
    """
    pairs, ending = find_pairs(folder, log, clean_dir), ".h5"
    if strict and not (folder / SYNTHETIC_MARKER).exists():
        kept, sentence = strict_raintrainh(pairs)
        log(sentence)
        pairs, ending = kept, ".h5" if len(kept) == len(pairs) else ".strict.h5"
    named = folder if folder.name.strip(".") else folder.resolve()  # '.' and '..' have no name of their own
    sources = json.dumps([_describe(file, folder) for pair in pairs for file in (pair.rainy, pair.clean)])
    places = packed_files(named, ending, cache)
    for path in (place for place in places if os.access(place, os.R_OK)):
        problem = _why_rebuild(path, sources)
        if problem is None:
            return path
        log(f"{path}: {problem}; packing again")
    path = next((path for path in places if os.access(path.parent, os.W_OK)), places[-1])
    check_folder(path.parent, "--cache")
    log(f"packing {len(pairs)} pairs of {folder} into {path}")
    began = time.monotonic()
    content = io.BytesIO()  # on a full disk HDF5 itself would crash
    with h5py.File(content, "w") as file:
        _pack(file, pairs, sources, log)
    write_atomically(path, content.getbuffer())
    log(f"packed in {time.monotonic() - began:.1f} s, {path.stat().st_size / 1e6:.1f} MB")
    return path


def packed_files(folder: Path, ending: str, cache: Path | None = None) -> list[Path]:
    """Return where a folder's packed file may be, best first: in `cache`, or beside the folder or in the user's cache.

    In a cache, folders of one name differ by their place.
    """
    place = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:8]
    users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "dargnet"  # noqa: PTH111
    users = users if users.is_absolute() else Path(tempfile.gettempdir()) / "dargnet"  # without a home
    cached = (cache or users) / f"{folder.name}-{place}{ending}"
    return [cached] if cache else [folder.with_name(folder.name + ending), cached]


def _describe(file: Path, folder: Path) -> list[Any]:
    status = file.stat()
    return [Path(os.path.relpath(file, folder)).as_posix(), status.st_size, status.st_mtime_ns]


def _why_rebuild(path: Path, sources: str) -> str | None:
    try:
        with h5py.File(path, "r", locking=False) as file:
            if file.attrs.get("format") == FORMAT:
                if file.attrs.get("version") != VERSION:
                    return "made by another version of this program"
                return None if file["sources"].asstr()[()] == sources else "the images changed since"
    except DAMAGED:
        if h5py.is_hdf5(path) or not path.stat().st_size:
            return "cut off or damaged"
    raise InputError(f"{path}: not a packed training set; rename it, or remove it")


def _pack(file: h5py.File, pairs: Sequence[Pair], sources: str, log: Any) -> None:
    numbers: dict[bytes, int] = {}  # digest of an image's pixels -> its place in the file
    first_with: dict[bytes, int] = {}  # digest of a row or column -> the first clean image that has it
    same_photograph = DisjointSet()  # of clean images, by their places in the file
    index = np.zeros((len(pairs), 2), np.int64)
    for i, pair in enumerate(pairs):
        images = read_pair(pair)
        for side, image in enumerate(images):
            digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
            if digest not in numbers:
                numbers[digest] = len(numbers)
                file.create_dataset(f"images/{numbers[digest]}", data=image)
            index[i, side] = numbers[digest]
        clean = int(index[i, 1])
        if clean not in same_photograph:
            same_photograph.add(clean)
            for line in line_digests(images[1]):
                same_photograph.merge(clean, first_with.setdefault(line, clean))
        if (i + 1) % 100 == 0 or i + 1 == len(pairs):
            log(f"  {i + 1}/{len(pairs)}")
    file["pairs"] = index
    roots = [same_photograph[int(clean)] for clean in index[:, 1]]
    labels = {root: label for label, root in enumerate(dict.fromkeys(roots))}
    file["backgrounds"] = np.array([labels[root] for root in roots])
    file["sources"] = sources
    file.attrs["version"] = VERSION
    file.attrs["format"] = FORMAT  # last, because its presence means that the file is complete


def line_digests(image: np.ndarray) -> list[bytes]:
    """Return digests of an image's rows and columns, without flat ones: two crops of one photograph share some.

    So a background is recognised even if copies are cropped along one side, without any list of names.
    """
    lines = [line for side in (image, image.swapaxes(0, 1)) for line in side[side.std(axis=(1, 2)) > 4]]
    return [hashlib.blake2b(line.tobytes(), digest_size=12).digest() for line in lines]


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
            with h5py.File(self.path, "r", locking=False) as file:
                self._index = file["pairs"][()]
                self.backgrounds = file["backgrounds"][()]
                self.names = [name for name, *_ in json.loads(file["sources"].asstr()[()])[::2]]
                self._images = {int(i): file[f"images/{i}"][()] for i in np.unique(self._index)}
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
        self.grid = [patch for pair in self.pairs for patch in self._grid_of(pair, stride)]  # where items are cut
        if flip:
            self.grid += [patch._replace(mirrored=True) for patch in self.grid]

    def _grid_of(self, pair: int, stride: int) -> Iterator[Patch]:
        height, width = self.size(pair)
        for top in range(0, height - self.patch_size + 1, stride):
            for left in range(0, width - self.patch_size + 1, stride):
                yield Patch(pair, top, left, self.patch_size)

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        rainy, clean = self.batch([self.grid[i]])
        return rainy[0], clean[0]

    def batch(self, patches: Sequence[Patch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut patches of one size: rainy and clean, each (N, 3, P, P) float32 RGB in [0, 1], channels last."""
        pixels = np.stack([self._cut(patch) for patch in patches], axis=1)  # 2NHWC uint8
        rainy, clean = torch.from_numpy(pixels / np.float32(255)).permute(0, 1, 4, 2, 3)
        return rainy, clean

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
            height, width = self.size(pair)
            if min(height, width) < size:
                problem = f"{self.names[pair]} is {width}x{height}, smaller than a patch of {size}"
                raise InputError(f"{self.path}: {problem}; remove the pair, or train on smaller patches")

    def whole_pair(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the uncut rainy and clean image of a pair, (H, W, 3) uint8 RGB, not to be written to."""
        rainy, clean = self._index[pair]
        return self._images[int(rainy)], self._images[int(clean)]

    def unshared_pairs(self, other: "DerainDataset") -> list[int]:
        """Return the pairs whose background no pair of another data set shows: their clean images share no line.

        Raises InputError if there are none.
        """
        lines = {line for pair in other.pairs for line in line_digests(other.whole_pair(pair)[1])}
        clean = {pair: int(self._index[pair, 1]) for pair in self.pairs}
        # by clean image, because many pairs share one
        shows = {i: not lines.isdisjoint(line_digests(self._images[i])) for i in set(clean.values())}
        shared = {self.backgrounds[pair] for pair in self.pairs if shows[clean[pair]]}
        unshared = [pair for pair in self.pairs if self.backgrounds[pair] not in shared]
        if not unshared:
            raise InputError(f"{self.path}: every pair shows a background of {other.path}; validate on other pairs")
        return unshared


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
