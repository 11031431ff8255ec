"""Time and peak memory of one derained image against its size, 0.1 to 33 megapixels, and a plot of both.

    pip install -r requirements-extra.txt
    python -m benchmarks.sizes                           # a quarter of an hour on two CPU cores
    python -m benchmarks.sizes --largest 2.1 --plot small.png

Each size runs in a process of its own, the way test_real.py runs it (--tile auto), because a
process's peak memory never falls. The peak is that of the whole process, with Python and torch.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from pathlib import Path

import numpy as np
import torch

from derain.cli import run_script, setting
from derain.inference import DTYPES, automatic_tile, derain_image, weights_file
from derain.optimized import fold
from networks import load_network
from utils import InputError, atomic_path, environment, keep_freed_memory, write_json

SIZES = ((240, 432), (321, 481), (540, 960), (1080, 1920), (2160, 3840), (4320, 7680))


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this benchmark."""

    logdir: Path = setting(Path("logs/Rain100L"), "folder that holds net_latest.pth, or a .pth file")
    largest: float = setting(34.0, "megapixels up to which sizes are measured")
    plot: Path = setting(Path("benchmarks/sizes.png"), "the image")
    json_path: Path | None = setting(None, "file for the times and the environment")


def measure_one(logdir: Path, precision: str, height: int, width: int) -> dict[str, float]:
    """Seconds, peak memory in bytes and tile of one image, after a small one that warms up. In a fresh process."""
    import resource

    keep_freed_memory()
    network = fold(load_network(weights_file(logdir)), DTYPES[precision])
    image = np.random.RandomState(0).randint(256, size=(height, width, 3), dtype=np.uint8)
    derain_image(network, image[:96, :96].copy())
    began = time.perf_counter()
    derain_image(network, image)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"seconds": seconds, "peak": peak, "tile": automatic_tile(height, width, network)}


def draw(rows: list[dict], path: Path) -> None:
    """Both curves, one panel each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), dpi=150, layout="constrained")
    left, right = figure.subplots(1, 2)
    for precision in DTYPES:
        chosen = [row for row in rows if row["precision"] == precision]
        megapixels = [row["megapixels"] for row in chosen]
        left.loglog(megapixels, [row["seconds"] for row in chosen], marker="o", label=precision)
        right.semilogx(megapixels, [row["peak"] / 2**30 for row in chosen], marker="o", label=precision)
    left.set(xlabel="megapixels", ylabel="seconds")
    right.set(xlabel="megapixels", ylabel="peak memory of the process in GiB", ylim=(0, None))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png")


def main(settings: Settings) -> None:
    """Measure every size in both precisions, print the table, draw the plot."""
    try:
        import matplotlib  # noqa: F401, before an hour is spent
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install -r requirements-extra.txt") from error
    context, rows = multiprocessing.get_context("spawn"), []
    titles = ("size", "megapixels", "precision", "seconds", "microseconds a pixel", "peak memory", "tile")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for height, width in SIZES:
        for precision in DTYPES if height * width <= settings.largest * 1e6 else ():
            with context.Pool(1) as pool:
                found = pool.apply(measure_one, (settings.logdir, precision, height, width))
            row = {"size": f"{width}x{height}", "megapixels": height * width / 1e6, "precision": precision, **found}
            rows.append(row)
            cost = 1e6 * found["seconds"] / (height * width)
            print(
                f"| {row['size']} | {row['megapixels']:.2f} | {precision} | {found['seconds']:.2f} | {cost:.2f} | "
                f"{found['peak'] / 2**30:.2f} GiB | {found['tile'] or 'whole'} |",
                flush=True,
            )
    machine = environment(torch.device("cpu"))
    print(f"\n{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}")
    draw(rows, settings.plot)
    print(settings.plot)
    if settings.json_path:
        write_json(settings.json_path, {"rows": rows, "environment": machine})


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
