"""DARGNet once more, written down literally from its definition, as the yardstick for networks.py.

One function per sentence of the definition, over a plain dict with the published key names.
Nothing is shared with networks.py, nothing is optimised, and nothing here may be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The 170 tensors of a published checkpoint: key -> shape."""
    conv, slope, bias = (32, 32, 3, 3), (1,), (32,)
    attention = {}
    for name in ("conv_1", "conv_2", "conv_3"):
        attention |= {f"{name}.weight": conv, f"{name}.bias": bias}
    attention |= {"PR.weight": slope, "conv_11.weight": (32, 64, 1, 1), "conv_11.bias": bias}
    attention |= {"Ne_conv.0.weight": (32, 1, 3, 3), "Ne_conv.0.bias": bias}
    attention |= {"Ne_conv.1.weight": slope}
    attention |= {"Ne_conv.2.weight": (32, 32, 1, 1), "Ne_conv.2.bias": bias}
    shapes: dict[str, tuple[int, ...]] = {"conv1.0.weight": (32, 3, 3, 3), "conv1.1.weight": slope}
    shapes |= {"conv2.0.weight": conv, "conv2.1.weight": slope}
    for n in range(1, 6):
        for place in (0, 2):
            for name, shape in attention.items():
                shapes[f"block{n}.0.block.{place}.{name}"] = shape
            shapes[f"block{n}.0.block.{place + 1}.weight"] = slope
        shapes |= {f"block{n}.0.conv2.0.weight": conv, f"block{n}.0.conv2.1.weight": slope}
    shapes |= {"conv3.0.weight": conv, "conv3.1.weight": slope}
    shapes |= {"conv3.2.weight": conv, "conv3.3.weight": slope}
    return shapes | {"conv3.4.weight": (3, 32, 3, 3), "PR.weight": slope}


def random_published_state(seed: int = 0) -> State:
    """Numbers of a sensible size under the published keys."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in published_shapes().items():
        fan_in = max(1, int(torch.tensor(shape[1:]).prod())) if len(shape) > 1 else 1
        values = torch.randn(shape, generator=generator) * (0.6 / fan_in) ** 0.5
        state[key] = values if len(shape) > 1 else 0.25 + 0.1 * values
    return state


def dual_attention(state: State, name: str, x: Tensor) -> Tensor:
    weight, bias = (lambda k: state[f"{name}.{k}.weight"]), (lambda k: state[f"{name}.{k}.bias"])
    f1 = F.conv2d(x, weight("conv_1"), bias("conv_1"), padding=1)
    f2 = F.prelu(F.conv2d(x, weight("conv_2"), bias("conv_2"), padding=2, dilation=2), weight("PR"))
    f3 = F.prelu(F.conv2d(x, weight("conv_3"), bias("conv_3"), padding=5, dilation=5), weight("PR"))
    f12 = F.prelu(
        F.conv2d(torch.cat([f1, f2], 1), weight("conv_11"), bias("conv_11")), weight("PR")
    )
    spatial = F.conv2d(torch.cat([f12, f3], 1), weight("conv_11"), bias("conv_11"))
    channel = F.conv2d(x, weight("Ne_conv.0"), bias("Ne_conv.0"), padding=1, groups=32)
    channel = F.prelu(channel, weight("Ne_conv.1"))
    channel = torch.sigmoid(F.conv2d(channel, weight("Ne_conv.2"), bias("Ne_conv.2")))
    return x + spatial * channel


def residual_group(state: State, name: str, x: Tensor) -> Tensor:
    y = F.prelu(dual_attention(state, f"{name}.block.0", x), state[f"{name}.block.1.weight"])
    y = F.prelu(dual_attention(state, f"{name}.block.2", y), state[f"{name}.block.3.weight"])
    y = F.prelu(
        F.conv2d(y, state[f"{name}.conv2.0.weight"], padding=1), state[f"{name}.conv2.1.weight"]
    )
    return x + y


def dargnet(state: State, rainy: Tensor) -> Tensor:
    """(N, 3, H, W) RGB in [0, 1] -> the derained images."""
    x0 = F.prelu(F.conv2d(rainy, state["conv1.0.weight"], padding=1), state["conv1.1.weight"])
    x = F.prelu(F.conv2d(x0, state["conv2.0.weight"], padding=1), state["conv2.1.weight"])
    for n in range(1, 6):
        x = residual_group(state, f"block{n}.0", x)
    x = x + x0
    x = F.prelu(F.conv2d(x, state["conv3.0.weight"], padding=1), state["conv3.1.weight"])
    x = F.prelu(F.conv2d(x, state["conv3.2.weight"], padding=1), state["conv3.3.weight"])
    return F.conv2d(x, state["conv3.4.weight"], padding=1)
