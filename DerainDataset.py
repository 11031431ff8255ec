"""Pairs of rainy and clean images: packing them into one HDF5 file, cutting patches.

    packed = prepare(Path("datasets/train/RainTrainL"))        # datasets/train/RainTrainL.h5
    rainy, clean = DerainDataset(packed, patch_size=100, stride=80)[0]

The HDF5 file holds every image once, as uint8. Patches are cut when they are read, so patch size,
stride and flips are choices of the run. derain/pairs.py pairs the files by their names.
"""

import copy
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from derain.pairs import Pair, find_pairs, read_pair, strict_raintrainh
from derain.synthesize import SYNTHETIC_MARKER
from utils import InputError, write_atomically


def prepare(folder: Path, strict: bool = False, clean_dir: Path | None = None) -> Path:
    """Pack a folder of pairs into one HDF5 file, unless that is done already, and return its path.

    The file lies beside the folder. It records the names, sizes and times of its images, and is
    packed again when they change. strict: leave out RainTrainH's pairs with test backgrounds.
    clean_dir: as in find_pairs.

    Raises InputError for anything wrong with the images, for a file of that name that is damaged or
    not a packed set, and for a read-only folder.
    """
    pairs = find_pairs(folder, clean_dir)
    ending = ".h5"
    if strict and not (folder / SYNTHETIC_MARKER).exists():
        kept, sentence = strict_raintrainh(pairs)
        print(sentence, flush=True)
        if len(kept) < len(pairs):
            pairs, ending = kept, ".strict.h5"
    files = []
    for pair in pairs:
        for file in pair.rainy, pair.clean:
            name, status = Path(os.path.relpath(file, folder)).as_posix(), file.stat()
            files.append([name, status.st_size, status.st_mtime_ns])
    sources, place = json.dumps(files), Path(os.path.normpath(folder.absolute()))
    path = place.with_name(place.name + ending)
    if path.exists():
        with open_packed(path) as packed:
            if packed["sources"].asstr()[()] == sources:
                return path
    if not os.access(path.parent, os.W_OK):
        raise InputError(f"{path.parent}: is read-only; pass a symbolic link from elsewhere")
    content = io.BytesIO()  # because HDF5 itself would crash on a full disk
    with h5py.File(content, "w") as packed:
        count = pack(packed, pairs, sources, f"packing {folder}")
    write_atomically(path, content.getbuffer())
    print(f"{folder}: the rain of {count} of {len(pairs)} pairs is one grey layer", flush=True)
    return path


