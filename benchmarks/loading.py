"""Training patches per second of one process: the published way of storing them against this repository's.

    python -m benchmarks.loading            # a minute, 1.5 GB of temporary files

Plain: every patch is a float32 array of its own in one of two HDF5 files, and both files are
opened again for each sample, as the published loader does. Ours: one file of uint8 images,
opened once per process, patches cut when they are read. Both give the same (3, P, P) float
tensors, in the same random order.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import h5py
import numpy as np
import torch

from benchmarks.common import measure, report, summarise
from derain.cli import run_script, setting
from derain.synthesize import free_photographs, write_set
from DerainDataset import DerainDataset, prepare

SAMPLES = 400  # per measured call


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this benchmark."""

    patch_size: int = setting(100, "side of a patch in pixels")
    stride: int = setting(80, "distance between patches in pixels")
    patches: int = setting(6000, "of the set; RainTrainL has 6,000 in its published form")
    rounds: int = setting(9, "measured calls of each candidate, in turn")
    json_path: Path | None = setting(None, "file for the times and the environment")


class PlainDataset(torch.utils.data.Dataset):
    """The published way: input.h5 and target.h5, a float32 (3, P, P) array per patch, opened for each sample."""

    def __init__(self, folder: Path) -> None:
        self.files = (folder / "input.h5", folder / "target.h5")
        with h5py.File(self.files[0], "r") as file:
            self.count = len(file)

    @staticmethod
    def write(folder: Path, data: DerainDataset, count: int) -> None:
        """Store `count` patches of `data` twofold, by their numbers, beginning again where it has fewer."""
        for side, name in enumerate(("input.h5", "target.h5")):
            with h5py.File(folder / name, "w") as file:
                for i in range(count):
                    file[str(i)] = data[i % len(data)][side].numpy()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        patches = []
        for path in self.files:
            with h5py.File(path, "r") as file:
                patches.append(torch.from_numpy(file[str(i)][()]))
        return patches[0], patches[1]


def read(data: torch.utils.data.Dataset, order: list[int]) -> None:
    """Read samples one after the other and keep none."""
    for i in order:
        data[i]


def main(settings: Settings) -> None:
    """Make a set of pairs, check that both data sets give the same tensors, measure, print."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = free_photographs("test").items()
        with contextlib.redirect_stdout(None):  # a line for each image
            write_set(folder / "pairs", photographs, "light", 20, seed=0)
        ours = DerainDataset(prepare(folder / "pairs"), settings.patch_size, settings.stride)
        PlainDataset.write(folder, ours, settings.patches)
        plain = PlainDataset(folder)
        order = np.random.RandomState(0).permutation(settings.patches)[:SAMPLES].tolist()
        same = [i % len(ours) for i in order]
        for i, j in zip(order[:20], same, strict=False):
            if not all(torch.equal(a, b) for a, b in zip(ours[j], plain[i], strict=True)):
                raise RuntimeError(f"sample {i} differs between the two data sets")
        candidates = {
            "plain: two float32 files, opened for each sample": lambda: read(plain, order),
            "one uint8 file, opened once (ours)": lambda: read(ours, same),
        }
        seconds = measure(candidates, torch.device("cpu"), settings.rounds)
    notes = {name: f"{len(order) / np.median(times):.0f} samples/s" for name, times in seconds.items()}
    size = settings.patch_size
    title = f"{len(order)} pairs of {size}x{size} patches"
    report(title, summarise(seconds, notes), torch.device("cpu"), settings.json_path)


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
