"""Derain your own images and videos, of any size, with the weights for any rain (logs/real).

    python test_real.py --data_path my_photos           # writes results/real/NAME.png
    python test_real.py --data_path holiday.jpg --out derained.jpg
    python test_real.py --data_path 2024/*.jpg 2025 --format jpg
    python test_real.py --data_path "my_photos/**/*.jpg"                # with subfolders
    python test_real.py --data_path drive.mp4           # writes results/real/drive.mp4, with sound

Grey stays grey, 16 bits stay 16, alpha is kept. Unreadable files are reported and skipped. bf16 is
used where the processor computes it natively; --precision fp32 gives the same pixels on every
machine, up to rounding. Without --data_path it derains datasets/test/real or synthetic rain.
"""

from pathlib import Path

from derain.cli import run_script
from derain.evaluate import EvalSettings, evaluate
from networks import load_network


def main(settings: EvalSettings) -> None:
    # Your own network: lambda path: load_network(path, MyNetwork())
    evaluate(settings, None, load_network)


if __name__ == "__main__":
    run_script(main, EvalSettings(logdir=Path("logs/real"), precision="auto"), __doc__)