@contextmanager
def open_packed(path: Path) -> Iterator[h5py.File]:
    """Open a packed file for reading. Raises InputError if it is damaged or something else."""
    try:
        with h5py.File(path, "r", locking=False) as file:  # some file systems cannot lock
            yield file
    except (AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
        problem = f"not a packed training set ({type(error).__name__})"
        raise InputError(f"{path}: {problem}; rename it, or remove it") from error


def pack(file: h5py.File, pairs: Sequence[Pair], sources: str, title: str) -> int:
    """Write pairs and their images into an open file; return how many have a grey layer."""
    numbers: dict[bytes, int] = {}  # digest of an image's pixels -> its place in the file
    index, grey = [], []
    for pair in tqdm(pairs, title, unit="pair"):
        images = read_pair(pair)
        grey.append(has_grey_layer(*images))
        for image in images:
            digest = hashlib.sha256(str(image.shape).encode() + image.tobytes()).digest()
            if digest not in numbers:
                numbers[digest] = len(numbers)
                file[f"images/{numbers[digest]}"] = image
            index.append(numbers[digest])
    file["pairs"], file["grey_layer"] = np.reshape(index, (-1, 2)), grey
    file["sources"] = sources
    return sum(grey)


def has_grey_layer(rainy: np.ndarray, clean: np.ndarray) -> bool:
    """Return whether rainy = min(255, clean + a grey layer >= 0) in 99.9% of the pixels.

    Both (H, W, 3) uint8 RGB. The layer is the largest of the three channels' differences, because
    clipped channels differ by less.
    """
    difference = rainy.astype(np.int16) - clean
    layer = difference.max(axis=2, keepdims=True)
    fits = (np.minimum(255, clean + layer) == rainy).all(axis=2) & (layer[..., 0] >= 0)
    return bool(fits.mean() >= 0.999)


class DerainDataset(Dataset):
    """Patches of a packed set: item i is (rainy, clean), (3, P, P) float32 RGB in [0, 1] each.

    hdf5_path: a file made by `prepare`. patch_size, stride: in pixels; whole patches lie on a grid
    from each image's top left. flip: add every patch's left-right mirror image, as RainTrainL's
    recipe does.

    All images are read into memory as uint8: 0.2 GB for RainTrainL, 0.7 GB for strict RainTrainH.
    An image smaller than a patch gives none. Raises InputError if the file cannot be used.
    """

    def __init__(
        self, hdf5_path: Path, patch_size: int = 100, stride: int = 80, flip: bool = False
    ) -> None:
        self.path, self.patch_size = Path(hdf5_path), patch_size
        with open_packed(self.path) as file:
            self._index, self.has_grey_layer = file["pairs"][()], file["grey_layer"][()]
            sources = json.loads(file["sources"].asstr()[()])
            self._images = {int(i): file[f"images/{i}"][()] for i in np.unique(self._index)}
        self.names = [name for name, *_ in sources[::2]]
        self.checksum = zlib.crc32(self._index)  # of the pairs and all pixels
        for image in self._images.values():
            self.checksum = zlib.crc32(image, self.checksum)
        self.pairs = list(range(len(self._index)))
        self.grid: list[tuple[int, int, int, int]] = []  # pair, top, left, -1 if mirrored else 1
        for pair in self.pairs:
            height, width, _ = self.whole_pair(pair)[0].shape
            for top in range(0, height - patch_size + 1, stride):
                for left in range(0, width - patch_size + 1, stride):
                    self.grid.append((pair, top, left, 1))
        if flip:
            self.grid += [(pair, top, left, -1) for pair, top, left, _ in self.grid]

    def check_size(self, size: int) -> None:
        """Raise InputError, naming the image, if one is smaller than a patch of `size` pixels."""
        for pair in self.pairs:
            height, width, _ = self.whole_pair(pair)[0].shape
            if min(height, width) < size:
                image = f"{self.path}: {self.names[pair]} is {width}x{height}"
                raise InputError(f"{image}, smaller than {size}; remove it, or use smaller patches")

    def __len__(self) -> int:
        return len(self.grid)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        rainy, clean = self.batch([i])
        return rainy[0], clean[0]

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return items by number: rainy and clean, (N, 3, P, P) float32 RGB in [0, 1] each."""
        size, patches = self.patch_size, []
        for i in numbers:
            pair, top, left, direction = self.grid[i]
            patch = [image[top : top + size, left : left + size] for image in self.whole_pair(pair)]
            patches.append([image[:, ::direction] for image in patch])
        return stack_pairs(patches)

    def whole_pair(self, pair: int) -> tuple[np.ndarray, np.ndarray]:
        """Return a pair's rainy and clean image, (H, W, 3) uint8 RGB, not to be modified."""
        rainy, clean = self._index[pair]
        return self._images[int(rainy)], self._images[int(clean)]

    def part(self, pairs: Sequence[int]) -> "DerainDataset":
        """Return a data set of some of the pairs."""
        part = copy.copy(self)
        part.pairs = list(pairs)
        chosen = set(pairs)
        part.grid = [patch for patch in self.grid if patch[0] in chosen]
        return part

    def held_out(self, count: int, seed: int) -> "DerainDataset":
        """Return a data set of `count` pairs, drawn by `seed`."""
        order = np.random.RandomState(seed % 2**32).permutation(self.pairs)
        return self.part(sorted(order[:count].tolist()))

    def without_backgrounds(self, others: Sequence["DerainDataset"]) -> "DerainDataset":
        """Leave out pairs with backgrounds of other sets. Raises InputError if none is left."""
        seen = set[bytes]()
        for other in others:
            seen.update(*map(other.background_digests, other.pairs))
        kept = [pair for pair in self.pairs if seen.isdisjoint(self.background_digests(pair))]
        if not kept:
            problem = "every pair has a background that is in validation"
            raise InputError(f"{self.path}: {problem}; validate on other or fewer pairs")
        return self.part(kept)

    def background_digests(self, pair: int) -> set[bytes]:
        """Return digests of a pair's clean image and of its rows and columns, except flat ones.

        Images that share one show the same background; a crop along both axes is not recognised.
        """
        clean = self.whole_pair(pair)[1]
        digests = {hashlib.blake2b(clean.tobytes(), digest_size=12).digest()}
        for side in (clean, clean.swapaxes(0, 1)):
            for line in side[side.std(axis=1).max(axis=1) > 4]:
                digests.add(hashlib.blake2b(line.tobytes(), digest_size=12).digest())
        return digests


def stack_pairs(patches: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
    """Return pairs of (P, P, 3) uint8 as rainy and clean, (N, 3, P, P) float32 in [0, 1] each."""
    pixels = np.stack([np.stack(pair) for pair in patches], axis=1) / np.float32(255)
    rainy, clean = torch.from_numpy(pixels).permute(0, 1, 4, 2, 3)  # 2NHWC -> 2NCHW
    return rainy, clean
