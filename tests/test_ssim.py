"""SSIM of the loss and the metrics, against published vectors, scikit-image and the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from SSIM import SSIM, image_metrics, psnr_rgb, psnr_y, ssim_rgb, ssim_y

OPTIONS = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def vector(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a disturbed image and a clean one, both given by formulas: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    clean = np.stack([(3 * x + 5 * y) % 256, (x * y) % 251, (x + 2 * y) % 256], axis=2)
    disturbed = np.clip(clean + ((7 * x + 13 * y) % 17 - 8)[..., None], 0, 255)
    return disturbed.astype(np.uint8), clean.astype(np.uint8)


# What PReNet's published MATLAB scripts print for these images under GNU Octave; the squares, where
# down-sampling begins (MATLAB rounds halves up), are computed from the scripts' formulas.
@pytest.mark.parametrize(
    ("size", "psnr", "ssim"),
    [
        ((321, 481), 35.7411921113, 0.993199292543),
        ((384, 512), 35.7425301895, 0.997758247421),  # averaged over 2x2
        ((720, 1280), 35.7392329183, 0.998979577073),  # averaged over 3x3
        ((383, 383), 35.7407864785, 0.993178773672),
        ((639, 639), 35.7404082163, 0.997752400889),  # averaged over 2x2
        ((640, 640), 35.7403934268, 0.998989034697),  # averaged over 3x3
    ],
)
def test_the_published_scripts_scores(size: tuple[int, int], psnr: float, ssim: float) -> None:
    derained, clean = vector(*size)
    assert psnr_y(derained, clean) == pytest.approx(psnr, abs=1e-9)
    assert ssim_y(derained, clean) == pytest.approx(ssim, abs=1e-9)


def test_equal_images() -> None:
    image, _ = vector(32, 32)
    expected = {"psnr_y": math.inf, "ssim_y": 1, "psnr_rgb": math.inf, "ssim_rgb": 1}
    assert image_metrics(image, image) == pytest.approx(expected)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y, psnr_rgb, ssim_rgb])
def test_metrics_refuse_what_they_cannot_mean(metric) -> None:
    image, _ = vector(32, 32)
    for other in (image[:16], image.astype(np.float64), image[..., 0]):
        with pytest.raises(ValueError, match=r"size|uint8"):
            metric(image, other)
    if metric in (ssim_y, ssim_rgb):
        with pytest.raises(ValueError, match="window"):
            metric(image[:10], image[:10])


def test_the_losss_ssim_is_scikit_images() -> None:
    """scikit-image leaves out a border of half a window, so it gets images padded by zeros."""
    derained, clean = (image[:40, :50] / 255 for image in vector(64, 64))
    padded = [np.pad(image, ((5, 5), (5, 5), (0, 0))) for image in (derained, clean)]
    expected = structural_similarity(*padded, data_range=1, channel_axis=2, **OPTIONS)
    images = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in (derained, clean)]
    assert SSIM()(*images).item() == pytest.approx(expected, abs=1e-9)
    assert SSIM()(images[0], images[0]).item() == pytest.approx(1)


def test_half_precision_is_computed_in_single() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b = torch.rand(2, 1, 3, 32, 32, generator=generator)
    a = a.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        result = SSIM()(a, b)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, SSIM()(a.float(), b))


def test_ssim_loss_refuses_unfitting_shapes() -> None:
    with pytest.raises(ValueError, match="N, C, H, W"):
        SSIM()(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 15))
