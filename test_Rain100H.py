"""Derain Rain100H and measure it: 100 pairs of heavy rain, with the heavy weights.

    python test_Rain100H.py                                          # 1.5 minutes on two CPU cores
    python test_Rain100H.py --data_path my/Rain100H --logdir my_weights.pth

Scores follow the PReNet protocol (Y channel). The authors' released images have 29.811 dB / 0.9052.
If the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from pathlib import Path

from derain.cli import run_script
from derain.evaluate import EvalSettings, evaluate
from derain.sets import RAIN100H
from networks import load_network


def main(settings: EvalSettings) -> None:
    # Your own network: lambda path: load_network(path, MyNetwork())
    evaluate(settings, RAIN100H, load_network)


if __name__ == "__main__":
    run_script(main, EvalSettings(logdir=Path("logs/Rain100H")), __doc__)
