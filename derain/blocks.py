"""A network, or a part of one, computed in blocks of an image: the same values with less memory."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

BLOCK = 480  # pixels; with its halo, 32 channels of float32 are just under the 32 MiB of utils.keep_freed_memory
Progress = Callable[[int, int], object]  # called with how many blocks are done, and of how many


class InBlocks(nn.Module):
    """A part of the network, computed in blocks of a large image on the CPU: the same values.

    The part's intermediate results stay small then, for the caches, and for memory that the process
    holds already: the system clears every page of a large new tensor before it can be
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
        return self.part(x.contiguous(memory_format=torch.channels_last))  # otherwise each convolution makes a copy


def in_blocks(
    part: Callable[[Tensor], Tensor], x: Tensor, halo: int, side: int, progress: Progress | None = None
) -> Tensor:
    """Return part(x), block by block, for a part that keeps (N, C, H, W) and sees `halo` pixels to each side.

    side: largest side of the blocks in pixels; they are as equal as possible, so that no narrow rest is mostly halo.
    progress: called after each block.
    """
    height, width = x.shape[-2:]
    rows, columns = (math.ceil(size / math.ceil(size / side)) for size in (height, width))
    corners = [(top, left) for top in range(0, height, rows) for left in range(0, width, columns)]
    y: Tensor | None = None
    for i, (top, left) in enumerate(corners, 1):
        bottom, right = min(top + rows, height), min(left + columns, width)
        from_top, from_left = max(top - halo, 0), max(left - halo, 0)
        result = part(x[..., from_top : bottom + halo, from_left : right + halo])
        if y is None:
            size = (*result.shape[:2], height, width)
            y = torch.empty(size, dtype=result.dtype, device=x.device, memory_format=torch.channels_last)
        core = result[..., top - from_top :, left - from_left :]
        y[..., top:bottom, left:right] = core[..., : bottom - top, : right - left]
        if progress:
            progress(i, len(corners))
    assert y is not None
    return y
