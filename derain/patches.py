"""Which patches each training step takes."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from DerainDataset import DerainDataset, Patch


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
        patches = [self.data.grid[n] for n in self._order[i * self.batch_size : (i + 1) * self.batch_size]]
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

    steps_per_epoch = 1000  # crops are random, so an epoch is just the interval of log lines and saved weights

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
