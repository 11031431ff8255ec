"""Run a trained network on images of any size, in its fastest form and in exact tiles.

    network = optimize(load_weights(Path("logs/Rain100H")))
    derained = derain_image(network, rgb)            # (H, W, 3) uint8 or uint16 RGB -> the same

The fastest form of DARGNet is folded: fewer operations, the same values up to rounding. The two are
compared first, so an edited networks.py runs unfolded, as it is written.
"""

import copy
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from networks import DualAttention, ResidualGroup, load_network
from utils import InputError, quantize, to_image, to_tensor

MAX_UNTILED_PIXELS = 1_500_000  # larger images are computed in tiles; this many take 2.4 GB in fp32
TILE = 1088  # side in pixels; with its overlap, a tile has about MAX_UNTILED_PIXELS
Loader = Callable[[Path], nn.Module]


def weights_file(path: Path) -> Path:
    """Return the weights that `path` names: a file, or net_latest.pth in a folder.

    A path that does not exist here is looked up in this repository.
    """
    place = path if path.exists() else Path(__file__).parent.parent / path
    file = place / "net_latest.pth" if place.is_dir() else place
    if file.is_file():
        return file
    raise InputError(f"{path}: no such weights; name a folder with net_latest.pth, or a .pth file")


def load_weights(path: Path, load: Loader = load_network) -> nn.Module:
    """Load the weights that `path` names. Raises InputError if they are missing or foreign."""
    try:
        return load(weights_file(path))
    except ValueError as error:
        raise InputError(str(error)) from error


def optimize(network: nn.Module, precision: str = "fp32") -> nn.Module:
    """Return a copy for inference: a DARGNet folded, any other network as it is written.

    precision: fp32 or bf16, of the folded form. Any other network runs in float32, because autocast
    would round its images to fewer levels than 8 bits have.
    """
    if is_foldable(network):
        return fold(network, torch.bfloat16 if precision == "bf16" else torch.float32)
    return copy.deepcopy(network).eval().to(memory_format=torch.channels_last)


@torch.no_grad()
def is_foldable(network: nn.Module) -> bool:
    """Return whether the folded form equals the network, on a small image in float64."""
    exact = copy.deepcopy(network).cpu().double().eval()
    rainy = torch.arange(3 * 22 * 27, dtype=torch.float64).sin().view(1, 3, 22, 27)
    try:
        half = fold(exact, torch.bfloat16)(rainy.float())  # an edited network may mix types
        found, expected = fold(exact, torch.float64)(rainy), exact(rainy)
        return half.dtype == torch.float32 and torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
    except Exception:  # another network may lack any part, or have other shapes
        return False


@torch.no_grad()
def fold(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a faster copy of a DARGNet with the same values up to rounding, for inference only.

    In bfloat16 the last convolution stays float32, because rounding would leave the image fewer
    levels than 8 bits have. Save the original's state dict: the copy's has other keys.
    """
    device = next(network.parameters()).device
    folded: Any = copy.deepcopy(network).cpu().eval().requires_grad_(False)
    folded.groups = nn.ModuleList(FoldedResidualGroup(group) for group in folded.groups)
    folded.to(dtype, memory_format=torch.channels_last)
    if dtype == torch.bfloat16:
        folded.head.register_forward_pre_hook(lambda _, inputs: inputs[0].bfloat16())
        last = [layer for layer in folded.tail if isinstance(layer, nn.Conv2d)][-1].float()
        last.register_forward_pre_hook(lambda _, inputs: inputs[0].float())
    return folded.to(device)


class FoldedResidualGroup(nn.Module):
    """A ResidualGroup with folded attentions: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, group: ResidualGroup) -> None:
        super().__init__()
        self.attention1 = FoldedDualAttention(group.attention1, group.act1)
        self.attention2 = FoldedDualAttention(group.attention2, group.act2)
        self.conv, self.slope = group.conv, group.act3.weight.item()

    def forward(self, x: Tensor) -> Tensor:
        y = self.attention2(self.attention1(x))
        return F.leaky_relu_(self.conv(y), self.slope).add_(x)


