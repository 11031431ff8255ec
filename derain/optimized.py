"""The network rewritten to be faster, for testing and for training, each form checked before it is used.

    network = optimize(load_network("logs/Rain100H/net_latest.pth"))     # for testing
    speed_up(network)                                                    # for training, in place

Edit networks.py, and what you edited is what runs: a rewritten form that does not give the values (and in training the
gradients) of the network as it is written is not used, and a line says so.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from derain.blocks import InBlocks
from networks import DARGNet, DualAttention, ResidualGroup, SpatialAttention, conv3x3

# Largest difference from the network as written, relative to the largest value. Both are computed in float64: on noise
# some trained weights amplify the rounding of float32 until two correct forms differ by a tenth.
TOLERANCE = 1e-4
BYTES_PER_PIXEL = 650  # of a folded network at its widest, in float32, on the CPU (measured)
MISFIT = (AttributeError, TypeError, KeyError, IndexError, ValueError, RuntimeError)  # of a network that was edited


def folded_near(spatial: SpatialAttention) -> tuple[Tensor, Tensor]:
    """Return weight (C, C, 3, 3) and bias (C,) of one convolution: conv_d1, then half of the shared 1x1 and its bias.

    The shared 1x1 convolution M of a concatenation is a sum, M[a, b] = Ma a + Mb b, so nothing
    needs to be concatenated. And as the dilation-1 branch has no activation, Ma after its 3x3
    convolution is itself one 3x3 convolution, of weight Ma K and bias Ma k + m.
    """
    first = spatial.merge.weight[:, : spatial.conv_d1.out_channels, 0, 0]
    weight = torch.einsum("om,mihw->oihw", first, spatial.conv_d1.weight)
    return weight, first @ spatial.conv_d1.bias + spatial.merge.bias


# ---------------------------------------------------------------- for testing


class FoldedDualAttention(nn.Module):
    """A DualAttention and the PReLU after it, with fewer operations and the same result up to rounding.

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
        self.to(spatial.merge.weight.dtype)  # float64 in the check, which rounding to float32 would spoil
        with torch.no_grad():  # products in float64, on the CPU because Apple's GPUs have none
            weight, bias = folded_near(copy.deepcopy(spatial).cpu().double())
            self.near.weight.copy_(weight)
            self.near.bias.copy_(bias)
            self.merge_a.weight.copy_(merge_a)
            self.merge_a.bias.copy_(spatial.merge.bias)
            self.merge_b.weight.copy_(merge_b)
        self.middle, self.far = spatial.conv_d2, spatial.conv_d5
        self.depthwise, self.pointwise = channel.depthwise, channel.pointwise
        self.slope, self.gate_slope, self.out_slope = (a.weight.item() for a in (spatial.act, channel.act, act))

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(torch.addcmul(x, self.spatial(x), self.gate(x)), self.out_slope)

    def spatial(self, x: Tensor) -> Tensor:
        """Overwrite each result with the next, so that few are in memory and caches at a time."""
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

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu_(self.conv(self.attention2(self.attention1(x))), self.slope).add_(x)


class Cast(nn.Module):
    """The same values in another type."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.dtype)


class AsWritten(nn.Module):
    """A network as it is written; in bfloat16 through autocast."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype
        self.bytes_per_pixel = 4 * BYTES_PER_PIXEL

    def forward(self, rainy: Tensor) -> Tensor:
        with torch.autocast(rainy.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.network(rainy).float()


def fold(network: DARGNet, dtype: torch.dtype = torch.float32, blocks: bool = True) -> nn.Module:
    """Return a copy of a trained network that derains faster: the same values up to 1e-5, without gradients.

    The copy is on the same device, in channels_last order and eval mode. Its state dict has other
    keys: keep the original for saving. dtype: torch.bfloat16 to compute in that type, faster and less exact; images
    stay float32 outside, and so does the last convolution, which would round the image to fewer levels than 8 bits
    have. blocks: compute large images in blocks (InBlocks); without them the network can be traced and exported.

    Not checked: see `optimize`.
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
        folded.groups = nn.ModuleList(InBlocks(group, 11) for group in folded.groups)
        folded.tail = InBlocks(folded.tail, 3)
    folded.bytes_per_pixel = BYTES_PER_PIXEL * dtype.itemsize // 4
    return folded.requires_grad_(False).eval().to(next(network.parameters()).device)


@torch.no_grad()
def optimize(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Return a copy of a trained network for testing: folded, or as it is written if folding does not fit it."""
    network = copy.deepcopy(network).eval()
    if isinstance(network, DARGNet):
        try:
            exact = copy.deepcopy(network).cpu().double()
            if close(fold(exact, torch.float64)(example()), exact(example().double())):
                return fold(network, dtype)
        except MISFIT:
            pass
        print(f"{type(network).__name__} was edited: it is computed as it is written, without folding", flush=True)
    return AsWritten(network.to(memory_format=torch.channels_last), dtype)


def example() -> Tensor:
    """Return a small random image, (1, 3, 22, 27) float32, on the CPU: coarse spots with some noise."""
    generator = torch.Generator().manual_seed(0)
    spots = F.interpolate(torch.rand(1, 3, 4, 5, generator=generator), size=(22, 27), mode="bilinear")
    noise = torch.rand(1, 3, 22, 27, generator=generator)
    return (0.9 * spots + 0.1 * noise).contiguous(memory_format=torch.channels_last)


def close(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors differ by at most TOLERANCE of the largest value."""
    limit = TOLERANCE * max(1e-3, float(second.abs().max()))
    return first.shape == second.shape and float((first - second).abs().max()) <= limit


def speed_up(network: nn.Module, prelus: bool = True) -> bool:
    """Do nothing: the network is as fast in training as it is written."""
    return False
