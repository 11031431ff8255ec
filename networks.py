"""DARGNet: the dual attention residual group network for single image deraining.

H. Zhang, Q. Xie, B. Lu, S. Gai, "Dual attention residual group networks for single image
deraining", Digital Signal Processing 116 (2021) 103106, doi:10.1016/j.dsp.2021.103106.

This file needs torch and nothing else; to use the network elsewhere, copy it:

    from networks import load_network
    network = load_network("logs/Rain100H/net_latest.pth")
    derained = network(rainy)            # (N, 3, H, W) RGB in [0, 1] -> the same shape

Reading order: SpatialAttention and ChannelAttention make DualAttention; two of those and a
convolution make a ResidualGroup; five groups between a head and a tail make DARGNet. Every
convolution keeps height and width (zero padding), so any image size goes in and comes out.
load_network() reads our weights and the published ones. derain/inference.py runs a trained network
faster, and in exact tiles.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv3x3(inputs: int, outputs: int, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3x3 convolution that keeps (H, W): the zero padding equals the dilation."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class SpatialAttention(nn.Module):
    """Features of each pixel's surroundings at three scales: (N, C, H, W) -> (N, C, H, W).

    Dilations 1, 2 and 5 see rain streaks of growing width. The scales are joined one after
    the other by ONE shared 1x1 convolution, and one PReLU serves all three places, as in the
    published weights.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_d1 = conv3x3(channels, channels, dilation=1, bias=True)
        self.conv_d2 = conv3x3(channels, channels, dilation=2, bias=True)
        self.conv_d5 = conv3x3(channels, channels, dilation=5, bias=True)
        self.merge = nn.Conv2d(2 * channels, channels, 1)
        self.act = PReLU()

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv_d1(x)  # no activation on this branch
        middle = self.act(self.conv_d2(x))
        far = self.act(self.conv_d5(x))
        joined = self.act(self.merge(torch.cat([near, middle], dim=1)))
        return self.merge(torch.cat([joined, far], dim=1))


class ChannelAttention(nn.Module):
    """A gate in (0, 1) for each channel of each pixel: (N, C, H, W) -> (N, C, H, W).

    Unlike squeeze-and-excitation there is no pooling: a depthwise convolution looks at each
    channel's neighbourhood, a 1x1 convolution weighs the channels against each other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.act = PReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.pointwise(self.act(self.depthwise(x))))


class DualAttention(nn.Module):
    """x + spatial(x) * channel(x): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels)
        self.channel = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.spatial(x) * self.channel(x)


