"""SSIM and PSNR: the differentiable SSIM of the loss, and the scores of the tables.

The tables follow the PReNet protocol (D. Ren et al., CVPR 2019; its MATLAB scripts
statistic.m and ssim_index.m): both scores on the unrounded luma of the saved 8-bit images.
Other protocols give other numbers for the same images, by more than a decibel, so every
figure is named psnr_y, ssim_y, psnr_rgb or ssim_rgb and nothing is called just "PSNR".

SSIM: Z. Wang, A. Bovik, H. Sheikh, E. Simoncelli, "Image quality assessment: from error
visibility to structural similarity", IEEE TIP 13(4), 2004.
"""

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity
from torch import Tensor, nn

PROTOCOL = "PReNet (Y of 8-bit RGB, not rounded; SSIM with automatic down-sampling; mean of per-image scores)"
WINDOW = 11  # pixels, of the Gaussian window
SIGMA = 1.5  # pixels


class SSIM(nn.Module):
    """Mean structural similarity of two batches, differentiable, as the paper's loss has it.

    Inputs: (N, C, H, W), float, in [0, 1], equal shapes; each channel is compared by itself.
    Returns a scalar in (-1, 1], 1 for equal images. The 11x11 Gaussian window (sigma 1.5) runs
    over zero-padded images, so that borders count too; `padded=False` keeps to whole windows.
    C1 = 0.01^2 and C2 = 0.03^2. Half-precision inputs are computed in float32.

    Raises ValueError for unequal or unfitting shapes.
    """

    def __init__(self, padded: bool = True) -> None:
        super().__init__()
        x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
        window = torch.exp(-(x**2) / (2 * SIGMA**2))
        self.exact = window / window.sum()  # float64, which Apple's GPUs lack: it stays on the CPU
        self.register_buffer("window", self.exact.float(), persistent=False)
        self.padding = WINDOW // 2 if padded else 0

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape or first.dim() != 4:
            raise ValueError(f"expected equal (N, C, H, W), got {tuple(first.shape)} and {tuple(second.shape)}")
        if not self.padding and min(first.shape[-2:]) < WINDOW:
            raise ValueError(f"images of {tuple(first.shape[-2:])} are smaller than the {WINDOW}x{WINDOW} window")
        with torch.autocast(first.device.type, enabled=False):  # variances cancel badly in half precision
            dtype = torch.promote_types(torch.promote_types(first.dtype, second.dtype), torch.float32)
            a, b = first.to(dtype), second.to(dtype)
            channels = a.shape[1]
            maps = torch.cat([a, b, a * a, b * b, a * b], dim=1)
            mean_a, mean_b, square_a, square_b, product = self._blur(maps).split(channels, dim=1)
            c1, c2 = 0.01**2, 0.03**2
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            covariance = product - mean_a * mean_b
            variances = (square_a - mean_a**2) + (square_b - mean_b**2)
            return (luminance * (2 * covariance + c2) / (variances + c2)).mean()

    def _blur(self, maps: Tensor) -> Tensor:
        """The 2-D Gaussian as two 1-D passes over every channel: the same sums, 22 products instead of 121."""
        channels = maps.shape[1]
        window = self.window.to(maps.device) if maps.dtype == torch.float32 else self.exact.to(maps)
        rows = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
        columns = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
        maps = F.conv2d(maps, rows, padding=(0, self.padding), groups=channels)
        return F.conv2d(maps, columns, padding=(self.padding, 0), groups=channels)


def luma(image: np.ndarray) -> np.ndarray:
    """Return MATLAB's rgb2ycbcr luma, not rounded: (H, W, 3) uint8 RGB -> (H, W) float64 in [16, 235] / 255."""
    _check_image(image)
    return (image.astype(np.float64) / 255 @ np.array([65.481, 128.553, 24.966]) + 16) / 255


def psnr(first: np.ndarray, second: np.ndarray, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB of equal-shaped arrays; infinite for equal ones."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(peak**2 / error))


def psnr_y(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return PSNR in dB of the luma, PReNet protocol. Both (H, W, 3) uint8 RGB of one size."""
    check_pair(derained, clean)
    return psnr(luma(derained), luma(clean), peak=1)


def psnr_rgb(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return PSNR in dB over the three RGB channels together. Both (H, W, 3) uint8 of one size."""
    check_pair(derained, clean)
    return psnr(derained, clean, peak=255)


def ssim_y(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the SSIM of 255 * luma, PReNet protocol. Both (H, W, 3) uint8 RGB of one size, at least 11x11.

    Images whose shorter side is 384 pixels or more are first averaged and thinned by
    round(side / 256), as Wang's later script does. Then an 11x11 Gaussian of sigma 1.5,
    whole windows only, biased moments, mean of the map.
    """
    check_pair(derained, clean)
    factor = max(1, math.floor(min(clean.shape[:2]) / 256 + 0.5))
    return ssim(_downsample(255 * luma(derained), factor), _downsample(255 * luma(clean), factor))


def ssim_rgb(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the mean SSIM of the three RGB channels, full size. Both (H, W, 3) uint8, at least 11 pixels each way."""
    check_pair(derained, clean)
    return ssim(derained, clean, channel_axis=2)


def image_metrics(derained: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """Return all four scores of an image pair: psnr_y, ssim_y, psnr_rgb, ssim_rgb."""
    return {f.__name__: f(derained, clean) for f in (psnr_y, ssim_y, psnr_rgb, ssim_rgb)}


def ssim(first: np.ndarray, second: np.ndarray, **options: int) -> float:
    """Return the SSIM of equal-shaped arrays in [0, 255] at full size: whole 11x11 windows, mean of the map."""
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"an image of {first.shape[:2]} is smaller than the {WINDOW}x{WINDOW} window of SSIM")
    window = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False}
    return float(structural_similarity(first, second, data_range=255, **window, **options))


def _downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Average over factor x factor (symmetric borders), then take every factor-th pixel from the first."""
    if factor == 1:
        return image
    # For even windows MATLAB's imfilter anchors at the upper left centre pixel, OpenCV by default at the lower right.
    middle = ((factor - 1) // 2,) * 2
    averaged = cv2.boxFilter(image, -1, (factor, factor), anchor=middle, borderType=cv2.BORDER_REFLECT)
    return averaged[::factor, ::factor]


def _check_image(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")


def check_pair(first: np.ndarray, second: np.ndarray) -> None:
    """Raise ValueError unless both are (H, W, 3) uint8 and of one size."""
    _check_image(first)
    _check_image(second)
    if first.shape != second.shape:
        raise ValueError(f"the images differ in size: {first.shape[:2]} and {second.shape[:2]}")
