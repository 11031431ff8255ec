"""Derain Rain100H and measure it: 100 pairs of heavy rain.

    python test_Rain100H.py                            # about a minute on two CPU cores
    python test_Rain100H.py --data_path my/Rain100H --logdir my_weights.pth

The figures follow the PReNet protocol (Y channel). The authors' released
outputs have 29.8105 dB / 0.90521. Where the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import evaluate
from derain.settings import EvalSettings


@dataclass(frozen=True)
class Settings(EvalSettings):
    data_path: Path | None = setting(None, "folder of the pairs (default: datasets/test/Rain100H)")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/Rain100H)")
    name: str = "Rain100H"
    rain: str = "heavy"
    pairs: int | None = 100
    input_psnr_y: float | None = 13.55
    reference: tuple[float, float, float | None] | None = (29.8105, 0.90521, 28.384)


if __name__ == "__main__":
    run_script(evaluate, Settings, __doc__)
