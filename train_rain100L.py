"""Train DARGNet for light rain on RainTrainL.

    python train_rain100L.py --recipe best --minutes 120    # no GPU: two hours on a CPU, see logs/README.md
    python train_rain100L.py                                # as published: 100 epochs of 750 steps, a GPU's work
    python train_rain100L.py --recipe best --minutes 2      # a first look

Interrupt it whenever you like; the same command resumes. Then test the result:

    python test_Rain100L.py --logdir logs/train_Rain100L
"""

from pathlib import Path

from derain.cli import run_script
from derain.train import TrainSettings, train
from DerainDataset import DerainDataset
from networks import DARGNet
from SSIM import SSIM
from utils import set_seed

SETTINGS = TrainSettings(
    data_path=Path("datasets/train/RainTrainL"),
    save_path=Path("logs/train_Rain100L"),
    flip=True,  # 200 pairs give 3,000 patches without
    rain="light",
)


def main(settings: TrainSettings) -> None:
    set_seed(settings.seed, settings.deterministic)
    network = DARGNet(settings.channels, settings.groups)  # your own network, data set or loss goes in here
    train(settings, network, DerainDataset, SSIM())


if __name__ == "__main__":
    run_script(main, SETTINGS, __doc__)
