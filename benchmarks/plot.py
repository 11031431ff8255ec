"""Draw validation PSNR against training steps, from the log.jsonl files of training runs.

pip install -r requirements-extra.txt
python benchmarks/plot.py                                        # of our weights: logs/validation.png
python benchmarks/plot.py --runs logs/train_Rain100L logs/mine --out mine.png
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from derain.cli import run_script, setting
from utils import InputError, atomic_path


@dataclass(frozen=True)
class Settings:
    runs: tuple[Path, ...] = setting((Path("logs/Rain100L"), Path("logs/Rain100H")), "folders of training runs")
    out: Path = setting(Path("logs/validation.png"), "the picture")


def validation_curve(folder: Path) -> tuple[list[int], list[float], list[int]]:
    """(steps, PSNR in dB (Y), steps at which training began anew from the weights so far) of a run's log.

    A log may hold several runs, each begun with the weights of the one before (--init): their steps add
    up. What a run did after its last training state, before it was stopped, is done again and counts once.
    Raises InputError for a folder without such a log.
    """
    path = folder / "log.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the log of a training run ({error})") from error
    steps, figures, restarts, before = [], [], [], 0
    for line in lines:
        if "begin" in line:
            if line["begin"] == 0 and line["settings"].get("init") and steps:
                before = steps[-1]
                restarts.append(before)
            kept = sum(step <= before + line["begin"] for step in steps)
            del steps[kept:], figures[kept:]
        if "psnr_y" in line:
            steps.append(before + line["step"])
            figures.append(line["psnr_y"])
    if not steps:
        raise InputError(f"{path}: no validation in it; train with --validation or --validation_path")
    return steps, figures, restarts


def draw(settings: Settings) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("drawing needs matplotlib: pip install -r requirements-extra.txt") from error

    figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for folder in settings.runs:
        steps, figures, restarts = validation_curve(folder)
        (line,) = axes.plot(steps, figures, marker=".", label=f"weights in {folder}: {figures[-1]:.2f} dB")
        for restart in restarts:
            axes.axvline(restart, color=line.get_color(), linestyle=":", linewidth=1)
    axes.set(xlabel="training steps", ylabel="validation PSNR in dB (Y)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(settings.out) as temporary:
        figure.savefig(temporary, format=settings.out.suffix[1:] or "png")
    print(settings.out)


if __name__ == "__main__":
    run_script(draw, Settings(), __doc__)
