"""Draw the two attentions of each residual group in one image.

    python -m examples.attention --image my_photo.jpg --out results/attention.png

Below the rainy and the derained image is a row for each dual attention: spatial(x) and the gate
channel(x), averaged over the channels, from the smallest value in black to the largest in white.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.utils import make_grid

from derain.cli import run_script, setting
from derain.images import DecodedImage, read_rgb, write_image
from derain.inference import load_weights
from networks import ChannelAttention, SpatialAttention
from utils import quantize, to_image, to_tensor


@dataclass(frozen=True)
class Settings:
    image: Path = setting(Path("photo.jpg"), "the rainy image")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a file")
    out: Path = setting(Path("results/attention.png"), "file to write")


@torch.no_grad()
def draw(settings: Settings) -> None:
    """Run the network as it is written, and keep the outputs of its attentions."""
    network = load_weights(settings.logdir)
    rainy = to_tensor(read_rgb(settings.image))
    maps: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        size = output.abs().mean(dim=1, keepdim=True)
        size = (size - size.min()) / (size.max() - size.min() + 1e-12)
        maps.append(size.expand_as(rainy))

    for module in network.modules():
        if isinstance(module, SpatialAttention | ChannelAttention):
            module.register_forward_hook(keep)
    derained = network(rainy).clamp(0, 1)
    grid = make_grid(torch.cat([rainy, derained, *maps]), nrow=2, padding=4, pad_value=1)
    write_image(settings.out, DecodedImage(quantize(to_image(grid[None]))))
    print(f"{settings.out}: {len(maps) // 2} dual attentions, spatial left, channel right")


if __name__ == "__main__":
    run_script(draw, Settings(), __doc__)
