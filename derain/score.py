"""Score the results of any methods against a test set, and compare them image by image.

    python -m derain.score --set Rain100L PReNet=outputs/prenet ours=results/Rain100L
    python -m derain.score --rainy_dir my/in --clean_dir my/gt mine=my/out --format csv

Results are matched to the rainy images by the part that their names share.
"""

import csv
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from derain.cli import check_folder, run_script, setting
from derain.figure import write_figure
from derain.images import read_rgb
from derain.pairs import Pair, find_pairs, list_images, match_names, shows
from derain.sets import TEST_SETS, identify_pairs
from SSIM import WINDOW, check_pair, psnr, psnr_rgb, psnr_y, ssim, ssim_rgb, ssim_y
from utils import InputError, note

PROTOCOLS = {
    "prenet": "Y, not rounded; SSIM down-sampled from 384 pixels on (PReNet, DARGNet)",
    "rounded": "Y rounded to integers (MPRNet, Restormer)",
    "full_range": "0.299 R + 0.587 G + 0.114 B (PSNR: piq with convert_to_greyscale)",
    "rgb": "RGB (scikit-image with Gaussian weights and biased moments; piq with downsample=False)",
}
MAX_MISSING = 8  # pixels, with --common_size
Files = Mapping[str, list[Path]]  # of rainy, each method and clean, in the pairs' order


@dataclass(frozen=True)
class Settings:
    methods: tuple[str, ...] = setting((), "result folders, each as NAME=FOLDER", names=["methods"])
    set: str = setting(
        "", "a test set such as Rain12, or a folder of pairs", names=["--set", "--rainy_dir"]
    )
    clean_dir: Path | None = setting(None, "folder of the clean images, if not below --set")
    protocol: str = setting("prenet", "how papers score", (*PROTOCOLS, "all"))
    crop_border: int = setting(0, "pixels to leave out at each side")
    common_size: bool = setting(False, "accept results up to 8 pixels smaller, right and bottom")
    format: str = setting("markdown", "csv lists every image", ("markdown", "csv"))
    figure: tuple[str, ...] | None = setting(None, "images to draw; three if none is named")
    out: Path = setting(Path("results/methods"), "folder of figure.png and figure.pdf")


def score(derained: np.ndarray, clean: np.ndarray, protocol: str = "prenet") -> tuple[float, float]:
    """Return PSNR in dB and SSIM under one of PROTOCOLS; PSNR is infinite for equal images.

    Both (H, W, 3) uint8 RGB of one size, at least 11x11. Raises ValueError for others.
    """
    check_pair(derained, clean)
    if protocol == "prenet":
        return psnr_y(derained, clean), ssim_y(derained, clean)
    if protocol == "rgb":
        return psnr_rgb(derained, clean), ssim_rgb(derained, clean)
    images = np.stack([derained, clean]).astype(np.int64)
    if protocol == "full_range":
        first, second = images @ np.array([0.299, 0.587, 0.114])
    else:  # in integers, so that halves are rounded up as in MATLAB
        first, second = (images @ np.array([65481, 128553, 24966]) + 127_500) // 255_000 + 16.0
    return psnr(first, second, peak=255), ssim(first, second)


