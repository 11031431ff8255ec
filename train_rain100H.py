"""Train DARGNet for heavy rain on RainTrainH, as published: 100 epochs of 2,352 steps of 8 patches.

    python train_rain100H.py                        # the whole recipe: a GPU's work
    python train_rain100H.py --max_steps 50         # a first look: about a minute on two CPU cores

Stop it whenever you like; the same command goes on where it was. Then test the result:

    python test_Rain100H.py --logdir logs/train_Rain100H
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import train
from derain.settings import TrainSettings


@dataclass(frozen=True)
class Settings(TrainSettings):
    data_path: Path = setting(Path("datasets/train/RainTrainH"), "folder of training pairs")
    save_path: Path = setting(Path("logs/train_Rain100H"), "folder for weights, training state and logs")
    script: str = "train_rain100H.py"
    rain: str = "heavy"
    strict: bool = setting(True, "of RainTrainH use only the 1,254 images without test backgrounds")


if __name__ == "__main__":
    run_script(train, Settings, __doc__)
