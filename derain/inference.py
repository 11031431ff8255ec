"""Images of any size through a trained network: weights found and opened, precision, exact tiles.

    network = open_network(Path("logs/Rain100H"))
    derained = derain_image(network, rgb)            # (H, W, 3) uint8 or uint16 RGB -> the same

A pixel of the result depends on the pixels within the network's receptive field and on no others, so a tile
with a halo of that radius gives the same values as the whole image.
"""

import contextlib
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from derain.blocks import Progress, in_blocks
from derain.optimized import example, optimize
from networks import load_network
from utils import InputError, quantize, to_image, to_tensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHOLE_PIXELS = 4_000_000  # images up to here are computed whole if memory allows
LARGEST_TILE = 1440  # pixels; its halo adds a sixth to the work
Loader = Callable[[Path], nn.Module]


def weights_file(path: Path) -> Path:
    """Return the weights that --logdir or --init names: the file itself, or net_latest.pth in the folder.

    A path that does not exist here is looked for in this repository: our weights are found from any folder.
    """
    for place in (path, Path(__file__).parent.parent / path):
        file = place / "net_latest.pth" if place.is_dir() else place
        if file.is_file():
            return file
    raise InputError(f"{path}: no such weights; name a folder with net_latest.pth, or a .pth file")


def load_weights(path: Path, load: Loader = load_network) -> nn.Module:
    """Return load(the file that `path` names), with InputError in place of load_network's ValueError."""
    try:
        return load(weights_file(path))
    except ValueError as error:
        raise InputError(str(error)) from error


def open_network(
    path: Path, device: torch.device | None = None, precision: str = "fp32", load: Loader = load_network
) -> nn.Module:
    """Return a trained network in its fastest form. load: makes a network of a weights file.

    Raises InputError for foreign weights.
    """
    network = load_weights(path, load)
    radius, answer = getattr(network, "receptive_field", None), answer_of(network)
    network = optimize(network.to(device or torch.device("cpu")), DTYPES[precision])
    network.receptive_field, network.answer = radius, answer
    if radius is None:
        print("the network has no receptive_field: images are computed whole, not in tiles", flush=True)
    return network


@torch.no_grad()
def answer_of(network: nn.Module) -> str:
    """Return what identifies a network with its weights: its output for a small image, in float64, as a few digits.

    The same weights give another answer in a network whose code was edited.
    """
    try:
        output = copy.deepcopy(network).cpu().double()(example().double())
    except Exception:  # a network that takes other sizes or keeps to float32 is known by its weights alone
        return type(network).__name__
    return f"{float(output.mean()):.6e} {float(output.std()):.6e}"


@torch.inference_mode()
def derain(network: nn.Module, rainy: Tensor, tile: int = 0) -> Tensor:
    """Derain (N, 3, H, W) RGB in [0, 1], whole or in exact tiles; the result is on `rainy`'s device.

    tile: largest side of the tiles in pixels; 0, or anything that covers the image, means whole.
    Each tile is computed with a halo of the receptive field, cut at the true image borders,
    so that zero padding happens only where it would without tiles: the values are the same
    (up to the rounding of sums), without seams or blending. `rainy` may stay on the
    CPU while the network is elsewhere: only a tile at a time goes there.
    """
    device = next(network.parameters(), rainy).device
    radius = reach(network)
    if tile <= 0 or tile >= max(rainy.shape[-2:]) or radius is None:
        return network(rainy.to(device)).to(rainy)
    return in_blocks(lambda crop: network(crop.to(device)), rainy, radius, tile)


def reach(network: nn.Module) -> int | None:
    """Return the network's receptive field to each side in pixels, None if it is not known."""
    radius: Any = getattr(network, "receptive_field", None)
    return radius


def derain_image(
    network: nn.Module,
    rgb: np.ndarray,
    tile: int | None = None,
    quantization: str = "round",
    progress: Progress | None = None,
) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 RGB -> the derained image, of the same shape and type.

    tile: largest side of exact tiles in pixels, 0 for none, None to go by the free memory. Only one tile at a time
    is held as floating-point numbers. progress: see in_blocks. Raises ValueError if the network's output is not finite.
    """
    if tile is None:
        tile = automatic_tile(rgb.shape[0], rgb.shape[1], network)

    def part(pixels: Tensor) -> Tensor:
        rainy = to_tensor(pixels[0].permute(1, 2, 0).numpy()).to(memory_format=torch.channels_last)
        derained = to_image(derain(network, rainy))
        if not np.isfinite(derained).all():
            raise ValueError("the network's output is not finite; check the weights, or use --precision fp32")
        return torch.from_numpy(quantize(derained, rgb.dtype, quantization)).permute(2, 0, 1)[None]

    pixels, radius = torch.from_numpy(rgb).permute(2, 0, 1)[None], reach(network)  # HWC -> NCHW, the same memory
    derained = in_blocks(part, pixels, radius, tile, progress) if tile and radius is not None else part(pixels)
    return derained[0].permute(1, 2, 0).numpy()


def automatic_tile(height: int, width: int, network: nn.Module) -> int:
    """Return 0 for an image of up to 4 megapixels, otherwise the side of the tiles."""
    return 0 if reach(network) is None or height * width <= WHOLE_PIXELS else LARGEST_TILE


def parse_tile(text: str) -> int | None:
    """--tile as a number of pixels: 0 for off, None for auto."""
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    with contextlib.suppress(ValueError):
        if int(text) >= 16:
            return int(text)
    raise InputError(f"--tile {text}: takes auto, off, or a number of pixels from 16 up")