class ResidualGroup(nn.Module):
    """Two dual attentions and a convolution inside a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention1 = DualAttention(channels)
        self.act1 = PReLU()
        self.attention2 = DualAttention(channels)
        self.act2 = PReLU()
        self.conv = conv3x3(channels, channels)
        self.act3 = PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.attention1(x))
        y = self.act2(self.attention2(y))
        return x + self.act3(self.conv(y))


class DARGNet(nn.Module):
    """The deraining network: rainy RGB (N, 3, H, W) in [0, 1] -> derained RGB, same shape.

    The derained image is predicted directly: there is no skip from the input image and no
    final activation, so values may leave [0, 1] slightly and are clipped by whoever saves them.

    channels: width of every hidden layer; groups: number of residual groups. The defaults are
    the paper's: 387,495 parameters (the published files store one more scalar, which no layer
    uses), 62.69 GMAC for a 481x321 image.

    receptive_field: how many pixels to each side an output pixel depends on; 60 by default. Tiles
    are exact with this much overlap. Adapt it when you change the layers.

    Raises ValueError for an input that is not (N, 3, H, W).
    """

    def __init__(self, channels: int = 32, groups: int = 5) -> None:
        super().__init__()
        self.head = nn.Sequential(conv3x3(3, channels), PReLU())
        self.body = nn.Sequential(conv3x3(channels, channels), PReLU())
        self.groups = nn.ModuleList(ResidualGroup(channels) for _ in range(groups))
        self.tail = nn.Sequential(
            conv3x3(channels, channels),
            PReLU(),
            conv3x3(channels, channels),
            PReLU(),
            conv3x3(channels, 3),
        )
        # 1 for each convolution outside the groups; in a group 5 for each attention's widest
        # dilation, and 1 for the convolution.
        self.receptive_field = 5 + 11 * groups

    def forward(self, rainy: Tensor) -> Tensor:
        if rainy.dim() != 4 or rainy.shape[1] != 3:
            raise ValueError(f"expected RGB images of shape (N, 3, H, W), got {tuple(rainy.shape)}")
        shallow = self.head(rainy)
        features = self.body(shallow)
        for group in self.groups:
            features = group(features)
        return self.tail(shallow + features)  # the long skip

    @torch.no_grad()
    def start_as_identity(self) -> None:
        """Rescale fresh weights to make the network almost the identity, which trains faster.

        Head and tail copy three channels, on top of a third of their random weights; groups and
        body contribute a tenth of their usual output.
        """
        for group in self.groups:
            group.conv.weight.mul_(0.1)
        self.body[0].weight.mul_(0.1)
        scales = (self.head[0], 0.3), (self.tail[0], 0.3), (self.tail[2], 0.3), (self.tail[4], 0.1)
        for conv, scale in scales:
            conv.weight.mul_(scale)
            for i in range(3):
                conv.weight[i, i, 1, 1] += 1


# ---------------------------------------------------------------- the activation


class FastPReLU(torch.autograd.Function):
    """PReLU of (N, C, H, W) with one slope (1,), for training on the CPU.

    torch's own backward pass writes the slope's gradient for every value, in a loop that is not
    vectorised, before it adds them up: a seventh of a training step in bf16.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope.item()
        return F.leaky_relu(x, ctx.slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        x_gradient = torch.ops.aten.leaky_relu_backward(gradient, x, ctx.slope, False)
        by_channel = x.clamp_max(0).mul_(gradient).sum((0, 2, 3))
        dtype = torch.promote_types(by_channel.dtype, torch.float32)
        return x_gradient, by_channel.sum(dtype=dtype).view(1)


class PReLU(nn.PReLU):
    """nn.PReLU() for (N, C, H, W), through FastPReLU where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        exports = torch.compiler.is_compiling() or torch.jit.is_tracing()
        if x.device.type != "cpu" or exports or not torch.is_grad_enabled():
            return super().forward(x)
        return FastPReLU.apply(x, self.weight)


# ---------------------------------------------------------------- weights

PUBLISHED_KEY = "block1.0.conv2.0.weight"  # which only published state dicts have
ATTENTION_NAMES = {  # within an attention, as published -> ours
    "conv_1": "spatial.conv_d1",
    "conv_2": "spatial.conv_d2",
    "conv_3": "spatial.conv_d5",
    "conv_11": "spatial.merge",
    "PR": "spatial.act",
    "Ne_conv.0": "channel.depthwise",
    "Ne_conv.1": "channel.act",
    "Ne_conv.2": "channel.pointwise",
}
GROUP_NAMES = {"block.1": "act1", "block.3": "act2", "conv2.0": "conv", "conv2.1": "act3"}
for theirs, ours in ATTENTION_NAMES.items():
    GROUP_NAMES[f"block.0.{theirs}"] = f"attention1.{ours}"
    GROUP_NAMES[f"block.2.{theirs}"] = f"attention2.{ours}"


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the published tensors this file's names; other state dicts keep theirs."""
    if PUBLISHED_KEY not in state:
        return dict(state)
    converted = {}
    for key, value in state.items():
        part, _, kind = key.rpartition(".")  # kind: weight or bias
        if match := re.fullmatch(r"block(\d+)\.0\.(.+)", part):
            part = f"groups.{int(match[1]) - 1}.{GROUP_NAMES.get(match[2], match[2])}"
        else:
            part = part.replace("conv1", "head").replace("conv2", "body").replace("conv3", "tail")
        converted[f"{part}.{kind}"] = value
    converted.pop("PR.weight", None)  # which no layer uses
    return converted


def load_network(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Load a weights file into a DARGNet of the size that the file holds, or into `network`.

    path: a .safetensors file, or a state dict saved by torch.save on any device, with our names
    or the published ones. It may be nested in a mapping, and its names may have a prefix such as
    'module.'; of several the one called ema is taken. A line counts the tensors that are left out.
    Only tensors and plain types are read (weights_only), so a file from a stranger cannot run
    code. The network comes back on the CPU, in eval mode.

    Raises OSError, or ValueError with one line that names the file and what does not fit.
    """
    path = Path(path)
    tensors = read_tensors(path)
    first = "head.0.weight" if network is None else next(iter(network.state_dict()))
    prefix = find_prefix(tensors, first)
    inside = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    other = [key for key in tensors if not key.startswith(prefix)]
    state = convert_state_dict(inside)
    if network is None:
        channels = state[first].numel() // 27 if first in state else 32  # (channels, 3, 3, 3)
        groups = [key for key in state if re.fullmatch(r"groups\.\d+\.conv\.weight", key)]
        network = DARGNet(max(1, channels), len(groups))

    own = network.state_dict()
    for key in list(state):
        if key not in own and not key.endswith((".weight", ".bias")):  # such as thop's total_ops
            other.append(key)
            del state[key]
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(textwrap.shorten(f"{path}: {error}", 300)) from error
    for key, value in network.state_dict().items():
        same_kind = state[key].is_floating_point() == value.is_floating_point()
        if not same_kind or not value.isfinite().all():
            raise ValueError(f"{path}: {key} must hold finite floating-point numbers")
    if other:
        print(f"{path}: {len(other)} tensors are left out, such as {other[0]}")
    return network.eval()


def find_prefix(names: Iterable[str], first: str) -> str:
    """Return the shortest prefix of a network's first name, here or as published; ema's if any."""
    prefixes = []
    for name in names:
        for key in (first, PUBLISHED_KEY):
            if f".{name}".endswith(f".{key}"):
                prefixes.append(name.removesuffix(key))
    return min(prefixes, key=lambda prefix: ("ema" not in prefix, len(prefix)), default="")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file; the names of nested ones are joined by dots."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return flatten(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # torch.load raises half a dozen types for a damaged or unsafe file
        with path.open("rb") as file:  # raises OSError if that is the reason
            start = file.read(24).rstrip(b"\0")
        expected = f"expected a state dict written by torch.save ({type(error).__name__})"
        raise ValueError(
            f"{path}: {expected}; it begins with {start!r}: download it again"
        ) from error


def flatten(content: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """Return all tensors of nested mappings under their joined names."""
    tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            tensors |= flatten(value, f"{prefix}{key}.")
    return tensors
