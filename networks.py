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
load_network() reads our weights and the published ones. inference.py makes a trained network
fast, and runs it in exact tiles.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, dilation: int = 1, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps (H, W): the zero padding equals the dilation."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias, groups=groups)


def _radius(layers: Iterable[nn.Module]) -> int:
    """Pixels that a chain of convolutions sees to each side of an output pixel; PReLUs see none."""
    return sum(c.dilation[0] * (c.kernel_size[0] - 1) // 2 for c in layers if isinstance(c, nn.Conv2d))


class SpatialAttention(nn.Module):
    """What surrounds each pixel, at three scales: (N, C, H, W) -> (N, C, H, W).

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
        self.act = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        near = self.conv_d1(x)  # no activation on this branch
        middle = self.act(self.conv_d2(x))
        far = self.act(self.conv_d5(x))
        return self.join(self.act(self.join(near, middle)), far)

    def join(self, first: Tensor, second: Tensor) -> Tensor:
        """merge(cat([first, second], dim=1)), as a sum of two convolutions: there is nothing to copy then."""
        weight_first, weight_second = self.merge.weight.split(first.shape[1], dim=1)
        return F.conv2d(first, weight_first, self.merge.bias) + F.conv2d(second, weight_second)

    @property
    def radius(self) -> int:
        return max(_radius([conv]) for conv in (self.conv_d1, self.conv_d2, self.conv_d5))


class ChannelAttention(nn.Module):
    """A gate in (0, 1) for each channel of each pixel: (N, C, H, W) -> (N, C, H, W).

    Unlike squeeze-and-excitation there is no pooling: a depthwise convolution looks at each
    channel's neighbourhood, a 1x1 convolution weighs the channels against each other.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.depthwise = conv3x3(channels, channels, bias=True, groups=channels)
        self.act = nn.PReLU()
        self.pointwise = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.pointwise(self.act(self.depthwise(x))))

    @property
    def radius(self) -> int:
        return _radius([self.depthwise, self.pointwise])


class DualAttention(nn.Module):
    """x + spatial(x) * channel(x): (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = SpatialAttention(channels)
        self.channel = ChannelAttention(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.spatial(x) * self.channel(x)

    @property
    def radius(self) -> int:
        return max(self.spatial.radius, self.channel.radius)


class ResidualGroup(nn.Module):
    """Two dual attentions and a convolution inside a skip: (N, C, H, W) -> (N, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention1 = DualAttention(channels)
        self.act1 = nn.PReLU()
        self.attention2 = DualAttention(channels)
        self.act2 = nn.PReLU()
        self.conv = conv3x3(channels, channels)
        self.act3 = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.attention1(x))
        y = self.act2(self.attention2(y))
        return x + self.act3(self.conv(y))

    @property
    def radius(self) -> int:
        return self.attention1.radius + self.attention2.radius + _radius([self.conv])


class Chain(nn.Sequential):
    """Layers one after the other."""

    @property
    def radius(self) -> int:
        return _radius(self)


class DARGNet(nn.Module):
    """The deraining network: rainy RGB (N, 3, H, W) in [0, 1] -> derained RGB, same shape.

    The derained image is predicted directly: there is no skip from the input image and no
    final activation, so values may leave [0, 1] slightly and are clipped by whoever saves them.

    channels: width of every hidden layer; groups: number of residual groups. The defaults are
    the paper's: 387,495 parameters (the published files store one more scalar, which no layer
    uses), 62.69 GMAC for a 481x321 image.

    Raises ValueError for an input that is not (N, 3, H, W).
    """

    def __init__(self, channels: int = 32, groups: int = 5) -> None:
        super().__init__()
        self.head = Chain(conv3x3(3, channels), nn.PReLU())
        self.body = Chain(conv3x3(channels, channels), nn.PReLU())
        self.groups = nn.ModuleList(ResidualGroup(channels) for _ in range(groups))
        self.tail = Chain(
            conv3x3(channels, channels),
            nn.PReLU(),
            conv3x3(channels, channels),
            nn.PReLU(),
            conv3x3(channels, 3),
        )

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
        """Change new weights so that the network returns almost its input, from which it learns faster.

        Head and tail copy three channels, on top of a third of their random weights; groups and body contribute
        a tenth of their usual output.
        """
        for group in self.groups:
            group.conv.weight.mul_(0.1)
        self.body[0].weight.mul_(0.1)
        for conv, scale in ((self.head[0], 0.3), (self.tail[0], 0.3), (self.tail[2], 0.3), (self.tail[4], 0.1)):
            conv.weight.mul_(scale)
            for i in range(3):
                conv.weight[i, i, 1, 1] += 1

    @property
    def receptive_field_radius(self) -> int:
        """Pixels to each side that can change an output pixel: 60 for the defaults.

        A crop that reaches this far beyond the wanted pixels gives exactly the whole image's
        values there, which is what makes tiling exact.
        """
        return sum(part.radius for part in (self.head, self.body, *self.groups, self.tail))


