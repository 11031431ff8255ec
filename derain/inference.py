"""A trained network made fast, and images of any size put through it.

    network = fold(load_network("logs/Rain100H/net_latest.pth"))
    derained = derain(network, rainy, tile=1024)     # (N, 3, H, W) RGB in [0, 1] -> the same shape

fold() rewrites the network: fewer operations, the same values. derain() runs it, whole or in exact
tiles. Both rest on one fact: a pixel of the result depends on the pixels within the network's
reach and on no others, so a piece of the image with a halo of that reach gives the same values.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from networks import DARGNet, DualAttention, ResidualGroup, SpatialAttention, conv3x3

BLOCK = 480  # pixels; with its halo, 32 channels of float32 are just under the 32 MiB of utils.keep_freed_memory

BYTES_PER_PIXEL = 650  # that a folded network takes at its widest, in float32, on the CPU (measured)


def folded_near(spatial: SpatialAttention) -> tuple[Tensor, Tensor]:
    """Weight (C, C, 3, 3) and bias (C,) of one convolution: conv_d1, then half of the shared 1x1 and its bias.

    The shared 1x1 convolution M of a concatenation is a sum, M[a, b] = Ma a + Mb b, so nothing
    needs to be concatenated. And as the dilation-1 branch has no activation, Ma after its 3x3
    convolution is itself one 3x3 convolution, of weight Ma K and bias Ma k + m.
    """
    first = spatial.merge.weight[:, : spatial.conv_d1.out_channels, 0, 0]
    weight = torch.einsum("om,mihw->oihw", first, spatial.conv_d1.weight)
    return weight, first @ spatial.conv_d1.bias + spatial.merge.bias


class FoldedDualAttention(nn.Module):
    """A DualAttention and the PReLU behind it, with fewer operations and the same result up to rounding.

    Nothing is concatenated, one convolution is gone (folded_near), and the rest is done in place: inference only.
    """

    def __init__(self, attention: DualAttention, act: nn.PReLU) -> None:
        super().__init__()
        spatial, channel = attention.spatial, attention.channel
        channels = spatial.conv_d1.out_channels
        merge_a, merge_b = spatial.merge.weight.split(channels, dim=1)
        self.near = conv3x3(channels, channels, bias=True)
        self.merge_a = nn.Conv2d(channels, channels, 1)
        self.merge_b = nn.Conv2d(channels, channels, 1, bias=False)
        with torch.no_grad():  # the products in float64, so on the CPU: Apple's GPUs have none
            weight, bias = folded_near(copy.deepcopy(spatial).cpu().double())
            self.near.weight.copy_(weight)
            self.near.bias.copy_(bias)
            self.merge_a.weight.copy_(merge_a)
            self.merge_a.bias.copy_(spatial.merge.bias)
            self.merge_b.weight.copy_(merge_b)
        self.middle, self.far = spatial.conv_d2, spatial.conv_d5
        self.depthwise, self.pointwise = channel.depthwise, channel.pointwise
        self.slope, self.gate_slope, self.out_slope = (a.weight.item() for a in (spatial.act, channel.act, act))
        self.radius = attention.radius

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(torch.addcmul(x, self.spatial(x), self.gate(x)), self.out_slope)

    def spatial(self, x: Tensor) -> Tensor:
        """Each result gives way to the next, so that few are in memory at a time, and in the caches."""
        y = F.leaky_relu_(self.middle(x), self.slope)  # a PReLU with a known slope
        y = F.leaky_relu_(self.near(x).add_(self.merge_b(y)), self.slope)
        y = self.merge_a(y)
        return y.add_(self.merge_b(F.leaky_relu_(self.far(x), self.slope)))

    def gate(self, x: Tensor) -> Tensor:
        return self.pointwise(F.leaky_relu_(self.depthwise(x), self.gate_slope)).sigmoid_()


class FoldedResidualGroup(nn.Module):
    """A ResidualGroup of folded attentions."""

    def __init__(self, group: ResidualGroup) -> None:
        super().__init__()
        self.attention1 = FoldedDualAttention(group.attention1, group.act1)
        self.attention2 = FoldedDualAttention(group.attention2, group.act2)
        self.conv, self.slope = group.conv, group.act3.weight.item()
        self.radius = group.radius

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.conv(self.attention2(self.attention1(x))), self.slope).add_(x)


class InBlocks(nn.Module):
    """A part of the network, computed in blocks of a large image on the CPU: the same values.

    What the part computes within itself stays small then, for the caches, and for memory that the
    process holds already: the system clears every page of a large new tensor before it can be
    used, which takes as long as the arithmetic.
    """

    def __init__(self, part: nn.Module, radius: int) -> None:
        super().__init__()
        self.part, self.radius = part, radius

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or max(x.shape[-2:]) <= BLOCK + 2 * self.radius:
            return self.part(x)
        return in_blocks(self._block, x, self.radius, BLOCK)

    def _block(self, x: Tensor) -> Tensor:
        return self.part(x.contiguous(memory_format=torch.channels_last))  # else each convolution makes its own copy


# Kept to the end: a process in which OpenVINO has unloaded its CPU plug-in can die of a segmentation fault later on.
_openvino_core: Any = None


class OpenVINONetwork(nn.Module):
    """A trained network compiled by OpenVINO for the CPU: rainy (N, 3, H, W) float32 in [0, 1] -> derained.

    network: a DARGNet. dtype: torch.float32, the same values up to 1e-5, or torch.bfloat16.
    Raises ImportError if openvino is not installed (requirements-extra.txt).
    """

    def __init__(self, network: DARGNet, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        import openvino

        global _openvino_core
        _openvino_core = _openvino_core or openvino.Core()
        self.receptive_field_radius = network.receptive_field_radius
        self.bytes_per_pixel = 900 * dtype.itemsize // 4  # measured, as BYTES_PER_PIXEL
        with warnings.catch_warnings():  # tracing is deprecated, but what openvino needs for images of any size
            warnings.simplefilter("ignore")
            size = openvino.PartialShape([-1, 3, -1, -1])
            whole = fold(network.cpu(), blocks=False)
            model = openvino.convert_model(whole, example_input=torch.zeros(1, 3, 64, 64), input=[size])
        precision = {torch.float32: "f32", torch.bfloat16: "bf16"}[dtype]
        options = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        self.compiled = _openvino_core.compile_model(model, "CPU", options)

    def forward(self, rainy: Tensor) -> Tensor:
        return torch.from_numpy(self.compiled(rainy.numpy())[0])


class Cast(nn.Module):
    """The same values in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


