"""Derain your own pictures, of any size: a folder of them, or one. No clean images are needed.

    python test_real.py --data_path my_photos           # writes results/real/NAME.png
    python test_real.py --data_path holiday.jpg --save_path derained

Grey stays grey, 16 bits stay 16, alpha is kept. Pictures too large for the memory are computed
in tiles, which gives the same pixels. One that can't be read is refused with a line; the others
get done. Without --data_path, and without datasets/test/real, it shows itself on synthetic rain.
"""

from dataclasses import dataclass
from pathlib import Path

from engine import evaluate
from settings import EvalSettings
from utils import run_script, setting


@dataclass(frozen=True)
class Settings(EvalSettings):
    data_path: Path | None = setting(None, "an image, or a folder of images (default: datasets/test/real)")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/real)")
    name: str = "real"
    rain: str = "heavy"


if __name__ == "__main__":
    run_script(evaluate, Settings, __doc__)