def compare(settings: Settings) -> None:
    """Match the images, score them, print the table and draw the figure."""
    if not settings.set:
        raise InputError("--set: name the test set, or a folder of pairs")
    folder = Path(settings.set)
    if settings.set in TEST_SETS:
        folder = Path("datasets/test") / settings.set
    pairs = find_pairs(folder, settings.clean_dir)
    label = identify_pairs(pairs)  # it also reads every pair, so misfits are found early
    names = [pair.rainy.stem for pair in pairs]
    drawn = settings.figure
    if drawn == ():
        drawn = names[0], names[len(names) // 2], names[-1]
    if drawn:
        check_folder(settings.out, "--out")
    for name in drawn or ():
        if name not in names:
            raise InputError(f"--figure {name}: no such image; {names[0]} is one")
    files = find_files(settings, pairs)

    protocols = list(PROTOCOLS) if settings.protocol == "all" else [settings.protocol]
    scores: dict[str, list] = {name: [] for name in files if name != "clean"}
    for i in tqdm(range(len(pairs)), leave=False, disable=None):
        images = read_scene(files, i, settings.crop_border)
        for method, rows in scores.items():
            rows.append([score(images[method], images["clean"], p) for p in protocols])
    columns = [f"{metric}_{protocol}" for protocol in protocols for metric in ("psnr", "ssim")]
    if settings.format == "csv":
        writer = csv.writer(sys.stdout, lineterminator="\n")
        writer.writerow(["method", "image", *columns])
        for method, rows in scores.items():
            for pair, row in zip(pairs, rows, strict=True):
                writer.writerow([method, pair.rainy.name, *np.ravel(row)])
    else:
        part = f"the part that all methods have, {settings.crop_border} pixels cropped at each side"
        notes = [f"{folder}: {label}, {len(pairs)} images, {part}"]
        notes += [f"{protocol}: {PROTOCOLS[protocol]}" for protocol in protocols]
        print(table(scores, columns, notes))
    if drawn:
        scenes = {}
        for name in drawn:
            scenes[name] = read_scene(files, names.index(name), settings.crop_border)
        write_figure(settings.out / "figure.png", scenes)
        write_figure(settings.out / "figure.pdf", scenes)
        note(f"{settings.out}: figure.png and figure.pdf are written")


def find_files(settings: Settings, pairs: Sequence[Pair]) -> Files:
    """Return all image files. Raises InputError for a method that can't be scored."""
    results: dict[str, list[Path]] = {}
    for text in settings.methods:
        name, _, folder = text.partition("=")
        if not name or not folder or name in ("rainy", "clean", *results):
            raise InputError(f"{text}: give each folder a name of its own, as NAME=FOLDER")
        results[name] = find_results(Path(folder), pairs, settings.common_size)
    if not results:
        raise InputError("no method to score: give result folders, as NAME=FOLDER")
    rainy, clean = [pair.rainy for pair in pairs], [pair.clean for pair in pairs]
    return {"rainy": rainy, **results, "clean": clean}  # type: ignore[dict-item]  # a set has both


def find_results(folder: Path, pairs: Sequence[Pair], common_size: bool) -> list[Path]:
    """Return a method's image of each pair. Raises InputError if one does not fit its pair."""
    matches = match_names(list_images(folder), [pair.rainy for pair in pairs])
    found = {rainy: path for path, rainy in matches.items()}
    counts = Counter(matches.values())
    for pair in pairs:
        if counts[pair.rainy] != 1:
            count = f"{counts[pair.rainy]} images for {pair.rainy.name}"
            raise InputError(f"{folder}: has {count} instead of one")
        path, image, clean = found[pair.rainy], read_rgb(found[pair.rainy]), read_rgb(pair.clean)
        missing = np.subtract(clean.shape, image.shape)
        if missing.min() < 0 or missing.max() > MAX_MISSING * common_size:
            sizes = f"{image.shape[1]}x{image.shape[0]}, not {clean.shape[1]}x{clean.shape[0]}"
            raise InputError(f"{path}: is {sizes} pixels; see --common_size and --clean_dir")
        if not shows(image, clean):
            raise InputError(f"{path}: does not seem to show {pair.clean}; check its name")
    return [found[pair.rainy] for pair in pairs]


def read_scene(files: Files, i: int, border: int) -> dict[str, np.ndarray]:
    """Return the images of pair i, cut to what all have, without `border` pixels at each side."""
    images = {name: read_rgb(paths[i]) for name, paths in files.items()}
    height, width, _ = np.min([image.shape for image in images.values()], axis=0) - border
    if border < 0 or min(height, width) < border + WINDOW:
        raise InputError(f"--crop_border {border}: leaves too little of {files['clean'][i]}")
    return {name: image[border:height, border:width] for name, image in images.items()}


def table(scores: Mapping[str, list], columns: Sequence[str], notes: list[str]) -> str:
    """Return means over the images in Markdown, below lines of notes."""
    values = np.array(list(scores.values()))  # (methods, images, protocols, 2)
    averaged = np.isfinite(values).all(axis=0)  # the same images for all methods
    averaged[:, ~averaged.any(axis=0)] = True  # infinite for every image: none is left out
    if not averaged.all():
        count = np.sum(~averaged.all(axis=(1, 2)))
        notes.append(f"PSNR is infinite for {count} images; its means leave them out.")
    lines = [*notes, "", f"|  | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for method, means in zip(scores, values.mean(axis=1, where=averaged), strict=True):
        line = "| " + method.replace("|", r"\|")
        for mean_psnr, mean_ssim in means:
            line += f" | {mean_psnr:.3f} | {mean_ssim:.4f}"
        lines.append(line + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(compare, Settings(), __doc__)
