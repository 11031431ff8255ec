"""Score the results of any methods against a test set, and compare them image by image.

    python -m derain.score --set Rain100L PReNet=outputs/prenet ours=results/Rain100L
    python -m derain.score --set Rain100L PReNet=outputs/prenet ours=results/Rain100L --format latex
    python -m derain.score --clean_dir my/gt --rainy_dir my/in mine=my/out

Results are matched to the rainy images by the part that their names share. Differences are from the
first method, with their standard errors: less than two standard errors may be chance.
"""

import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from derain import figure, page
from derain.cli import check_folder, run_script, setting
from derain.images import read_rgb
from derain.pairs import Pair, find_pairs, list_images, match_names
from derain.sets import DARGNET, PUBLISHED, TEST_SETS, identify_pairs
from derain.synthesize import synthetic_label
from SSIM import WINDOW, check_pair, psnr, psnr_rgb, psnr_y, ssim, ssim_rgb, ssim_y
from utils import InputError

PROTOCOLS = {
    "prenet": "Y, not rounded; SSIM down-sampled from 384 pixels on (PReNet, DARGNet)",
    "rounded": "Y rounded to integers (MPRNet, Restormer)",
    "full_range": "0.299 R + 0.587 G + 0.114 B (PSNR: piq with convert_to_greyscale)",
    "rgb": "RGB (scikit-image with Gaussian weights and biased moments; piq with downsample=False)",
}
MOST_LACKING = 8  # pixels, with --common_size
LATEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
LATEX |= {"±": r"$\pm$"} | {character: f"\\{character}" for character in "_%&#${}"}
Scores = Mapping[str, np.ndarray]  # by method: (images, 2), PSNR in dB and SSIM
Files = Mapping[str, list[Path]]  # clean, rainy and each method: images in the pairs' order


@dataclass(frozen=True)
class Settings:
    """The command line."""

    methods: tuple[str, ...] = setting((), "result folders, each as NAME=FOLDER", positional=True)
    set: str | None = setting(None, "Rain100H, Rain100L or Rain12, or a folder of pairs")
    clean_dir: Path | None = setting(None, "instead of --set: the folder of clean images")
    rainy_dir: Path | None = setting(None, "with --clean_dir: the folder of rainy images")
    protocol: str = setting("prenet", "how papers score", (*PROTOCOLS, "all"))
    crop_border: int = setting(0, "pixels to leave out at each side")
    common_size: bool = setting(False, "accept results that lack up to 8 pixels right and below")
    format: str = setting("markdown", "csv lists every image", ("markdown", "latex", "csv"))
    figure: tuple[str, ...] | None = setting(None, "draw figure.png and .pdf of images by name")
    page: bool = setting(False, "write index.html, with a slider between the last two methods")
    out: Path = setting(Path("results/methods"), "folder of figure and page")


