"""Random crops of a mixture of data sets, with the rain of some replaced.

In the sets of Rain100 and RainTrain the rain is one grey layer, added to the clean image and
clipped, so the layer of one pair can be added to the clean image of another. From other sets, whose
rain darkens, blends or was compressed, no layer can be computed: their pairs are used as they are,
and their clean images as further backgrounds.
"""

import dataclasses
import math
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from torch import Tensor

from derain.synthesize import add_rain
from DerainDataset import DerainDataset, stack_pairs
from utils import InputError

MAX_CLIPPED = 0.1  # largest share of a crop's pixels that are white, where its layer is unknown

Random = np.random.RandomState
Images = tuple[np.ndarray, np.ndarray]  # rainy and clean, (H, W, 3) uint8 RGB
Stage = tuple[int, int, float]  # side in pixels, crops per step, share of the run


@dataclasses.dataclass
class RandomCrops:
    """Batches of random crops. The seed and the step determine everything random.

    The variations are the shares, 0 to 1, of the crops to which they apply.

    Raises InputError for an image smaller than a crop, or if no pair's rain can be recombined.
    """

    sets: Sequence[DerainDataset]
    shares: Sequence[float]  # parts of the crops that come from each data set
    stages: Sequence[Stage]
    seed: int
    augment: bool = False  # mirror crops at random, left-right and upside down
    recombine: float = 0  # give a crop the rain of another pair, up to a fifth stronger or fainter
    without_rain: float = 0  # of the other crops: use the clean one as the rainy one

    def __post_init__(self) -> None:
        self._pairs = [data.pairs for data in self.sets]
        self._grey_pairs = []
        for data in self.sets:
            data.check_size(max(size for size, *_ in self.stages))
            self._grey_pairs.append([pair for pair in data.pairs if data.has_grey_layer[pair]])
        self._grey_shares = np.multiply(self.shares, [bool(pairs) for pairs in self._grey_pairs])
        if self.recombine and not any(self._grey_pairs):
            raise InputError("--recombine: no pair's rain is one grey layer; train without it")

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """Return rainy and clean crops, (N, 3, side, side) float32 RGB in [0, 1] each.

        progress: the share of the run that is done, which selects the stage.
        """
        ends = np.cumsum([share for *_, share in self.stages])
        size, count, _ = self.stages[int((progress >= ends / ends[-1]).sum())]
        random = Random([self.seed % 2**32, step])
        return stack_pairs([self._crop(random, size) for _ in range(count)])

    def _crop(self, random: Random, size: int) -> Images:
        pair = self._draw(random, self._pairs, self.shares)
        rainy, clean = crop_at_random(random, pair, size, self.augment)
        if random.rand() < self.recombine:
            random = Random(random.randint(2**31))  # its own, because the number of draws varies
            layer = self._layer(random, size) * random.uniform(0.8, 1.2)
            return add_rain(clean, layer), clean
        if self.without_rain and random.rand() < self.without_rain:
            return clean, clean
        return rainy, clean

    def _draw(self, random: Random, pairs: list[list[int]], shares: Sequence[float]) -> Images:
        """Draw a set by the shares, and one of its pairs."""
        index = 0
        if len(shares) > 1:  # a single set costs no random number
            ends = np.cumsum(shares) / np.sum(shares)
            index = int(np.searchsorted(ends, random.rand(), side="right"))
        return self.sets[index].whole_pair(pairs[index][random.randint(len(pairs[index]))])

    def _layer(self, random: Random, size: int) -> np.ndarray:
        """Return the rain of a random crop: (size, size) grey levels to add.

        Where all channels are clipped to white, a pair's difference is only a lower bound of its
        rain. Crops with many such pixels are drawn again; in the one that is used, such a pixel
        takes the value a third of the crop higher up if that is larger.
        """
        for _ in range(20):
            pair = self._draw(random, self._grey_pairs, self._grey_shares)
            rainy, clean = crop_at_random(random, pair, size, mirror=True)
            clipped = rainy.min(axis=2) == 255
            if clipped.mean() < MAX_CLIPPED:
                break
        layer = (rainy.astype(np.int16) - clean).max(axis=2)
        higher_up = np.roll(layer, size // 3, axis=0)
        return np.where(clipped, np.maximum(layer, higher_up), layer)


def crop_at_random(random: Random, pair: Images, size: int, mirror: bool) -> Images:
    """Cut the same random square out of both images; `mirror` mirrors it at random."""
    height, width, _ = pair[0].shape
    top, left = random.randint(height - size + 1), random.randint(width - size + 1)
    left_right, upside_down = random.randint(2, size=2)
    rainy, clean = (image[top : top + size, left : left + size] for image in pair)
    if mirror and left_right:
        rainy, clean = rainy[:, ::-1], clean[:, ::-1]
    if mirror and upside_down:
        rainy, clean = rainy[::-1], clean[::-1]
    return rainy, clean


def folder_and_share(text: str) -> tuple[Path, float]:
    """'FOLDER=SHARE' -> the folder and its share of the crops; without =SHARE it is 1."""
    folder, equals, share = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return Path(text), 1.0
    with suppress(ValueError):
        if 0 < float(share) < math.inf:
            return Path(folder), float(share)
    raise InputError(f"--data_path {text}: the share must be a number above 0, as in {folder}=0.6")


def parsed_stage(text: str) -> Stage:
    """'SIDE:BATCH:SHARE' -> side in pixels, crops per step, share of the run."""
    with suppress(ValueError):
        side, count, share = text.split(":")
        stage = int(side), int(count), float(share)
        if all(0 < number < math.inf for number in stage):
            return stage
    raise InputError(f"--stages {text}: each must be SIDE:BATCH:SHARE, such as 64:4:0.5")
