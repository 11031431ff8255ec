"""Train DARGNet for heavy rain on RainTrainH, as published: 100 epochs of 2,352 steps of 8 patches.

    python train_rain100H.py                        # the whole recipe: a GPU's work
    python train_rain100H.py --max_steps 50         # a first look: about a minute on two CPU cores

Stop it whenever you like; the same command goes on where it was. Then test the result:

    python test_Rain100H.py --logdir logs/train_Rain100H
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.train import TrainSettings, train
from DerainDataset import DerainDataset
from networks import DARGNet
from SSIM import SSIM
from utils import set_seed


@dataclass(frozen=True)
class Settings(TrainSettings):
    data_path: Path = setting(Path("datasets/train/RainTrainH"), "folder of training pairs")
    save_path: Path = setting(Path("logs/train_Rain100H"), "folder for weights, training state and logs")
    rain: str = "heavy"
    strict: bool = setting(True, "of RainTrainH use only the 1,254 images without test backgrounds")


def main(settings: Settings) -> None:
    set_seed(settings.seed, settings.deterministic)
    network = DARGNet(settings.channels, settings.groups)  # your own network, data set or loss goes in here
    train(settings, network, DerainDataset, SSIM())


if __name__ == "__main__":
    run_script(main, Settings, __doc__)
