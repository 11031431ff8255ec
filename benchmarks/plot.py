"""Draw validation PSNR against minutes, from the log.jsonl files of training runs.

pip install -r requirements-extra.txt
python -m benchmarks.plot                           # paper and best: logs/validation.png
python -m benchmarks.plot --runs logs/train_Rain100L logs/mine --out mine.png
"""

import json
from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from utils import InputError, atomic_path

RECIPES = (Path("logs/recipes/paper"), Path("logs/recipes/best"))


@dataclass(frozen=True)
class Settings:
    runs: tuple[Path, ...] = setting(RECIPES, "folders of runs")
    out: Path = setting(Path("logs/validation.png"), "file to write")


def validation_curve(folder: Path) -> tuple[list[float], list[float]]:
    """Return minutes and PSNR in dB (Y) of the validations of the last run in a folder's log."""
    path = folder / "log.jsonl"
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not the log of a training run ({error})") from error
    minutes: list[float] = []
    psnr: list[float] = []
    for line in lines:
        if line.get("begin") == 0:
            minutes, psnr = [], []
        if "validation" in line:
            minutes.append(line["minutes"])
            psnr.append(line["validation"]["mean"]["psnr_y"])
    if not minutes:
        raise InputError(f"{path}: no validation in it; train with --validation")
    return minutes, psnr


def draw(settings: Settings) -> None:
    """Draw one curve per run."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for folder in settings.runs:
        minutes, psnr = validation_curve(folder)
        axes.plot(minutes, psnr, marker=".", label=f"{folder.name}: {psnr[-1]:.2f} dB")
    axes.set(xlabel="minutes", ylabel="validation PSNR in dB (Y)")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_path(settings.out) as temporary:
        figure.savefig(temporary, format=settings.out.suffix[1:] or "png")
    print(settings.out)


if __name__ == "__main__":
    run_script(draw, Settings(), __doc__)
