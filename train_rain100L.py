"""Train DARGNet for light rain on RainTrainL, as published: 100 epochs of 750 steps of 8 patches.

    python train_rain100L.py                        # the whole recipe: a GPU's work
    python train_rain100L.py --max_steps 50         # a first look: about a minute on two CPU cores

Stop it whenever you like; the same command goes on where it was. Then test the result:

    python test_Rain100L.py --logdir logs/train_Rain100L
"""

from dataclasses import dataclass
from pathlib import Path

from derain.cli import run_script, setting
from derain.engine import train
from derain.settings import TrainSettings


@dataclass(frozen=True)
class Settings(TrainSettings):
    data_path: Path = setting(Path("datasets/train/RainTrainL"), "folder of training pairs")
    save_path: Path = setting(Path("logs/train_Rain100L"), "folder for weights, training state and logs")
    script: str = "train_rain100L.py"
    rain: str = "light"
    flip: bool = setting(True, "double the patches by left-right mirror images")  # 200 pairs give 3,000 without


if __name__ == "__main__":
    run_script(train, Settings, __doc__)
