"""Derain Rain100L and measure it: 100 pairs of light rain.

    python test_Rain100L.py                            # about a minute on two CPU cores
    python test_Rain100L.py --data_path my/Rain100L --logdir my_weights.pth

The figures follow the PReNet protocol (Y channel). The authors' released
outputs have 37.7139 dB / 0.98053. Where the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import evaluate
from derain.settings import EvalSettings


@dataclass(frozen=True)
class Settings(EvalSettings):
    data_path: Path | None = setting(None, "folder of the pairs (default: datasets/test/Rain100L)")
    logdir: Path = setting(Path("logs/Rain100L"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/Rain100L)")
    name: str = "Rain100L"
    rain: str = "light"
    pairs: int | None = 100
    input_psnr_y: float | None = 26.9007
    reference: tuple[float, float, float | None] | None = (37.7139, 0.98053, 36.284)


if __name__ == "__main__":
    run_script(evaluate, Settings, __doc__)