def score(derained: np.ndarray, clean: np.ndarray, protocol: str = "prenet") -> tuple[float, float]:
    """Return PSNR in dB and SSIM under one of PROTOCOLS; PSNR is infinite for equal images.

    Both (H, W, 3) uint8 RGB of one size, at least 11x11. Raises ValueError for others.
    """
    check_pair(derained, clean)
    if protocol == "prenet":
        return psnr_y(derained, clean), ssim_y(derained, clean)
    if protocol == "rgb":
        return psnr_rgb(derained, clean), ssim_rgb(derained, clean)
    channels = []
    for image in (derained.astype(np.int64), clean.astype(np.int64)):
        if protocol == "full_range":
            channels.append(image @ np.array([0.299, 0.587, 0.114]))
        else:  # in integers, so that halves are rounded up as in MATLAB
            thousandths = image @ np.array([65481, 128553, 24966])
            channels.append((thousandths + 127_500) // 255_000 + 16.0)
    first, second = channels
    return psnr(first, second, peak=255), ssim(first, second)


def compare(settings: Settings) -> None:
    """Match the images, score them and print the tables; draw the figure and write the page."""
    label, pairs = find_set(settings)
    if not pairs:
        raise InputError(f"{settings.clean_dir}: holds no image")
    names = [pair.rainy.name for pair in pairs]
    figure.check_figure(settings.figure, names)
    if settings.page or settings.figure is not None:
        check_folder(settings.out, "--out")
    files = find_methods(settings, pairs)
    protocols = list(PROTOCOLS) if settings.protocol == "all" else [settings.protocol]
    rows = [("protocol", "method", "image", "psnr", "ssim")]
    for i, name in enumerate(tqdm(names, label, leave=False, disable=None)):
        images = read_scene(files, i, settings.crop_border)
        clean = images.pop("clean")
        for protocol in protocols:
            for method, image in images.items():
                rows.append((protocol, method, name, *score(image, clean, protocol)))
    if settings.format == "csv":
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
    for protocol in protocols:
        scores = {}
        for method in images:
            scores[method] = np.array([row[3:] for row in rows if row[:2] == (protocol, method)])
        text = table(settings, label, protocol, scores)
        if settings.format != "csv":
            print(text, end="\n\n")
        if protocol == protocols[0]:
            show(settings, label, text, names, files, scores)


def find_set(settings: Settings) -> tuple[str, list[Pair]]:
    """Return a set's label and its pairs; without rainy images the clean ones take their place."""
    if (settings.set is None) == (settings.clean_dir is None):
        raise InputError("give either --set or --clean_dir: the images to score against")
    if settings.clean_dir and not settings.rainy_dir:
        if settings.figure is not None:
            raise InputError("--figure: shows the rainy images, too; add --rainy_dir")
        images = list_images(settings.clean_dir)
        return settings.clean_dir.resolve().name, [Pair(path, path) for path in images]
    folder = settings.rainy_dir or Path(str(settings.set))
    if settings.set in TEST_SETS:
        folder = Path("datasets/test") / settings.set
    pairs = find_pairs(folder, note, settings.clean_dir)
    identity = identify_pairs(pairs)
    label = synthetic_label(pairs[0].rainy.parent)
    if not label and identity.name:
        label = identity.label
    return label or folder.resolve().name, pairs


def find_methods(settings: Settings, pairs: Sequence[Pair]) -> Files:
    """Return the images; a method that can't be scored is left out with a line.

    Raises InputError if none is left.
    """
    files = {"clean": [pair.clean for pair in pairs]}
    if settings.set or settings.rainy_dir:
        files["rainy"] = [pair.rainy for pair in pairs]
    for text in settings.methods:
        name, _, folder = text.rpartition("=")
        name = name or Path(folder).resolve().name
        if not folder or name in ("rainy", *files):
            raise InputError(f"{text}: give each folder a name of its own, as NAME=FOLDER")
        try:
            files[name] = find_results(Path(folder), pairs, settings.common_size)
        except InputError as error:
            note(f"{name} is left out: {error}")
    if [*files][-1] in ("clean", "rainy"):
        raise InputError("no method to score: give result folders that fit, as NAME=FOLDER")
    return files


def find_results(folder: Path, pairs: Sequence[Pair], common_size: bool) -> list[Path]:
    """Return a method's image of each pair.

    Raises InputError if one is missing, has another size or shows another scene.
    """
    found: dict[Path, Path] = {}
    images = list_images(folder)
    for path, rainy in match_names(images, [pair.rainy for pair in pairs]).items():
        if rainy in found:
            raise InputError(f"{found[rainy]} and {path} are both for {rainy.name}; remove one")
        found[rainy] = path
    for pair in pairs:
        if pair.rainy not in found:
            raise InputError(f"{folder}: has no image for {pair.rainy.name}; add it")
        path, image, clean = found[pair.rainy], read_rgb(found[pair.rainy]), read_rgb(pair.clean)
        lacking = np.subtract(clean.shape, image.shape)
        if lacking.min() < 0 or lacking.max() > MOST_LACKING * common_size:
            sizes = f"{image.shape[1]}x{image.shape[0]}, not {clean.shape[1]}x{clean.shape[0]}"
            raise InputError(f"{path}: is {sizes} pixels; see --common_size and --clean_dir")
        small = [cv2.resize(i, (16, 16), interpolation=cv2.INTER_AREA) for i in (image, clean)]
        with np.errstate(invalid="ignore"):  # thumbnails of one colour
            correlation = np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1]
        if correlation < 0.5:  # even Rain100H's rainy images have 0.7
            raise InputError(f"{path}: does not show {pair.clean}; rename it")
    files = [found[pair.rainy] for pair in pairs]
    others = len(images) - len(files)
    note(f"{files[0]} is scored against {pairs[0].clean}, and so on; {others} others are left out")
    return files


def read_scene(files: Files, i: int, border: int) -> dict[str, np.ndarray]:
    """Return the images of pair i, cut to what all have, without `border` pixels at each side."""
    images = {name: read_rgb(paths[i]) for name, paths in files.items()}
    height, width, _ = np.min([image.shape for image in images.values()], axis=0) - border
    if border < 0 or min(height, width) < border + WINDOW:
        raise InputError(f"--crop_border {border}: leaves too little of {files['clean'][i]}")
    return {name: image[border:height, border:width] for name, image in images.items()}