# ---------------------------------------------------------------- weights


def published_names(groups: int) -> dict[str, str]:
    """Published key prefix -> ours. 'PR.weight' has no counterpart: no layer uses it."""
    names = {"conv1": "head", "conv2": "body", "conv3": "tail"}
    spatial = {"conv_1": "conv_d1", "conv_2": "conv_d2", "conv_3": "conv_d5", "conv_11": "merge", "PR": "act"}
    channel = {"Ne_conv.0": "depthwise", "Ne_conv.1": "act", "Ne_conv.2": "pointwise"}
    for i in range(groups):
        theirs, ours = f"block{i + 1}.0", f"groups.{i}"
        for place, number in (("0", 1), ("2", 2)):
            for old, new in spatial.items():
                names[f"{theirs}.block.{place}.{old}"] = f"{ours}.attention{number}.spatial.{new}"
            for old, new in channel.items():
                names[f"{theirs}.block.{place}.{old}"] = f"{ours}.attention{number}.channel.{new}"
        names |= {f"{theirs}.block.1": f"{ours}.act1", f"{theirs}.block.3": f"{ours}.act2"}
        names |= {f"{theirs}.conv2.0": f"{ours}.conv", f"{theirs}.conv2.1": f"{ours}.act3"}
    return names


def convert_state_dict(state: Mapping[str, Tensor], groups: int = 5) -> dict[str, Tensor]:
    """Give a state dict this file's key names.

    Takes our own state dicts, the 170-tensor published ones, and either of them saved from
    DataParallel ('module.' before every key). Keys that are neither stay as they are, so that
    load_state_dict-style checks can name them.
    """
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    if not any(key.startswith("block1.") for key in state):
        return dict(state)
    prefixes = sorted(published_names(groups).items(), key=lambda pair: -len(pair[0]))
    converted = {}
    for key, value in state.items():
        if key == "PR.weight":
            continue
        match = next(((old, new) for old, new in prefixes if key.startswith(old + ".")), None)
        converted[match[1] + key[len(match[0]) :] if match else key] = value
    return converted


def load_network(path: str | Path, device: str | torch.device = "cpu") -> DARGNet:
    """Build a DARGNet of the size that the file holds and load the file's weights.

    path: a bare state dict (ours or the published ones, saved on any device), also within a mapping under
    state_dict, params or params_ema, or one of our training states. Only tensors and plain types are
    read (weights_only), so a file from a stranger cannot run code. The network comes back on `device`,
    in eval mode.

    Raises FileNotFoundError, or ValueError naming the file and the first keys or shapes that
    do not fit.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises half a dozen types for a damaged or unsafe file
        unsafe = isinstance(error, pickle.UnpicklingError)
        remedy = "save the network's state_dict() alone" if unsafe else "get it again"
        raise ValueError(f"{path}: not a readable weights file ({type(error).__name__}); {remedy}") from error
    for wrapper in ("state_dict", "params_ema", "params"):  # as other projects wrap theirs
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
            break
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        average = state.get("average")  # what such a run saves as its weights, where it keeps one
        state = average if isinstance(average, Mapping) else state["model"]
        state = {key: value for key, value in state.items() if key != "n_averaged"}
    if not (isinstance(state, Mapping) and state and all(isinstance(v, Tensor) for v in state.values())):
        raise ValueError(f"{path}: holds no state dict (a mapping from names to tensors)")
    if not all(isinstance(key, str) for key in state):
        raise ValueError(f"{path}: holds no state dict (its names are not text)")
    state = convert_state_dict(state)
    head = state.get("head.0.weight")
    channels = head.shape[0] if head is not None and head.dim() == 4 and len(head) else 32
    numbers = [int(k.split(".")[1]) for k in state if k.startswith("groups.") and k.split(".")[1].isdigit()]
    if channels > 1024 or max(numbers, default=4) >= 1000:
        raise ValueError(f"{path}: claims {channels} channels, {max(numbers, default=4) + 1} groups: not a DARGNet")
    network = DARGNet(channels, max(numbers, default=4) + 1)
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    differences = [f"missing {k} {wanted[k]}" for k in wanted if k not in found]
    differences += [f"unknown {k} {found[k]}" for k in found if k not in wanted]
    differences += [f"{k} is {found[k]}, not {wanted[k]}" for k in wanted if k in found and found[k] != wanted[k]]
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        raise ValueError(f"{path}: not DARGNet weights: {'; '.join(differences[:4])}{more}; name another file")
    network.load_state_dict(state)
    return network.to(device).eval()