def fold(network: DARGNet, dtype: torch.dtype = torch.float32, blocks: bool = True) -> DARGNet:
    """A copy of a trained network that derains faster: the same values up to 1e-5, without gradients.

    The copy is on the same device, in channels_last order and eval mode. Its state dict has other
    keys: keep the original for saving. dtype: torch.bfloat16 or torch.float16 to compute in that
    type, faster and less exact; images stay float32 outside. The last convolution then keeps to
    float32: it would else round the image to fewer levels than 8 bits have. blocks: compute large images
    in blocks (InBlocks); without them the network can be traced and exported.
    """
    folded = copy.deepcopy(network).cpu()
    folded.groups = nn.ModuleList(FoldedResidualGroup(group) for group in folded.groups)
    folded.to(dtype, memory_format=torch.channels_last)
    if dtype != torch.float32:
        folded.head.insert(0, Cast(dtype))
        last = len(folded.tail) - 1
        folded.tail[last].float()
        folded.tail.insert(last, Cast(torch.float32))
    if blocks:
        folded.groups = nn.ModuleList(InBlocks(group, group.radius) for group in folded.groups)
        folded.tail = InBlocks(folded.tail, folded.tail.radius)
    folded.bytes_per_pixel = BYTES_PER_PIXEL * dtype.itemsize // 4
    return folded.requires_grad_(False).eval().to(next(network.parameters()).device)


@torch.inference_mode()
def derain(network: nn.Module, rainy: Tensor, tile: int = 0) -> Tensor:
    """Derain (N, 3, H, W) RGB in [0, 1], whole or in exact tiles; the result is on `rainy`'s device.

    tile: largest side of the tiles in pixels; 0 or anything that covers the image means whole.
    Each tile is computed with a halo of the receptive field, cut at the true image borders,
    so that zero padding happens only where it would without tiles: the same values come out
    (up to the rounding of sums), with no seams and nothing blended. `rainy` may stay on the
    CPU while the network is elsewhere: only a tile at a time goes there.
    """
    device = next(network.parameters(), rainy).device
    if tile <= 0 or tile >= max(rainy.shape[-2:]):
        return network(rainy.to(device)).to(rainy)
    return in_blocks(lambda crop: network(crop.to(device)), rainy, network.receptive_field_radius, tile)


def in_blocks(part: Callable[[Tensor], Tensor], x: Tensor, halo: int, side: int) -> Tensor:
    """part(x), block by block, for a part that keeps (N, C, H, W) and sees `halo` pixels to each side.

    side: largest side of the blocks in pixels; they are as equal as can be, lest a narrow rest be mostly halo.
    """
    height, width = x.shape[-2:]
    rows, columns = (math.ceil(size / math.ceil(size / side)) for size in (height, width))
    y: Tensor | None = None
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            bottom, right = min(top + rows, height), min(left + columns, width)
            from_top, from_left = max(top - halo, 0), max(left - halo, 0)
            result = part(x[..., from_top : bottom + halo, from_left : right + halo])
            if y is None:
                size = (*result.shape[:2], height, width)
                y = torch.empty(size, dtype=result.dtype, device=x.device, memory_format=torch.channels_last)
            core = result[..., top - from_top :, left - from_left :]
            y[..., top:bottom, left:right] = core[..., : bottom - top, : right - left]
    return y
