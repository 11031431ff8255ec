"""Derain Rain12 and measure it: 12 pairs of light rain, with the light weights.

    python test_Rain12.py                                            # 10 seconds on two CPU cores
    python test_Rain12.py --data_path my/Rain12 --logdir my_weights.pth

Scores follow the PReNet protocol (Y channel). The authors' released images have 36.822 dB / 0.9618.
RainTrainL shows the backgrounds of images 1 to 8: look at the last four rows of results.csv, too.
If the set is missing, a labelled synthetic stand-in is made and measured instead.
"""

from pathlib import Path

from derain.cli import run_script
from derain.evaluate import EvalSettings, evaluate
from derain.sets import RAIN12
from networks import load_network


def main(settings: EvalSettings) -> None:
    # Your own network: lambda path: load_network(path, MyNetwork())
    evaluate(settings, RAIN12, load_network)


if __name__ == "__main__":
    run_script(main, EvalSettings(logdir=Path("logs/Rain100L")), __doc__)
