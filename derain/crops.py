"""Random crops of a mixture of data sets, with the rain of some replaced.

In the sets of Rain100 and RainTrain the rain is one grey layer, added to the clean image and
clipped, so the layer of one pair can be added to the clean image of another. From other sets, whose
rain darkens, blends or was compressed, no layer can be computed: their pairs are used as they are,
and their clean images as further backgrounds.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from torch import Tensor

from DerainDataset import DerainDataset, to_tensors
from utils import InputError

TURN, SCALE = 15.0, 1.25  # largest turn in degrees and largest scale of a varied layer
MOST_CLIPPED = 0.1  # largest share of a crop's pixels that are white, where its layer is unknown

Images = tuple[np.ndarray, np.ndarray]  # rainy and clean, (H, W, 3) uint8 RGB
Stage = tuple[int, int, float]  # side in pixels, crops per step, share of the run


class RandomCrops:
    """Batches of random crops. The seed and the step decide about everything random.

    shares: the parts of the crops that come from each data set. stages: of growing size, each
    (side in pixels, crops per step, share of the run).

    The others are the shares, 0 to 1, of the crops to which a variation applies:
    augment: crops are mirrored at random, left-right and upside down, if it is not 0.
    recombine: the crop gets the rain of another pair, up to a fifth stronger or fainter.
    vary_rain: of recombined crops, the layer is turned by up to 15 degrees and scaled.
    recolour: of recombined crops, the background gets random colours before the rain is added.
    without_rain: of the other crops, the rainy one is the clean one.

    Raises InputError for an image smaller than a crop, or if no pair's rain can be recombined.
    """

    def __init__(
        self,
        sets: Sequence[DerainDataset],
        shares: Sequence[float],
        stages: Sequence[Stage],
        seed: int,
        augment: float = 0,
        recombine: float = 0,
        vary_rain: float = 0,
        recolour: float = 0,
        without_rain: float = 0,
    ) -> None:
        self.sets, self.stages, self.seed = sets, stages, seed % 2**32
        self.augment, self.recombine, self.vary_rain = bool(augment), recombine, vary_rain
        self.recolour, self.without_rain = recolour, without_rain
        for data in sets:
            data.check_size(max(size for size, *_ in stages))
        self.stage_ends = np.cumsum([share for *_, share in stages])
        self.ends = np.cumsum(shares) / np.sum(shares)
        self.grey_pairs = [data.grey_pairs() for data in sets]
        grey_shares = np.array(shares) * [len(pairs) > 0 for pairs in self.grey_pairs]
        if recombine and not grey_shares.any():
            raise InputError("--recombine: no pair's rain is one grey layer; train without it")
        self.grey_ends = np.cumsum(grey_shares) / max(grey_shares.sum(), 1e-9)

    def batch(self, step: int, progress: float) -> tuple[Tensor, Tensor]:
        """Return rainy and clean crops, (N, 3, side, side) float32 RGB in [0, 1] each.

        progress: the share of the run that is done, which decides about the stage.
        """
        stage = int((progress >= self.stage_ends / self.stage_ends[-1]).sum())
        size, count, _ = self.stages[stage]
        random = np.random.RandomState([self.seed, step])
        return to_tensors([self._crop(random, size) for _ in range(count)])

    def _crop(self, random: np.random.RandomState, size: int) -> Images:
        data = self.sets[draw_index(random, self.ends)]
        pair = data.pairs[random.randint(len(data.pairs))]
        rainy, clean = crop_at_random(random, data.whole_pair(pair), size, self.augment)
        if random.rand() < self.recombine:
            return self._recombined(np.random.RandomState(random.randint(2**31)), clean)
        if self.without_rain and random.rand() < self.without_rain:
            return clean, clean
        return rainy, clean

    def _recombined(self, random: np.random.RandomState, clean: np.ndarray) -> Images:
        """Return a clean crop, perhaps recoloured, with and without the rain of another pair."""
        layer = self._layer(random, len(clean)) * random.uniform(0.8, 1.2)
        if self.recolour and random.rand() < self.recolour:
            clean = recoloured(random, clean)
        rainy = np.minimum(255, clean + np.round(layer).astype(np.int16)[..., None])
        return rainy.astype(np.uint8), clean

    def _layer(self, random: np.random.RandomState, size: int) -> np.ndarray:
        """Return the rain of a random crop: (size, size) grey levels to add.

        Where all channels are clipped to white, the difference of a pair is only the least that its
        rain can be. Crops with many such pixels are drawn again; in the others these pixels take
        the rain from a third of the crop higher up if that is more.
        """
        varied = False
        for _ in range(20):
            index = draw_index(random, self.grey_ends)
            pairs = self.grey_pairs[index]
            pair = self.sets[index].whole_pair(pairs[random.randint(len(pairs))])
            if self.vary_rain:
                varied = random.rand() < self.vary_rain
            side = size
            if varied:
                side = min(math.ceil(1.5 * size), *pair[0].shape[:2])
            rainy, clean = crop_at_random(random, pair, side, mirror=True)
            clipped = rainy.min(axis=2) == 255
            if clipped.mean() < MOST_CLIPPED:
                break
        layer = (rainy.astype(np.int16) - clean).max(axis=2)
        higher_up = np.roll(layer, side // 3, axis=0)
        layer = np.where(clipped, np.maximum(layer, higher_up), layer)
        return turned_and_scaled(random, layer, size) if varied else layer


def draw_index(random: np.random.RandomState, ends: np.ndarray) -> int:
    """Return an index at random, by cumulative shares; a single one costs no random number."""
    if len(ends) == 1:
        return 0
    return int(np.searchsorted(ends, random.rand(), side="right"))


def crop_at_random(random: np.random.RandomState, pair: Images, size: int, mirror: bool) -> Images:
    """Cut the same random square out of both images; `mirror` flips it at random."""
    height, width, _ = pair[0].shape
    top, left = random.randint(height - size + 1), random.randint(width - size + 1)
    left_right, upside_down = random.randint(2, size=2)
    rainy, clean = (image[top : top + size, left : left + size] for image in pair)
    if mirror and left_right:
        rainy, clean = rainy[:, ::-1], clean[:, ::-1]
    if mirror and upside_down:
        rainy, clean = rainy[::-1], clean[::-1]
    return rainy, clean


def turned_and_scaled(random: np.random.RandomState, layer: np.ndarray, size: int) -> np.ndarray:
    """Return the middle (size, size) of a larger layer, turned and scaled at random."""
    centre = (len(layer) - 1) / 2
    scale = math.exp(random.uniform(-math.log(SCALE), math.log(SCALE)))
    matrix = cv2.getRotationMatrix2D((centre, centre), random.uniform(-TURN, TURN), scale)
    matrix[:, 2] -= (len(layer) - size) / 2
    turned = cv2.warpAffine(
        layer.astype(np.float32),
        matrix,
        (size, size),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    return np.maximum(turned, 0)


def recoloured(random: np.random.RandomState, clean: np.ndarray) -> np.ndarray:
    """Return a clean crop, (H, W, 3) uint8, with permuted channels, other saturation and gamma."""
    image = clean[..., random.permutation(3)].astype(np.float32) / 255
    grey = image.mean(axis=2, keepdims=True)
    image = grey + random.uniform(0.5, 1.6) * (image - grey)
    image = np.clip(image * random.uniform(0.8, 1.2, 3), 0, 1) ** random.uniform(0.7, 1.4)
    return np.round(255 * image).astype(np.uint8)


# ---------------------------------------------------------------- values of the command line


def folder_and_share(text: str) -> tuple[Path, float]:
    """'FOLDER=SHARE' -> the folder and its share of the crops; without =SHARE it is 1."""
    folder, equals, share = text.rpartition("=")
    if not equals or Path(text).is_dir():
        return Path(text), 1.0
    try:
        if 0 < float(share) < math.inf:
            return Path(folder), float(share)
    except ValueError:
        pass
    raise InputError(f"--data_path {text}: the share must be a number above 0, as in {folder}=0.6")


def parsed_stage(text: str) -> Stage:
    """'SIDE:BATCH:SHARE' -> side in pixels, crops per step, share of the run."""
    try:
        side, count, share = text.split(":")
        stage = int(side), int(count), float(share)
        if all(0 < number < math.inf for number in stage):
            return stage
    except ValueError:
        pass
    raise InputError(f"--stages {text}: each must be SIDE:BATCH:SHARE, such as 64:4:0.5")