def table(settings: Settings, label: str, protocol: str, scores: Scores) -> str:
    """Return the table of one protocol: means, differences from the first method, known scores."""
    methods = [name for name in scores if name != "rainy"]
    first = scores[methods[0]]
    # Means of PSNR are over the images that no method restored perfectly.
    finite = np.isfinite(np.stack(list(scores.values()))[..., 0]).all(axis=0)
    lines = [["", "PSNR", "SSIM", f"PSNR - {methods[0]}", f"SSIM - {methods[0]}", "PSNR better"]]
    notes = [f"{label}, {len(first)} images: {PROTOCOLS[protocol]}"]
    if settings.crop_border:
        notes.append(f"Without {settings.crop_border} pixels at each side.")
    if settings.common_size:
        notes.append("Each image is scored on the part that all methods have.")
    for name, values in scores.items():
        psnr, ssim = values.T
        compared = psnr[finite] if finite.any() else psnr
        line = [name, f"{compared.mean():.3f}", f"{ssim.mean():.4f}", "", "", ""]
        if name in methods[1:]:
            line[3] = difference(psnr, first[:, 0], 3)
            line[4] = difference(ssim, first[:, 1], 5)
            line[5] = f"{np.sum(psnr > first[:, 0])} of {len(psnr)}"
        lines.append(line)
        if np.isinf(psnr).any():
            equal = f"{np.isinf(psnr).sum()} of {len(psnr)} equal the clean ones"
            notes.append(f"{name}: {equal}; all means of PSNR leave them out.")
    is_published = protocol == "prenet" and not settings.crop_border and not settings.common_size
    if is_published and label in TEST_SETS:
        for method in (*PUBLISHED, DARGNET):
            psnr, ssim = method.scores[label]
            name = f"{method.name} ({method.source})"
            lines.append([name, f"{psnr:.2f}", f"{ssim:.3f}", "", "", ""])
    if len(methods) == 1:
        lines = [line[:3] for line in lines]
    return render(lines, notes, settings.format == "latex")


def difference(values: np.ndarray, others: np.ndarray, digits: int) -> str:
    """Return the mean difference over the images and its standard error."""
    finite = np.isfinite(values) & np.isfinite(others)
    by_image = values[finite] - others[finite]
    if len(by_image) < 2:
        return "-"
    error = by_image.std(ddof=1) / len(by_image) ** 0.5
    return f"{by_image.mean():+.{digits}f} ± {error:.{digits}f}"


def render(lines: Sequence[Sequence[str]], notes: Sequence[str], latex: bool) -> str:
    """Return a table in Markdown, or in LaTeX for the package booktabs."""
    if not latex:
        lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
        rows = [" | ".join(cell.replace("|", r"\|") for cell in line) for line in lines]
        return "\n".join([*notes, "", *(f"| {row} |" for row in rows)])
    escapes = str.maketrans(LATEX)
    rows = [" & ".join(cell.translate(escapes) for cell in line) + r" \\" for line in lines]
    begin = r"\begin{tabular}{l" + "r" * (len(lines[0]) - 1) + "}"
    body = [r"\toprule", rows[0], r"\midrule", *rows[1:], r"\bottomrule", r"\end{tabular}"]
    return "\n".join([*(f"% {text}" for text in notes), begin, *body])


def show(
    settings: Settings, label: str, text: str, names: Sequence[str], files: Files, scores: Scores
) -> None:
    """Write the page and draw the figure; gains are the last method's over the one before."""
    left, right = list(files)[-2:]
    items = []
    for i, name in enumerate(names):
        versions = {version: paths[i] for version, paths in files.items()}
        of_image = {method: tuple(values[i]) for method, values in scores.items()}
        items.append(page.Item(name, versions, of_image))
    if settings.page:
        page.write_page(settings.out, label, f"{len(names)} images.", text, items, left, right)
        note(f"{settings.out / 'index.html'}: written")
    if settings.figure is None:
        return
    gains = {item.name: item.gain(left, right) for item in items}
    scenes = {}
    for name in figure.choose_images(gains, settings.figure):
        images = read_scene(files, names.index(name), settings.crop_border)
        images["clean"] = images.pop("clean")  # the last column
        scenes[f"{name}, {gains[name]:+.2f} dB"] = images
    for path in (settings.out / "figure.png", settings.out / "figure.pdf"):
        figure.write_figure(path, scenes)
        note(f"{path}: written")


def note(line: str) -> None:
    """Print a line that is not part of a table."""
    print(line, file=sys.stderr)


if __name__ == "__main__":
    run_script(compare, Settings(), __doc__)
