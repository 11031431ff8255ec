"""Draw what the two attentions of each residual group look at in one image.

    python -m examples.attention --image my_photo.jpg --out results/attention.png

A row for each dual attention, in order: the size of spatial(x) and the gate channel(x), each the mean over channels,
dark for its smallest and bright for its largest value. The first row is the image itself, rainy and derained.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from torchvision.utils import make_grid

from derain.cli import run_script, setting
from derain.images import DecodedImage, read_rgb, write_image
from derain.inference import weights_file
from networks import ChannelAttention, SpatialAttention, load_network
from utils import quantize, to_image, to_tensor


@dataclass(frozen=True)
class Settings:
    image: Path = setting(Path("photo.jpg"), "the rainy image")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    out: Path = setting(Path("results/attention.png"), "file to write")


@torch.no_grad()
def draw(settings: Settings) -> None:
    """Run the network as it is written, and keep what the attentions return."""
    network, maps = load_network(weights_file(settings.logdir)), []
    for module in network.modules():
        if isinstance(module, SpatialAttention | ChannelAttention):
            module.register_forward_hook(
                lambda _module, _input, output: maps.append(output.abs().mean(1, keepdim=True))
            )
    rainy = to_tensor(read_rgb(settings.image))
    derained = network(rainy).clamp(0, 1)
    spread = [(m - m.amin()) / (m.amax() - m.amin() + 1e-12) for m in maps]
    images = torch.cat([rainy, derained, *(m.expand_as(rainy) for m in spread)])
    grid = make_grid(images, nrow=2, padding=4, pad_value=1)
    write_image(settings.out, DecodedImage(quantize(to_image(grid[None]))))
    print(f"{settings.out}: {len(maps) // 2} dual attentions, spatial on the left, channel on the right")


if __name__ == "__main__":
    run_script(draw, Settings(), __doc__)
