"""Derain Rain100L and measure it: 100 pairs of light rain, with the light weights.

    python test_Rain100L.py                                          # 1.5 minutes on two CPU cores
    python test_Rain100L.py --data_path my/Rain100L --logdir my_weights.pth

Scores follow the PReNet protocol (Y channel). The authors' released images have 37.714 dB / 0.9805.
If the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from pathlib import Path

from derain.cli import run_script
from derain.evaluate import EvalSettings, evaluate
from derain.sets import RAIN100L
from networks import load_network


def main(settings: EvalSettings) -> None:
    # Your own network: lambda path: load_network(path, MyNetwork())
    evaluate(settings, RAIN100L, load_network)


if __name__ == "__main__":
    run_script(main, EvalSettings(logdir=Path("logs/Rain100L")), __doc__)
