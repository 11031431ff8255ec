"""The differentiable SSIM of the loss, and the PSNR and SSIM of the tables.

The tables follow the PReNet protocol (D. Ren et al., CVPR 2019; its MATLAB scripts statistic.m and
ssim_index.m): both metrics on the unrounded luma of the saved 8-bit images. Other protocols differ
by more than a decibel on the same images, so every score is named psnr_y, ssim_y, psnr_rgb or
ssim_rgb. derain/score.py has two more: rounded and full_range.

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

PROTOCOL = "Y by the PReNet protocol, RGB at full size; means over 8-bit images"
WINDOW = 11  # pixels, of the Gaussian window
SIGMA = 1.5  # pixels


class SSIM(nn.Module):
    """Mean structural similarity of two batches, differentiable, as in the paper's loss.

    Inputs: (N, C, H, W), float, in [0, 1], of equal shapes; each channel is compared by itself.
    Returns a scalar in (-1, 1], which is 1 for equal images. The 11x11 Gaussian window (sigma 1.5)
    runs over zero-padded images, so borders count too. C1 = 0.01^2 and C2 = 0.03^2.
    Half-precision inputs are computed in float32. Raises ValueError if the shapes differ.
    """

    def __init__(self) -> None:
        super().__init__()
        x = torch.arange(WINDOW, dtype=torch.float64) - WINDOW // 2
        window = torch.exp(-(x**2) / (2 * SIGMA**2))
        self.window = window / window.sum()  # stays on the CPU: Apple's GPUs have no float64

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        if first.shape != second.shape or first.dim() != 4:
            shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
            raise ValueError(f"expected equal (N, C, H, W), got {shapes}")
        # Variances are small differences of large numbers: half precision would lose them.
        with torch.autocast(first.device.type, enabled=False):
            dtype = torch.promote_types(first.dtype, second.dtype)
            dtype = torch.promote_types(dtype, torch.float32)
            a, b = first.to(dtype), second.to(dtype)
            maps = self._blur(torch.cat([a, b, a * a, b * b, a * b], dim=1))
            mean_a, mean_b, square_a, square_b, product = maps.chunk(5, dim=1)
            c1, c2 = 0.01**2, 0.03**2
            luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
            covariance = product - mean_a * mean_b
            variances = (square_a - mean_a**2) + (square_b - mean_b**2)
            return (luminance * (2 * covariance + c2) / (variances + c2)).mean()

    def _blur(self, maps: Tensor) -> Tensor:
        """Blur every channel by a row and a column of the Gaussian: 22 products, not 121."""
        channels = maps.shape[1]
        window = self.window.to(maps.dtype).to(maps.device)
        rows = window.view(1, 1, 1, -1).expand(channels, -1, -1, -1)
        columns = window.view(1, 1, -1, 1).expand(channels, -1, -1, -1)
        maps = F.conv2d(maps, rows, padding=(0, WINDOW // 2), groups=channels)
        return F.conv2d(maps, columns, padding=(WINDOW // 2, 0), groups=channels)


def luma(image: np.ndarray) -> np.ndarray:
    """Return MATLAB's luma, not rounded: (H, W, 3) uint8 RGB -> (H, W) in [16, 235] / 255."""
    return (image.astype(np.float64) / 255 @ np.array([65.481, 128.553, 24.966]) + 16) / 255


def psnr(first: np.ndarray, second: np.ndarray, peak: float) -> float:
    """Return the peak signal-to-noise ratio in dB of equal-shaped arrays; infinite if equal."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    if error == 0:
        return math.inf
    return float(10 * np.log10(peak**2 / error))


def psnr_y(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the PSNR of the luma in dB, PReNet protocol. Both (H, W, 3) uint8 RGB of one size."""
    check_pair(derained, clean)
    return psnr(luma(derained), luma(clean), peak=1)


def psnr_rgb(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the PSNR in dB over all three RGB channels. Both (H, W, 3) uint8 of one size."""
    check_pair(derained, clean)
    return psnr(derained, clean, peak=255)


def ssim_y(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the SSIM of 255 * luma, PReNet protocol.

    Both (H, W, 3) uint8 RGB of one size, at least 11x11. Images with a shorter side of at least 384
    pixels are first down-sampled by round(side / 256), as in Wang's later script.
    """
    check_pair(derained, clean)
    factor = max(1, math.floor(min(clean.shape[:2]) / 256 + 0.5))
    first = _downsample(255 * luma(derained), factor)
    return ssim(first, _downsample(255 * luma(clean), factor))


def ssim_rgb(derained: np.ndarray, clean: np.ndarray) -> float:
    """Return the mean SSIM of the RGB channels, full size. Both (H, W, 3) uint8, at least 11x11."""
    check_pair(derained, clean)
    return ssim(derained, clean, channel_axis=2)


def image_metrics(derained: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """Return all four scores of an image pair: psnr_y, ssim_y, psnr_rgb, ssim_rgb."""
    return {
        "psnr_y": psnr_y(derained, clean),
        "ssim_y": ssim_y(derained, clean),
        "psnr_rgb": psnr_rgb(derained, clean),
        "ssim_rgb": ssim_rgb(derained, clean),
    }


def ssim(first: np.ndarray, second: np.ndarray, **options: int) -> float:
    """Return the SSIM of equal-shaped arrays in [0, 255] at full size, without padding.

    options: those of scikit-image's structural_similarity.
    """
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"{first.shape[:2]} is smaller than SSIM's {WINDOW}x{WINDOW} window")
    window = {"gaussian_weights": True, "sigma": SIGMA, "use_sample_covariance": False}
    return float(structural_similarity(first, second, data_range=255, **window, **options))


def _downsample(image: np.ndarray, factor: int) -> np.ndarray:
    """Average over factor x factor pixels (symmetric borders) and keep every factor-th pixel."""
    # The centre of an even window is its upper left one in MATLAB, its lower right one in OpenCV.
    middle = ((factor - 1) // 2, (factor - 1) // 2)
    window = (factor, factor)
    averaged = cv2.boxFilter(image, -1, window, anchor=middle, borderType=cv2.BORDER_REFLECT)
    return averaged[::factor, ::factor]


def check_pair(first: np.ndarray, second: np.ndarray) -> None:
    """Raise ValueError unless both are (H, W, 3) uint8 and of one size."""
    for image in (first, second):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"expected (H, W, 3) uint8 RGB, got {image.shape} {image.dtype}")
    if first.shape != second.shape:
        raise ValueError(f"the images differ in size: {first.shape[:2]} and {second.shape[:2]}")
