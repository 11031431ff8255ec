"""figure.png, as papers show results: rainy, derained, clean and removed rain side by side, a crop enlarged beneath.

Nothing is interpolated. Whole images keep their pixels, or are enlarged (small ones) or averaged (large ones) by a
whole number; crops are enlarged pixel by pixel from the whole image. 16-bit images are shown in 8 bits.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from derain.images import read_rgb
from derain.pairs import Pair, rainy_file
from derain.results import OutputPaths, refuse_replacing
from SSIM import WINDOW, luma, psnr_y, ssim_y
from utils import InputError, atomic_path

NAME = "figure.png"
MOST_ROWS = 50  # images of one figure: PNG readers open no larger ones
SMALLEST, LARGEST = 240, 800  # pixels of a whole image's longer side; beyond these it is scaled
NARROWEST = 240  # pixels of a column: room for its text
LONGEST_TEXT = 160  # characters
CAPITALS = 0.7  # height of Pillow's own font's capitals, as a part of its size
RAIN_GAIN, ERROR_GAIN = 2, 4  # light rain and errors are hard to see as they are
FRAME, RED, GREY, BLACK = 3, "#e11e1e", "#646464", "#000000"  # FRAME: pixels
Box = tuple[int, int, int, int]  # left, top, width, height in pixels
Scale = tuple[int, int]  # by which whole numbers to enlarge and reduce; one of them is 1


class Text(NamedTuple):
    """A line of text: its place, in pixels, on the base line, the width that it may take, and its looks."""

    text: str
    x: int
    y: int
    width: int
    capitals: int
    colour: str
    centred: bool


@dataclasses.dataclass(frozen=True)
class Row:
    """An image of the figure. rainy, derained, clean: (H, W, 3) uint8 RGB of one size; clean may be missing.

    methods: instead of `derained` alone, the derained images of several methods, by name.
    """

    title: str
    rainy: np.ndarray
    derained: np.ndarray
    clean: np.ndarray | None = None
    methods: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


class Sheet:
    """Text and images from top to bottom, in columns that are `column` pixels wide; drawn as PNG or as PDF."""

    def __init__(self, column: int, columns: int) -> None:
        self.column, self.capitals = column, column // 24  # capitals: height of text in pixels
        self.gap, self.margin = max(2 * FRAME, column // 40), max(FRAME, column // 80)  # between columns, around images
        self.lefts = [self.gap + i * (column + self.gap) for i in range(columns)]
        self.width, self.height = self.lefts[-1] + column + self.gap, 0
        self.texts: list[Text] = []
        self.pictures: list[tuple[np.ndarray, Scale, int, int]] = []  # image, scale, left, top
        self.frames: list[Box] = []

    def labels(self, texts: Sequence[str]) -> None:
        """Add texts, each in the middle of its column."""
        for text, left in zip(texts, self.lefts, strict=False):
            self._write(text, left + self.column // 2, self.column, self.capitals, BLACK, True)
        self.height += 2 * self.capitals

    def remark(self, text: str, capitals: int) -> None:
        """Add a text that begins at the left edge. capitals: their height in pixels."""
        self._write(text, self.gap, self.width - 2 * self.gap, capitals, GREY, False)
        self.height += 2 * capitals

    def _write(self, text: str, x: int, width: int, capitals: int, colour: str, centred: bool) -> None:
        text = text.encode("ascii", "backslashreplace").decode()  # the font has no other letters
        text = text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."
        self.texts.append(Text(text, x, self.height + 3 * capitals // 2, width, capitals, colour, centred))

    def images(self, versions: Sequence[np.ndarray], scale: Scale, framed: Box | None = None) -> None:
        """Add equal-sized images in the middle of their columns, each with a red frame around a part, or the whole."""
        height, width = (-(-side * scale[0] // scale[1]) for side in versions[0].shape[:2])
        x, y, w, h = framed or (0, 0, width, height)
        for version, begin in zip(versions, self.lefts, strict=False):
            left, top = begin + (self.column - width) // 2, self.height + self.margin
            self.pictures.append((version, scale, left, top))
            # the frame lies outside the part
            self.frames.append((left + x - FRAME, top + y - FRAME, w + 2 * FRAME, h + 2 * FRAME))
        self.height += height + 2 * self.margin

    def drawn(self) -> np.ndarray:
        """Return the sheet, (height, width, 3) uint8 RGB."""
        canvas = Image.new("RGB", (self.width, self.height), "white")
        draw = ImageDraw.Draw(canvas)
        for image, scale, left, top in self.pictures:
            canvas.paste(Image.fromarray(_scaled(image, scale)), (left, top))
        for x, y, w, h in self.frames:
            draw.rectangle((x, y, x + w - 1, y + h - 1), outline=RED, width=FRAME)
        for t in self.texts:
            size = t.capitals / CAPITALS
            font = ImageFont.load_default(size * min(1, t.width / ImageFont.load_default(size).getlength(t.text)))
            draw.text((t.x, t.y), t.text, fill=t.colour, font=font, anchor="ms" if t.centred else "ls")
        return np.asarray(canvas)

    def save_pdf(self, path: Path) -> None:
        """Write the sheet as PDF: text and frames as such, fonts embedded, each image with its own pixels.

        Raises ImportError without matplotlib.
        """
        from matplotlib import rc_context
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle
        from matplotlib.textpath import TextPath

        with atomic_path(path) as temporary, rc_context({"pdf.fonttype": 42}):
            figure = Figure((self.width / 100, self.height / 100))
            axes = figure.add_axes((0, 0, 1, 1), xlim=(0, self.width), ylim=(self.height, 0))
            axes.axis("off")
            for image, (up, down), x, y in self.pictures:
                height, width = (side * up / down for side in image.shape[:2])
                axes.imshow(image, extent=(x, x + width, y + height, y), interpolation="none", aspect="auto")
            for x, y, w, h in self.frames:
                place, thick = (x + FRAME / 2, y + FRAME / 2), FRAME * 0.72  # a pixel is 0.72 points
                axes.add_patch(Rectangle(place, w - FRAME, h - FRAME, fill=False, edgecolor=RED, linewidth=thick))
            for t in self.texts:
                size = t.capitals / 0.73 * 0.72  # the capitals of DejaVu Sans, which stands for PNG's font
                wide = TextPath((0, 0), t.text.replace("$", r"\$"), size).get_extents().width
                size *= min(1, t.width / 100 * 72 / wide)
                align = "center" if t.centred else "left"
                axes.text(t.x, t.y, t.text, size=size, color=t.colour, ha=align, parse_math=False)
            axes.set(xlim=(0, self.width), ylim=(self.height, 0))
            figure.savefig(temporary, format="pdf")


def sheet_of(rows: Sequence[Row], crop: Sequence[int] | None = None, errors: bool = False) -> Sheet:
    """Return the figure: a row for each image, in columns as wide as the widest.

    crop: left, top and width of what is enlarged, in pixels of the images; its height is half its
    width. None: `crop_place` chooses. errors: show under each crop how it differs from the clean image.

    Raises InputError if an image does not have such pixels.
    """
    methods, measured = rows[0].methods, rows[0].clean is not None
    last = ([] if not measured else ["clean"]) + ([] if methods else ["removed rain"])
    names = ["rainy", *(methods or ["derained"]), *last]
    scales = [_scale(max(row.rainy.shape[:2]), SMALLEST, LARGEST) for row in rows]
    widths = [-(-row.rainy.shape[1] * up // down) for row, (up, down) in zip(rows, scales, strict=True)]
    sheet = Sheet(max(NARROWEST, *widths), len(names))
    sheet.labels(names)
    for row, scale in zip(rows, scales, strict=True):
        (up, down), outputs = scale, [row.rainy, *(row.methods.values() or [row.derained])]
        versions = outputs + ([] if row.clean is None else [row.clean])
        if not methods:
            versions.append(_difference(row.rainy, row.derained, RAIN_GAIN))
        x, y, w, h = crop_place(row) if crop is None else within(row.rainy, *crop)
        closer = _scale(w, sheet.column, sheet.column)
        sheet.height += sheet.capitals
        sheet.remark(f"{row.title} (image {up}:{down}, crop {closer[0]}:{closer[1]})", sheet.capitals)
        framed = (x * up // down, y * up // down, max(1, w * up // down), max(1, h * up // down))
        sheet.images(versions, scale, framed)
        crops = [version[y : y + h, x : x + w] for version in versions]
        sheet.images(crops, closer)
        if row.clean is not None:
            if errors:
                clean = crops[len(outputs)]
                sheet.images([_difference(image, clean, ERROR_GAIN) for image in crops[: len(outputs) + 1]], closer)
            sheet.labels([*(_scores(image, row.clean) for image in outputs), "PSNR / SSIM (Y)"])
    notes = ["PSNR, SSIM: Y channel, PReNet protocol."] if measured else []
    notes += [] if methods else [f"Removed rain: {RAIN_GAIN} x |rainy - derained|."]
    notes += [f"Errors: {ERROR_GAIN} x |image - clean|."] if errors and measured else []
    sheet.height += sheet.capitals // 2
    sheet.remark(" ".join([*notes, "Enlarged by repeating pixels, reduced by averaging."]), 3 * sheet.capitals // 4)
    return sheet


def _difference(image: np.ndarray, other: np.ndarray, gain: int) -> np.ndarray:
    return cv2.convertScaleAbs(cv2.absdiff(image, other), alpha=gain)  # cut off at 255


def crop_place(row: Row) -> Box:
    """Return the part that the figure enlarges: where the mean of rain x gradient is largest, most rain over detail.

    It is a quarter as wide as the image is shown, and half as high. Rain is |rainy - clean|, the gradient (Sobel)
    that of clean, both of luma; so two methods show the same place. Without a clean image derained stands for it.
    """
    height, width = row.rainy.shape[:2]
    _, down = scale = _scale(max(height, width), 1, LARGEST)
    w = min(width, max(16, width // down // 4))
    h = min(height, max(1, w // 2))
    rainy, clean = (luma(_scaled(i, scale)) for i in (row.rainy, row.derained if row.clean is None else row.clean))
    gradient = np.hypot(*(cv2.Sobel(clean, -1, *order, borderType=cv2.BORDER_REPLICATE) for order in ((1, 0), (0, 1))))
    across, along = -(-w // down), -(-h // down)
    score = cv2.boxFilter(  # the mean over the window that begins at each pixel
        np.abs(rainy - clean) * gradient, -1, (across, along), anchor=(0, 0), borderType=cv2.BORDER_REPLICATE
    )[: len(clean) - along + 1, : clean.shape[1] - across + 1]
    top, left = np.unravel_index(score.argmax(), score.shape)
    return min(int(left) * down, width - w), min(int(top) * down, height - h), w, h


def save(path: Path, image: np.ndarray) -> None:
    """Write the figure, (H, W, 3) uint8 RGB, as PNG, atomically."""
    with atomic_path(path) as temporary:
        Image.fromarray(image).save(temporary, "PNG", optimize=True)


def within(image: np.ndarray, x: int, y: int, w: int) -> Box:
    """Return the box of a crop of width w at x, y, half as high. Raises InputError if it leaves the image."""
    height, width = image.shape[:2]
    h = max(1, w // 2)
    if x + w > width or y + h > height:
        outside = f"{w}x{h} pixels at {x}, {y} lie outside of an image of {width}x{height}"
        raise InputError(f"--crop {x} {y} {w}: {outside}; choose a place within it")
    return x, y, w, h


def _scale(size: int, least: int, most: int) -> Scale:
    """Return by which whole numbers to enlarge and reduce, one of them 1, for `least` to `most` pixels."""
    return (1, -(-size // most)) if size > most else (max(1, least // size), 1)


def _scaled(image: np.ndarray, scale: Scale) -> np.ndarray:
    """Return every pixel repeated, or means of squares; what a last square lacks is filled with the border's pixels."""
    up, down = scale
    if down == 1:
        return image.repeat(up, axis=0).repeat(up, axis=1)
    below, right = (-side % down for side in image.shape[:2])
    image = cv2.copyMakeBorder(image, 0, below, 0, right, cv2.BORDER_REPLICATE)
    # Not Pillow's reduce, which rounds some exact means down.
    return cv2.resize(image, (image.shape[1] // down, image.shape[0] // down), interpolation=cv2.INTER_AREA)


def _scores(image: np.ndarray, clean: np.ndarray) -> str:
    """Return PSNR and SSIM (Y) as text; images smaller than its window have no SSIM."""
    ssim = f"{ssim_y(image, clean):.4f}" if min(clean.shape[:2]) >= WINDOW else "-"
    return f"{psnr_y(image, clean):.2f} dB / {ssim}"


# ---------------------------------------------------------------- of a test's results


def check_crop(names: Sequence[str] | None, crop: Sequence[int] | None) -> None:
    """Raise InputError for a --crop that is not X Y SIZE, or has no --figure."""
    if crop is None:
        return
    if names is None:
        raise InputError("--crop: chooses the part of a figure that is enlarged; add --figure")
    if len(crop) != 3 or min(crop) < 0 or crop[2] == 0:
        given = " ".join(map(str, crop))
        raise InputError(f"--crop {given}: takes X Y SIZE: left and top from 0 up, and a width from 1 up, in pixels")


def check_names(
    names: Sequence[str], save_path: Path, inputs: Sequence[Pair | Path], outputs: Sequence[OutputPaths]
) -> None:
    """Raise InputError if --figure names no image or too many, or if figure.png would replace an image."""
    if len(names) > MOST_ROWS:
        raise InputError(f"--figure: {len(names)} images; a figure takes {MOST_ROWS} at most")
    for name in names:
        if not any(name in _names(item, paths) for item, paths in zip(inputs, outputs, strict=True)):
            example = outputs[0].output.stem
            raise InputError(f"--figure {name}: no such image among the {len(inputs)}, such as {example}")
    clean = [item.clean for item in inputs if isinstance(item, Pair)]
    refuse_replacing([save_path / NAME], [*map(rainy_file, inputs), *clean, *(paths.output for paths in outputs)])


def write_figure(
    save_path: Path,
    names: Sequence[str],
    crop: Sequence[int] | None,
    rows: Sequence[Mapping[str, Any]],
    inputs: Sequence[Pair | Path],
    outputs: Sequence[OutputPaths],
) -> bool:
    """Write figure.png to the results' folder, of the images in `names`, or of three where there are none.

    rows: the results so far. The three are those of median, largest and smallest gain in psnr_y, or, without
    clean images, the first, the middle and the last. The derained images are read from the files: what is
    shown is what was saved. Returns whether there was something to draw.

    Raises InputError if the crop lies outside an image.
    """
    files = {paths.name: (item, paths) for item, paths in zip(inputs, outputs, strict=True)}
    gains = {row["image"]: row["psnr_y"] - row["input_psnr_y"] for row in rows if "psnr_y" in row}
    done = [row["image"] for row in rows]
    titles: dict[str, str] = {}
    if names:
        done = list(dict.fromkeys(name for wanted in names for name in done if wanted in _names(*files[name])))
    elif gains and len(done) > 2:
        ordered = sorted(done, key=lambda name: np.nan_to_num(gains[name]))  # nan: perfect before and after
        done = [ordered[(len(ordered) - 1) // 2], ordered[-1], ordered[0]]
        titles = dict(zip(done, ("median gain: ", "largest gain: ", "smallest gain: "), strict=True))
    else:
        done = [done[i] for i in sorted({0, len(done) // 2, len(done) - 1})]
    shown = []
    for name in done:
        item, paths = files[name]
        gain = f", {gains[name]:+.2f} dB" if name in gains else ""
        clean = read_rgb(item.clean) if isinstance(item, Pair) else None
        rainy, derained = read_rgb(rainy_file(item)), read_rgb(paths.output)
        shown.append(Row(titles.get(name, "") + name + gain, rainy, derained, clean))
    if not shown:
        return False  # all that were wanted failed, with a line each
    save(save_path / NAME, sheet_of(shown, crop).drawn())
    return True


def _names(item: Pair | Path, paths: OutputPaths) -> set[str]:
    """Return what --figure may call an image: the name of its file or of the derained one, with or without suffix."""
    rainy = rainy_file(item)
    return {rainy.name, rainy.stem, paths.output.name, paths.output.stem, paths.name}
