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

import pickle
import re
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn


def conv3x3(inputs: int, outputs: int, dilation: int = 1, bias: bool = False, groups: int = 1) -> nn.Conv2d:
    """A 3x3 convolution that keeps (H, W): the zero padding equals the dilation."""
    return nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=bias, groups=groups)


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
        joined = self.act(self.merge(torch.cat([near, middle], dim=1)))
        return self.merge(torch.cat([joined, far], dim=1))


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
        self.act1 = nn.PReLU()
        self.attention2 = DualAttention(channels)
        self.act2 = nn.PReLU()
        self.conv = conv3x3(channels, channels)
        self.act3 = nn.PReLU()

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

    Raises ValueError for an input that is not (N, 3, H, W).
    """

    def __init__(self, channels: int = 32, groups: int = 5) -> None:
        super().__init__()
        self.head = nn.Sequential(conv3x3(3, channels), nn.PReLU())
        self.body = nn.Sequential(conv3x3(channels, channels), nn.PReLU())
        self.groups = nn.ModuleList(ResidualGroup(channels) for _ in range(groups))
        self.tail = nn.Sequential(
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
        """Rescale fresh weights so that the network starts as nearly the identity, which speeds up training.

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


@torch.no_grad()
def receptive_field_radius(module: nn.Module, channels: int = 3) -> int | None:
    """Measure how many pixels to each side can change an output pixel: 60 for DARGNet().

    A crop that reaches this far beyond the wanted pixels gives exactly the whole image's values there, which
    makes tiling exact. The result is None for a network that cannot be tiled: its reach is unlimited (it pools
    over the whole image) or beyond 512 pixels, or its output does not follow a shift of the input by one pixel.

    module: keeps (N, channels, H, W) and takes images one pixel high. A NaN in the middle of a line of pixels
    spreads as far as the network reaches, whatever its weights are.
    """
    parameter = next(module.parameters(), torch.empty(0))
    like = {"dtype": parameter.dtype, "device": parameter.device}
    was_training, middle, radii = module.training, 512, []
    module.eval()
    try:
        for shape in ((1, channels, 1, 2 * middle + 1), (1, channels, 2 * middle + 1, 1)):
            line = torch.linspace(0, 1, channels * (2 * middle + 1), **like).view(shape)
            output = module(line)
            if output.shape[2:] != line.shape[2:]:
                return None
            axis = 3 if shape[2] == 1 else 2
            shifted = module(line.narrow(axis, 1, 2 * middle))
            spoilt = line.clone()
            spoilt.narrow(axis, middle, 1).fill_(float("nan"))
            reached = module(spoilt).isnan().flatten(2).any(dim=1).flatten().nonzero().flatten()
            radius = int((reached - middle).abs().max()) if len(reached) else 0
            inner = 2 * (middle - radius)
            if radius >= middle or not torch.allclose(
                output.narrow(axis, 1 + radius, inner), shifted.narrow(axis, radius, inner), rtol=1e-3, atol=1e-4
            ):
                return None
            radii.append(radius)
    except Exception:  # the network rejects such images; third-party networks may raise anything
        return None
    finally:
        module.train(was_training)
    return max(radii)


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


def convert_state_dict(state: Mapping[str, Tensor], groups: int = 5, wanted: Collection[str] = ()) -> dict[str, Tensor]:
    """Give a state dict this file's key names.

    Takes our own state dicts, the 170-tensor published ones, and either of them under any prefix, such as
    DataParallel's 'module.', torch.compile's '_orig_mod.' or Lightning's 'model.'; keys without it are left out, with a
    line that says so. Otherwise unknown keys stay, so that load_network can name them. wanted: the keys of another
    network, which are not changed any further once they are reached.
    """
    firsts = (*list(wanted)[:1], "head.0.weight", "block1.0.conv2.0.weight")  # a key that each kind has once
    prefixes = {key.removesuffix(first) for key in state for first in firsts if key.endswith("." + first)}
    prefixes = {prefix for prefix in prefixes if wanted and all(prefix + key in state for key in wanted)} or prefixes
    if len(prefixes) == 1 and set(state) != set(wanted):
        prefix = prefixes.pop()
        if others := [key for key in state if not key.startswith(prefix)]:
            print(f"weights: {len(others)} tensors without the prefix {prefix} are left out, such as {others[0]}")
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if set(state) == set(wanted) or not any(key.startswith("block1.") for key in state):
        return dict(state)
    longest_first = sorted(published_names(groups).items(), key=lambda pair: -len(pair[0]))
    converted = {}
    for key, value in state.items():
        if key == "PR.weight":
            continue
        match = next(((old, new) for old, new in longest_first if key.startswith(old + ".")), None)
        converted[match[1] + key[len(match[0]) :] if match else key] = value
    return converted


