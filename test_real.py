"""Derain your own pictures and videos, of any size. No clean images are needed.

    python test_real.py --data_path my_photos           # writes results/real/NAME.png
    python test_real.py --data_path holiday.jpg --save_path derained
    python test_real.py --data_path my_photos --recursive --show_rain   # subfolders too; the rain to rain/NAME.png
    python test_real.py --data_path drive.mp4           # writes results/real/drive.mp4, without sound
    python test_real.py --data_path 0                   # a camera, until Ctrl-C: results/real/camera0.avi

Grey stays grey, 16 bits stay 16, alpha is kept. Pictures too large for the memory are computed
in tiles, which gives the same pixels. One that can't be read is refused with a line; the others
get done. A video keeps its size, rate and number of frames, each of which is derained as a
picture is; it is there whole or not at all. Without --data_path, and without datasets/test/real,
it shows itself on synthetic rain.
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import evaluate
from derain.settings import EvalSettings


@dataclass(frozen=True)
class Settings(EvalSettings):
    data_path: Path | None = setting(
        None, "an image, a folder of images, a video, or a camera's number (default: datasets/test/real)"
    )
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/real)")
    recursive: bool = setting(False, "take the images of all subfolders too; results keep the subfolders")
    show_rain: bool = setting(
        False,
        "write the rain that was taken away to rain/ in save_path: rainy - derained, what is below 0 made 0, on the "
        "image's own scale (not stretched)",
    )
    frames: int | None = setting(None, "of a video or camera: stop after this many (default: to its end; Ctrl-C)")
    name: str = "real"
    rain: str = "heavy"


if __name__ == "__main__":
    run_script(evaluate, Settings, __doc__)
