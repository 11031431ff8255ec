"""Train DARGNet for heavy rain on RainTrainH.

    python train_rain100H.py --recipe best --minutes 120   # two hours on a CPU
    python train_rain100H.py --recipe best --minutes 2 --save_path logs/train_try   # a first look
    python train_rain100H.py --save_path logs/train_published   # as published: 235,200 steps

Interrupt it whenever you like; the same command resumes. Then test the result:

    python test_Rain100H.py --logdir logs/train_Rain100H
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
    data_path=("datasets/train/RainTrainH",),
    save_path=Path("logs/train_Rain100H"),
    strict=True,  # without the 546 pairs that show test backgrounds
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