class FoldedDualAttention(nn.Module):
    """A DualAttention and the PReLU after it: (N, C, H, W) -> (N, C, H, W).

    The shared 1x1 convolution M of a concatenation is a sum, M[a, b] = Ma a + Mb b, so nothing
    needs to be concatenated. As the dilation-1 branch has no activation, Ma after its convolution
    (weight K, bias k) is itself one 3x3 convolution, with weight Ma K and bias Ma k + m.
    """

    def __init__(self, attention: DualAttention, act: nn.PReLU) -> None:
        super().__init__()
        spatial, channel = attention.spatial, attention.channel
        self.conv_d2, self.conv_d5 = spatial.conv_d2, spatial.conv_d5
        self.depthwise, self.pointwise = channel.depthwise, channel.pointwise
        self.slope = spatial.act.weight.item()
        self.gate_slope = channel.act.weight.item()
        self.out_slope = act.weight.item()

        merge_a, merge_b = spatial.merge.weight.chunk(2, dim=1)
        self.merge_a = nn.Parameter(merge_a.contiguous())
        self.merge_b = nn.Parameter(merge_b.contiguous())
        self.merge_bias = spatial.merge.bias
        self.near, matrix = spatial.conv_d1, merge_a[:, :, 0, 0].double()
        weight = torch.einsum("om,mihw->oihw", matrix, self.near.weight.double())
        self.near.weight.copy_(weight)
        self.near.bias.copy_(matrix @ self.near.bias.double() + self.merge_bias.double())

    def forward(self, x: Tensor) -> Tensor:
        """Work in place to limit peak memory."""
        middle = F.leaky_relu_(self.conv_d2(x), self.slope)
        y = self.near(x).add_(F.conv2d(middle, self.merge_b))
        y = F.conv2d(F.leaky_relu_(y, self.slope), self.merge_a, self.merge_bias)
        far = F.leaky_relu_(self.conv_d5(x), self.slope)
        y = y.add_(F.conv2d(far, self.merge_b))
        gate = self.pointwise(F.leaky_relu_(self.depthwise(x), self.gate_slope)).sigmoid_()
        return F.leaky_relu_(torch.addcmul(x, y, gate), self.out_slope)


@torch.inference_mode()
def derain(network: nn.Module, rainy: Tensor) -> Tensor:
    """Derain (N, 3, H, W) RGB in [0, 1] on any device; the result is on the same one."""
    device = next(network.parameters(), rainy).device  # a network may have no parameters
    derained = network(rainy.to(device, memory_format=torch.channels_last))
    check_output(derained, rainy)
    return derained.to(rainy)


def check_output(derained: object, rainy: Tensor) -> None:
    """Raise InputError unless a network's output is one tensor of its input's shape."""
    if getattr(derained, "shape", None) != rainy.shape:
        raise InputError("the network must return one tensor of its input's shape")


def derain_image(
    network: nn.Module, rgb: np.ndarray, tile: int | None = None, quantization: str = "round"
) -> np.ndarray:
    """Derain an image, (H, W, 3) uint8 or uint16 RGB -> the same shape and type.

    tile: largest side of tiles in pixels, without their overlap; 0 for the whole image, None for
    tiles if it has more than MAX_UNTILED_PIXELS. Tiles overlap by the network's receptive_field, so
    they give the values of the whole image; a network without one gets the whole image.
    quantization: 'round' or 'truncate'. Raises ValueError if the output is not finite.
    """
    height, width, _ = rgb.shape
    overlap = getattr(network, "receptive_field", None)
    if tile is None and height * width > MAX_UNTILED_PIXELS:
        tile = TILE
    if not tile or overlap is None:
        tile, overlap = max(height, width), 0
    # Tiles as equal as possible. Their overlap ends at the image's borders, so that the network
    # pads with zeros there and nowhere else.
    tile_height = math.ceil(height / math.ceil(height / tile))
    tile_width = math.ceil(width / math.ceil(width / tile))
    corners = list(itertools.product(range(0, height, tile_height), range(0, width, tile_width)))
    result = np.empty_like(rgb)
    for top, left in tqdm(corners, "tiles", leave=False, delay=1, disable=len(corners) == 1):
        y, x = max(top - overlap, 0), max(left - overlap, 0)
        crop = rgb[y : top + tile_height + overlap, x : left + tile_width + overlap]
        derained = to_image(derain(network, to_tensor(crop)))[top - y :, left - x :]
        if not np.isfinite(derained).all():
            raise ValueError("output is not finite: check the weights, or use --precision fp32")
        core = result[top : top + tile_height, left : left + tile_width]
        core[:] = quantize(derained[: len(core), : core.shape[1]], rgb.dtype, quantization)
    return result
