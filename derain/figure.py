"""Draw rainy, derained and clean images side by side, with an enlarged part, as PNG or PDF."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from SSIM import luma, psnr_y, ssim_y
from utils import atomic_path

COLUMN = 3  # inches, the width of an image
STYLE = {"font.size": 9, "pdf.fonttype": 42, "text.parse_math": False}
# Images of one size by column, (H, W, 3) uint8 RGB: "rainy", each method's, "clean".
Scene = Mapping[str, np.ndarray]


def write_figure(path: Path, scenes: Mapping[str, Scene]) -> None:
    """Draw scenes, by title, that have the same columns; write a .png or .pdf file.

    Below each image its part at `crop_place` is enlarged.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns = next(iter(scenes.values()))
    heights = []  # in widths of a column
    for scene in scenes.values():
        height, width, _ = scene["rainy"].shape
        heights += [np.clip(height / width, 0.2, 1.5), 0.5]
    size = (COLUMN * len(columns), COLUMN * sum(heights) + 0.3 * len(heights))
    interpolation = "auto" if path.suffix == ".png" else "none"  # none: the images' own pixels
    with rc_context(STYLE | {"image.interpolation": interpolation}):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0, compress=True)
        figure = Figure(size, layout=layout)
        axes = figure.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
        for axis, name in zip(axes[0], columns, strict=True):
            axis.set_title(legible(name))
        for (title, scene), row in zip(scenes.items(), np.split(axes, len(scenes)), strict=True):
            row[0, 0].set_ylabel(legible(title))
            draw_row(row, scene)
        dpi = np.clip(width / COLUMN, 100, 200)  # about one pixel of the PNG for one of the image
        dpi = min(dpi, 60_000 / size[1])  # matplotlib draws fewer than 65,536 pixels
        with atomic_path(path) as temporary:
            figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pad_inches=0.05)


def draw_row(axes: np.ndarray, columns: Scene) -> None:
    """Draw a scene. axes: (2, columns), for whole images and enlarged parts."""
    clean = columns["clean"]
    x, y, w, h = crop_place(columns["rainy"], clean)
    for (name, image), (whole, part) in zip(columns.items(), axes.T, strict=True):
        for axis in (whole, part):
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        whole.imshow(image)
        whole.indicate_inset((x, y, w, h), edgecolor="red", alpha=1)
        part.imshow(image[y : y + h, x : x + w])
        if name == "clean":
            part.set_xlabel("PSNR / SSIM (Y)")
        else:
            part.set_xlabel(f"{psnr_y(image, clean):.2f} dB / {ssim_y(image, clean):.4f}")


def legible(text: str) -> str:
    """Return at most 40 letters that every font has."""
    return text.encode("ascii", "backslashreplace").decode()[:40]


def crop_place(rainy: np.ndarray, clean: np.ndarray) -> tuple[int, int, int, int]:
    """Return left, top, width and height of the part with most rain over most detail.

    It is a quarter as wide as the image and half as high as wide: the place where the mean of
    |rainy - clean| x |gradient of clean|, both of luma, is largest.
    """
    height, width, _ = rainy.shape
    w = min(width, max(16, width // 4), 2 * height)
    h = max(1, w // 2)
    rain, y = np.abs(luma(rainy) - luma(clean)), luma(clean)
    detail = np.hypot(cv2.Sobel(y, -1, 1, 0), cv2.Sobel(y, -1, 0, 1))
    mean = cv2.boxFilter(rain * detail, -1, (w, h), anchor=(0, 0))
    inside = mean[: height - h + 1, : width - w + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(left), int(top), w, h
