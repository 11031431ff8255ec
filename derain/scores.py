"""PSNR and SSIM under the four protocols that deraining papers use, which differ by more than a decibel.

from derain.scores import score
psnr, ssim = score(derained, clean)                  # PReNet's: the one of this repository's tables
psnr, ssim = score(derained, clean, "rounded")       # MPRNet's and Restormer's
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from torch import Tensor

from SSIM import check_pair, psnr, psnr_rgb, psnr_y, ssim, ssim_rgb, ssim_y
from utils import quantize

Image = np.ndarray
Metric = Callable[[Image, Image], float]


class Protocol(NamedTuple):
    """How an image is scored, and who does so."""

    title: str
    psnr: Metric
    ssim: Metric


def rounded_luma(image: Image) -> Image:
    """Return MATLAB's rgb2ycbcr luma of uint8 images: (H, W, 3) uint8 RGB -> (H, W) float64, whole numbers."""
    thousandths = image.astype(np.int64) @ np.array([65481, 128553, 24966])  # integers: halves are rounded up exactly
    return ((thousandths + 255_000 // 2) // 255_000 + 16).astype(np.float64)


def full_range_luma(image: Image) -> Image:
    """Return YIQ's Y, not rounded: (H, W, 3) uint8 RGB -> (H, W) float64 in [0, 255]."""
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def _of(channel: Callable[[Image], Image]) -> tuple[Metric, Metric]:
    """Return PSNR and SSIM (without down-sampling) of one channel in [0, 255]."""
    return (
        lambda derained, clean: psnr(channel(derained), channel(clean), peak=255),
        lambda derained, clean: ssim(channel(derained), channel(clean)),
    )


PROTOCOLS = {
    "prenet": Protocol("Y, not rounded; SSIM down-sampled from 384 pixels on (PReNet, DARGNet)", psnr_y, ssim_y),
    "rounded": Protocol("Y rounded to integers (MPRNet, Restormer)", *_of(rounded_luma)),
    "full_range": Protocol("Y of full range (pyiqa's psnry and ssim, piq)", *_of(full_range_luma)),
    "rgb": Protocol("RGB (scikit-image, pyiqa's psnr and ssimc)", psnr_rgb, ssim_rgb),
}


def score(derained: Image | Tensor, clean: Image | Tensor, protocol: str = "prenet") -> tuple[float, float]:
    """Return PSNR in dB and SSIM of a derained image, or their means over a batch.

    derained, clean: (H, W, 3) uint8 RGB arrays, or (3, H, W) or (N, 3, H, W) float RGB tensors in [0, 1], which are
    rounded to 8 bits as they would be in a file; at least 11x11 pixels. protocol: a name in PROTOCOLS.
    PSNR is infinite for equal images.

    Raises ValueError for images that differ in size, have another form, or are smaller.
    """
    measure = PROTOCOLS[protocol]
    pairs = list(zip(_images(derained), _images(clean), strict=True))
    for pair in pairs:
        check_pair(*pair)
    psnrs, ssims = zip(*((measure.psnr(d, c), measure.ssim(d, c)) for d, c in pairs), strict=True)
    return float(np.mean(psnrs)), float(np.mean(ssims))


def _images(images: Image | Tensor) -> list[Image]:
    if isinstance(images, np.ndarray):
        return [images]
    batch = images.detach().cpu().float()
    batch = batch[None] if batch.dim() == 3 else batch
    return list(quantize(batch.permute(0, 2, 3, 1).numpy()))
