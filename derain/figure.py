"""Draw rainy, derained and clean images side by side, with an enlarged crop, as PNG or PDF."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np

from SSIM import luma, psnr_y, ssim_y
from utils import InputError, atomic_path

COLUMN = 3  # inches, the width of an image
GAIN = 3  # differences are too dark to see as they are
STYLE = {"font.size": 9, "pdf.fonttype": 42, "text.parse_math": False}
Crop = Sequence[int]  # left, top and width in pixels; a crop is half as high as wide
Names = Sequence[str]


@dataclass(frozen=True)
class Row:
    """One scene. All images are (H, W, 3) uint8 RGB of one size.

    images: "rainy", then the derained image of each method, by the names of their columns.
    """

    title: str
    images: Mapping[str, np.ndarray]
    clean: np.ndarray | None = None

    def columns(self) -> dict[str, np.ndarray]:
        """Return all images to show; a single method also shows the rain that it removed."""
        columns = dict(self.images)
        if self.clean is not None:
            columns["clean"] = self.clean
        if len(self.images) == 2:
            columns[f"removed rain (x{GAIN})"] = difference(*self.images.values())
        return columns


def check_figure(names: Names | None, crop: Crop | None, images: Names) -> None:
    """Raise InputError for values of --figure (None if not given) and --crop that can't be drawn.

    images: the names of all images.
    """
    if crop is not None and names is None:
        raise InputError("--crop: chooses the part that a figure enlarges; add --figure")
    if crop is not None and (len(crop) != 3 or min(crop) < 0 or crop[2] == 0):
        raise InputError("--crop: takes X Y SIZE: left edge, top edge and width in pixels")
    if names is not None and find_spec("matplotlib") is None:
        raise InputError("--figure: needs matplotlib; pip install -r requirements-extra.txt")
    choose_images(images, names or (), {})


def choose_images(images: Names, names: Names, gains: Mapping[str, float]) -> list[str]:
    """Return the images to draw.

    images: the names of all images. names: those to draw, with or without suffix; if empty, the
    images of largest, median and smallest gain. gains: PSNR gained in dB, by image; may be empty.

    Raises InputError for a name that no image has.
    """
    chosen = []
    for name in names:
        found = [image for image in images if name in (image, Path(image).name, Path(image).stem)]
        if not found:
            raise InputError(f"--figure {name}: no such image; {images[0]} is one")
        chosen.append(found[0])
    if not names:
        ordered = sorted(images, key=lambda image: -np.nan_to_num(gains.get(image, 0)))
        chosen = [ordered[0], ordered[len(ordered) // 2], ordered[-1]]
    return list(dict.fromkeys(chosen))


def write_figure(
    path: Path, rows: Sequence[Row], crop: Crop | None = None, errors: bool = False
) -> None:
    """Draw rows that have the same columns, and write the figure to a .png or .pdf file.

    crop: None: `crop_place` chooses it. errors: show 3 x |image - clean| below each crop.

    Raises InputError if the crop lies outside an image.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    columns, heights = rows[0].columns(), []  # heights in widths of a column
    for row in rows:
        height, width, _ = row.images["rainy"].shape
        heights += [np.clip(height / width, 0.2, 1.5), *[0.5] * (1 + errors)]
    size = (COLUMN * len(columns), COLUMN * sum(heights) + 0.3 * len(heights))
    interpolation = "auto" if path.suffix == ".png" else "none"  # none: the images' own pixels
    with rc_context(STYLE | {"image.interpolation": interpolation}):
        layout = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0, hspace=0, compress=True)
        figure = Figure(size, layout=layout)
        axes = figure.subplots(len(heights), len(columns), squeeze=False, height_ratios=heights)
        for axis, name in zip(axes[0], columns, strict=True):
            axis.set_title(legible(name))
        for row, row_axes in zip(rows, np.split(axes, len(rows)), strict=True):
            draw_row(row_axes, row, crop)
        dpi = np.clip(width / COLUMN, 100, 200)  # about one pixel of the PNG for one of the image
        dpi = min(dpi, 60_000 / size[1])  # matplotlib draws fewer than 65,536 pixels
        with atomic_path(path, path.suffix) as temporary:
            figure.savefig(temporary, dpi=dpi, bbox_inches="tight", pad_inches=0.05)


def draw_row(axes: np.ndarray, row: Row, crop: Crop | None) -> None:
    """Draw a scene. axes: (2 or 3, columns), for whole images, crops and, if there, errors."""
    rainy, derained = list(row.images.values())[:2]
    clean = derained if row.clean is None else row.clean
    x, y, w = crop or crop_place(rainy, clean)
    h = max(1, w // 2)
    height, width, _ = rainy.shape
    if x + w > width or y + h > height:
        raise InputError(f"--crop {x} {y} {w}: leaves {row.title}, {width}x{height} pixels")
    part = np.s_[y : y + h, x : x + w]
    axes[0, 0].set_ylabel(legible(row.title))
    for (name, image), column in zip(row.columns().items(), axes.T, strict=True):
        for axis in column:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        column[0].imshow(image)
        column[0].indicate_inset((x, y, w, h), edgecolor="red", alpha=1)
        column[1].imshow(image[part])
        if name == "clean":
            column[-1].set_xlabel("PSNR / SSIM (Y)")
        elif row.clean is not None and name in row.images:
            if len(column) == 3:
                axes[2, 0].set_ylabel(f"error (x{GAIN})")
                column[2].imshow(difference(image, clean)[part])
            column[-1].set_xlabel(f"{psnr_y(image, clean):.2f} dB / {ssim_y(image, clean):.4f}")


def difference(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the magnified absolute difference, clipped at 255."""
    return cv2.convertScaleAbs(cv2.absdiff(image, other), alpha=GAIN)


def legible(text: str) -> str:
    """Return at most 40 letters that every font has."""
    return text.encode("ascii", "backslashreplace").decode()[:40]


def crop_place(rainy: np.ndarray, clean: np.ndarray) -> tuple[int, int, int]:
    """Return the crop, a quarter as wide as the image, with most rain over most detail.

    There the mean of |rainy - clean| x |gradient of clean|, both of luma, is largest.
    """
    height, width, _ = rainy.shape
    w = min(width, max(16, width // 4), 2 * height)
    h = max(1, w // 2)
    rain, y = np.abs(luma(rainy) - luma(clean)), luma(clean)
    detail = np.hypot(cv2.Sobel(y, -1, 1, 0), cv2.Sobel(y, -1, 0, 1))
    mean = cv2.boxFilter(rain * detail, -1, (w, h), anchor=(0, 0))
    inside = mean[: height - h + 1, : width - w + 1]
    top, left = np.unravel_index(inside.argmax(), inside.shape)
    return int(left), int(top), w