def load_network(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Load the weights of a file into a DARGNet of the size that the file holds, or into a given network.

    path: a bare state dict (ours or the published ones, saved on any device), also within a mapping, under
    state_dict, model_state_dict, params_ema, params or as its only one, or a .safetensors file. Only
    tensors and plain types are read (weights_only), so a file from a stranger cannot run code. The network comes
    back on the CPU, in eval mode.

    Raises FileNotFoundError, PermissionError, MemoryError, or ValueError naming the file and the first keys or shapes
    that do not fit, or the tensors with values that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file")
    state = convert_state_dict(read_state_dict(path), wanted=network.state_dict() if network else ())
    if network is None:
        network = DARGNet(*size_of(state, path))
    own = network.state_dict()
    wanted = {key: tuple(value.shape) for key, value in own.items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    differences = [f"missing {k} {wanted[k]}" for k in wanted if k not in found]
    differences += [f"unknown {k} {found[k]}" for k in found if k not in wanted]
    differences += [f"{k} is {found[k]}, not {wanted[k]}" for k in wanted if k in found and found[k] != wanted[k]]
    differences += [f"{k} is {v.dtype}, {v.layout}" for k, v in state.items() if k in own and not _is_alike(v, own[k])]
    if differences:
        more = f"; and {len(differences) - 4} more" if len(differences) > 4 else ""
        name = type(network).__name__
        raise ValueError(f"{path}: not {name} weights: {'; '.join(differences[:4])}{more}; name another file")
    spoilt = [key for key, value in state.items() if not torch.isfinite(value.float()).all()]
    if spoilt:
        raise ValueError(f"{path}: {spoilt[0]} has values that are not finite; take weights from before they diverged")
    network.load_state_dict(state)
    return network.eval()


def _is_alike(value: Tensor, own: Tensor) -> bool:
    """Whether a tensor is of the kind of a network's own (floating-point, integer or complex), and stored in full."""
    dense = value.layout == torch.strided and not value.is_meta
    return dense and value.is_floating_point() == own.is_floating_point() and value.is_complex() == own.is_complex()


def size_of(state: Mapping[str, Tensor], path: Path) -> tuple[int, int]:
    """Return channels and groups of the DARGNet that a state dict belongs to."""
    head = state.get("head.0.weight")
    channels = head.shape[0] if head is not None and head.dim() == 4 and len(head) else 32
    numbers = [int(k.split(".")[1]) for k in state if re.match("groups[.][0-9]+[.]", k)]
    groups = max(numbers, default=4) + 1
    if channels > 1024 or groups > 1000:
        raise ValueError(f"{path}: claims {channels} channels, {groups} groups: not a DARGNet; name another file")
    return channels, groups


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Return the mapping from names to tensors that a weights file holds, whatever it is wrapped in."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except ImportError as error:
        raise ValueError(f"{path}: reading it needs safetensors: pip install safetensors") from error
    except Exception as error:  # torch.load raises half a dozen types for a damaged or unsafe file
        if isinstance(error, (PermissionError, MemoryError)) or "can't allocate memory" in str(error):
            raise
        kind = type(error).__name__
        raise ValueError(f"{path}: not a readable weights file ({kind}); {_fix(path, error)}") from error
    inside = {k: v for k, v in state.items() if _is_state_dict(v)} if isinstance(state, Mapping) else {}
    known = [key for key in ("state_dict", "model_state_dict", "params_ema", "params") if key in inside]
    if known or len(inside) == 1:
        state = inside[(known or list(inside))[0]]
    if not _is_state_dict(state):
        has = ", ".join(map(str, list(state)[:6])) if isinstance(state, Mapping) and state else type(state).__name__
        raise ValueError(f"{path}: holds no state dict (a mapping from names to tensors), but {has}; name another file")
    return state


def _is_state_dict(content: object) -> bool:
    items = list(content.items()) if isinstance(content, Mapping) else []
    return bool(items) and all(isinstance(key, str) and isinstance(value, Tensor) for key, value in items)


def _fix(path: Path, error: Exception) -> str:
    """Say what a file is that cannot be read as weights, and what to do."""
    with open(path, "rb") as file:
        start = file.read(200).lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer: run git lfs pull"
    if start.startswith((b"<!doctype", b"<html")):
        return "it is a web page: download the file itself (on GitHub, its raw form)"
    if start.startswith(b"pk") and not isinstance(error, pickle.UnpicklingError):
        return "it is a zip archive, perhaps cut off or of a whole repository: download it again, or unpack it first"
    if isinstance(error, pickle.UnpicklingError) and start.startswith((b"\x80", b"pk")):
        return "save the network's state_dict() alone"
    return "download it again"
