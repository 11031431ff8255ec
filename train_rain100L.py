"""Train DARGNet for light rain on RainTrainL.

    python train_rain100L.py --recipe best   # two hours on two CPU cores
    python train_rain100L.py --recipe best --minutes 2 --save_path logs/train_try   # a first look
    python train_rain100L.py --save_path logs/train_published   # as published: 75,000 steps

Interrupt it whenever you like; the same command resumes. Then test the result:

    python test_Rain100L.py --logdir logs/train_Rain100L
"""

from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from derain.cli import run_script
from derain.train import TrainSettings, train
from networks import DARGNet
from SSIM import SSIM
from utils import set_seed

SETTINGS = TrainSettings(
    data_path=("datasets/train/RainTrainL",),
    save_path=Path("logs/train_Rain100L"),
    flip=True,  # 200 pairs give 3,000 patches without
)
ssim = SSIM()


def loss(derained: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """Return the loss of (N, 3, H, W) RGB in [0, 1] in parts, whose sum is minimised."""
    return {"ssim_loss": 1 - ssim(derained, clean), "l1_loss": F.l1_loss(derained, clean)}


def main(settings: TrainSettings) -> None:
    set_seed(settings.seed, settings.deterministic)
    network = DARGNet(settings.channels, settings.groups)  # your own network goes in here
    train(settings, network, loss)


if __name__ == "__main__":
    run_script(main, SETTINGS, __doc__)
