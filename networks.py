"""DARGNet: the dual attention residual group network for single image deraining.

H. Zhang, Q. Xie, B. Lu, S. Gai, "Dual attention residual group networks for single image
deraining", Digital Signal Processing 116 (2021) 103106, doi:10.1016/j.dsp.2021.103106.

This file needs torch and nothing else; to use the network elsewhere, copy it:

    from networks import load_network
    network = load_network("logs/Rain100H/net_latest.pth")
    derained = network(rainy)            # (N, 3, H, W) RGB in [0, 1] -> the same shape

Reading order: SpatialAttention and ChannelAttention make DualAttention; two of those and a
convolution make a ResidualGroup; five groups between a head and a tail make DARGNet. PReLU, below
them, equals nn.PReLU and trains faster on a CPU. derain/inference.py runs a trained network faster,
and in exact tiles.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def conv3x3(inputs: int, outputs: int, dilation: int = 1, bias: bool = False) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps (H, W): the zero padding equals the dilation."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias)


class SpatialAttention(nn.Module):
    """Features of each pixel's neighbourhood at three scales: (N, C, H, W) -> (N, C, H, W).

    Dilations 1, 2 and 5 see rain streaks of growing width. As in the published weights, ONE shared
    1x1 convolution joins the scales one after the other, and one PReLU serves all three places.
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

    A depthwise convolution looks at each channel's neighbourhood, a 1x1 convolution weighs the
    channels against each other. There is no pooling.
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

    Every convolution pads with zeros, so images may have any size. The derained image is predicted
    directly: there is no skip from the input image and no final activation, so values may leave
    [0, 1]; clip them.

    channels: width of every hidden layer; groups: number of residual groups. The paper's 32 and 5
    make 387,495 parameters and 62.69 GMAC for a 481x321 image.

    receptive_field: how many pixels to each side an output pixel depends on, 60 by default. Tiles
    with this much overlap are exact. Adapt it when you change the layers.

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
        # 1 for each convolution outside; in a group 5 for each attention, 1 for the convolution.
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

        Head and tail copy three channels, on top of scaled-down random weights; groups and body
        contribute a tenth of their usual output.
        """
        for group in self.groups:
            group.conv.weight.mul_(0.1)
        self.body[0].weight.mul_(0.1)
        scales = (self.head[0], 0.3), (self.tail[0], 0.3), (self.tail[2], 0.3), (self.tail[4], 0.1)
        for conv, scale in scales:
            conv.weight.mul_(scale)
            for i in range(min(3, *conv.weight.shape[:2])):
                conv.weight[i, i, 1, 1] += 1


class FastPReLU(torch.autograd.Function):
    """PReLU of (N, C, H, W) with one slope (1,), with a vectorised backward pass for the CPU.

    With torch's own, which is not vectorised, a training step in bf16 takes 18% longer.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x, slope)
        ctx.slope = slope.item()
        return F.leaky_relu(x, ctx.slope)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, slope = ctx.saved_tensors
        # A concatenation's gradient comes in slices, which are slow to read twice.
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        x_gradient = torch.ops.aten.leaky_relu_backward(gradient, x, ctx.slope, False)
        by_channel = x.clamp_max(0).mul_(gradient).sum((0, 2, 3))
        return x_gradient, by_channel.sum(dtype=slope.dtype).view(1)


class PReLU(nn.PReLU):
    """nn.PReLU for (N, C, H, W), through FastPReLU where one slope is trained on the CPU."""

    def forward(self, x: Tensor) -> Tensor:
        is_fast = self.training and x.device.type == "cpu" and self.num_parameters == 1
        if not is_fast or torch.compiler.is_compiling():
            return super().forward(x)
        return FastPReLU.apply(x, self.weight)


