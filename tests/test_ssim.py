"""SSIM of the loss and the metrics, against published vectors, scikit-image and the formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skimage.metrics import structural_similarity

from SSIM import SSIM, image_metrics, luma, psnr_rgb, psnr_y, ssim_rgb, ssim_y


def vector(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a disturbed image and a clean one, both given by formulas: (H, W, 3) uint8."""
    y, x = np.mgrid[:height, :width]
    clean = np.stack([(3 * x + 5 * y) % 256, (x * y) % 251, (x + 2 * y) % 256], axis=2)
    disturbed = np.clip(clean + ((7 * x + 13 * y) % 17 - 8)[..., None], 0, 255)
    return disturbed.astype(np.uint8), clean.astype(np.uint8)


# What PReNet's published MATLAB scripts print for these images under GNU Octave.
@pytest.mark.parametrize(
    ("size", "psnr", "ssim"),
    [
        ((321, 481), 35.7411921113, 0.993199292543),
        ((384, 512), 35.7425301895, 0.997758247421),  # averaged over 2x2
        ((720, 1280), 35.7392329183, 0.998979577073),  # averaged over 3x3
    ],
)
def test_the_published_scripts_scores(size: tuple[int, int], psnr: float, ssim: float) -> None:
    derained, clean = vector(*size)
    assert psnr_y(derained, clean) == pytest.approx(psnr, abs=1e-9)
    assert ssim_y(derained, clean) == pytest.approx(ssim, abs=1e-9)


@pytest.mark.parametrize(("side", "factor"), [(383, 1), (384, 2), (639, 2), (640, 3)])
def test_down_sampling_begins_at_half(side: int, factor: int) -> None:
    """MATLAB rounds halves up: 384 / 256 = 1.5 is averaged by 2, 640 / 256 = 2.5 by 3."""
    derained, clean = vector(side, side)
    rows = np.arange(0, side, factor)

    def shrink(image: np.ndarray) -> np.ndarray:
        # A window of f pixels begins (f - 1) // 2 before its pixel; symmetric borders.
        before = (factor - 1) // 2
        padded = np.pad(image, ((before, factor),) * 2, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (factor, factor))
        return windows.mean(axis=(2, 3))[np.ix_(rows, rows)]

    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected = structural_similarity(
        shrink(255 * luma(derained)), shrink(255 * luma(clean)), data_range=255, **options
    )
    assert ssim_y(derained, clean) == pytest.approx(expected, abs=1e-12)


def test_luma_is_matlabs() -> None:
    colours = np.array(
        [[[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8
    )
    expected = np.array([16, 235, 81.481, 144.553, 40.966]) / 255
    assert luma(colours)[0] == pytest.approx(expected, abs=1e-12)


def test_equal_images() -> None:
    image, _ = vector(32, 32)
    scores = image_metrics(image, image)
    assert scores["psnr_y"] == scores["psnr_rgb"] == math.inf
    assert scores["ssim_y"] == pytest.approx(1)
    assert scores["ssim_rgb"] == pytest.approx(1)


@pytest.mark.parametrize("metric", [psnr_y, ssim_y, psnr_rgb, ssim_rgb])
def test_metrics_refuse_what_they_cannot_mean(metric) -> None:
    image, _ = vector(32, 32)
    for other in (image[:16], image.astype(np.float64), image[..., 0]):
        with pytest.raises(ValueError, match=r"size|uint8"):
            metric(image, other)
    if metric in (ssim_y, ssim_rgb):
        with pytest.raises(ValueError, match="window"):
            metric(image[:10], image[:10])


def literal_ssim(a: torch.Tensor, b: torch.Tensor, padding: int) -> torch.Tensor:
    """Evaluate the formula with the full 11x11 window, one channel after the other."""
    x = torch.arange(11, dtype=a.dtype) - 5
    window = torch.exp(-(x[:, None] ** 2 + x[None, :] ** 2) / (2 * 1.5**2))
    window = (window / window.sum())[None, None]
    maps = []
    for channel in range(a.shape[1]):
        p, q = a[:, channel : channel + 1], b[:, channel : channel + 1]
        blur = lambda image: F.conv2d(image, window, padding=padding)  # noqa: E731
        mp, mq = blur(p), blur(q)
        vp, vq, cov = blur(p * p) - mp**2, blur(q * q) - mq**2, blur(p * q) - mp * mq
        maps.append(
            (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
        )
    return torch.cat(maps).mean()


@pytest.mark.parametrize("padded", [True, False])
def test_the_losss_ssim_is_the_formula(padded: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 24, 31, dtype=torch.float64, generator=generator)
    b = (a + 0.2 * torch.rand(a.shape, dtype=torch.float64, generator=generator)).clamp(0, 1)
    expected = literal_ssim(a, b, 5 if padded else 0)
    torch.testing.assert_close(SSIM(padded)(a, b), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(SSIM(padded)(a, a), torch.ones((), dtype=torch.float64))


def test_the_losss_gradient_against_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    clean = torch.rand(1, 2, 12, 13, dtype=torch.float64, generator=generator)
    derained = (
        clean + 0.05 + 0.1 * torch.rand(clean.shape, dtype=torch.float64, generator=generator)
    ).requires_grad_()

    def loss(image: torch.Tensor) -> torch.Tensor:
        return 1 - SSIM()(image, clean) + F.l1_loss(image, clean)

    assert torch.autograd.gradcheck(loss, (derained,), eps=1e-6, atol=1e-7)


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
    with pytest.raises(ValueError, match="window"):
        SSIM(padded=False)(torch.zeros(1, 3, 10, 16), torch.zeros(1, 3, 10, 16))


def test_rgb_scores_weigh_all_channels() -> None:
    """Compare errors of another size in each channel with NumPy and scikit-image."""
    random = np.random.RandomState(3)
    clean = random.randint(60, 190, (40, 50, 3)).astype(np.uint8)
    derained = (clean + random.randint(-1, 2, clean.shape) * np.array([2, 20, 50])).astype(np.uint8)
    error = np.mean((clean.astype(float) - derained) ** 2)
    assert psnr_rgb(derained, clean) == pytest.approx(10 * np.log10(255**2 / error), rel=1e-12)
    options = {
        "data_range": 255,
        "gaussian_weights": True,
        "sigma": 1.5,
        "use_sample_covariance": False,
    }
    channels = [structural_similarity(derained[..., c], clean[..., c], **options) for c in range(3)]
    assert ssim_rgb(derained, clean) == pytest.approx(np.mean(channels), rel=1e-12)
    assert max(channels) - min(channels) > 0.05
