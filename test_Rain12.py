"""Derain Rain12 and measure it: 12 pairs of light rain, with the light weights.

    python test_Rain12.py                            # about 10 seconds on two CPU cores
    python test_Rain12.py --data_path my/Rain12 --logdir my_weights.pth

The figures follow the PReNet protocol (Y channel). The authors' released
outputs have 36.822 dB / 0.9618. RainTrainL shows the backgrounds of images 1 to 8, so the mean of the other four
is printed too. Where the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import evaluate
from derain.settings import EvalSettings


@dataclass(frozen=True)
class Settings(EvalSettings):
    data_path: Path | None = setting(None, "folder of the pairs (default: datasets/test/Rain12)")
    logdir: Path = setting(Path("logs/Rain100L"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/Rain12)")
    name: str = "Rain12"
    rain: str = "light"
    pairs: int | None = 12
    input_psnr_y: float | None = 30.143
    unseen: tuple[int, ...] = (9, 10, 11, 12)
    reference: tuple[float, float, float | None] | None = (36.822, 0.9618, None)


if __name__ == "__main__":
    run_script(evaluate, Settings, __doc__)