PUBLISHED_KEY = "block1.0.conv2.0.weight"  # only published state dicts have it
PUBLISHED_NAMES = {  # parts of published names -> ours, replaced one after the other
    ".block.0.": ".attention1.",
    ".block.1.": ".act1.",
    ".block.2.": ".attention2.",
    ".block.3.": ".act2.",
    ".conv2.0.": ".conv.",
    ".conv2.1.": ".act3.",
    ".conv_1.": ".spatial.conv_d1.",
    ".conv_2.": ".spatial.conv_d2.",
    ".conv_3.": ".spatial.conv_d5.",
    ".conv_11.": ".spatial.merge.",
    ".PR.": ".spatial.act.",
    ".Ne_conv.0.": ".channel.depthwise.",
    ".Ne_conv.1.": ".channel.act.",
    ".Ne_conv.2.": ".channel.pointwise.",
    "conv1.": "head.",
    "conv2.": "body.",
    "conv3.": "tail.",
}


def convert_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the published tensors this file's names; other state dicts keep theirs."""
    if PUBLISHED_KEY not in state:
        return dict(state)
    converted = {}
    for key, value in state.items():
        key = re.sub(r"^block(\d+)\.0", lambda match: f"groups.{int(match[1]) - 1}", key)
        for theirs, ours in PUBLISHED_NAMES.items():
            key = key.replace(theirs, ours)
        converted[key] = value
    converted.pop("PR.weight", None)  # no layer uses it
    return converted


def load_network(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Load a weights file into a DARGNet of the size that the file holds, or into `network`.

    path: a .safetensors file, or a state dict saved by torch.save, with our names or the published
    ones. It may be nested in a mapping, and its names may have a prefix such as 'module.'; of
    several, the one called ema is taken. A line says how many tensors are left out. The network
    comes back on the CPU, in eval mode. Raises OSError, or ValueError with one line.
    """
    path = Path(path)
    tensors = read_tensors(path)
    first = "head.0.weight" if network is None else next(iter(network.state_dict()))
    prefixes = []  # such as "state_dict.module." in state_dict.module.head.0.weight
    for name in tensors:
        if f".{name}".endswith((f".{first}", f".{PUBLISHED_KEY}")):
            prefixes.append(name.removesuffix(first).removesuffix(PUBLISHED_KEY))
    if not prefixes:
        raise ValueError(f"{path}: not weights of this network: {first} is missing")
    prefix = min(prefixes, key=lambda prefix: ("ema" not in prefix, len(prefix)))
    state = {}
    for name in list(tensors):
        if name.startswith(prefix) and not name.endswith(("total_ops", "total_params")):  # by thop
            state[name.removeprefix(prefix)] = tensors.pop(name)
    state = convert_state_dict(state)
    try:
        if network is None:
            groups = {key.split(".")[1] for key in state if key.startswith("groups.")}
            network = DARGNet(len(state[first]), len(groups))
        network.load_state_dict(state)
    except Exception as error:  # tensors are missing, unknown or of another shape
        message = f"{path}: not weights of this network: {error}"
        raise ValueError(textwrap.shorten(message, 300)) from error
    for key, value in network.state_dict().items():
        same_kind = state[key].is_floating_point() == value.is_floating_point()
        if not same_kind or not value.isfinite().all():
            raise ValueError(f"{path}: {key} must hold finite floating-point numbers")
    if tensors:
        print(f"{path}: {len(tensors)} tensors are left out, such as {next(iter(tensors))}")
    return network.eval()


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a weights file; the names of nested ones are joined by dots.

    Only tensors and plain types are read, so that a file from a stranger cannot run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return flatten(torch.load(path, map_location="cpu", weights_only=True))
    except ImportError as error:
        raise ValueError(f"{path}: needs safetensors: pip install safetensors") from error
    except Exception as error:  # torch.load raises half a dozen types for a damaged or unsafe file
        with path.open("rb") as file:  # raises OSError if that is the reason
            start = file.read(24)
        expected = f"expected a state dict of torch.save ({type(error).__name__})"
        fix = "save network.state_dict(), or download the file again"
        raise ValueError(f"{path}: {expected}, found {start!r}: {fix}") from error


def flatten(content: Mapping, prefix: str = "") -> dict[str, Tensor]:
    """Return all tensors of nested mappings under their joined names."""
    tensors = {}
    for key, value in content.items():
        if isinstance(value, Tensor):
            tensors[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            tensors |= flatten(value, f"{prefix}{key}.")
    return tensors
