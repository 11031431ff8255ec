"""Testing, read top to bottom: `evaluate` finds the images, derains them, scores them and reports.

evaluate(EvalSettings(data_path="my_photos", save_path="out"))          # own images
evaluate(EvalSettings(data_path="my/Rain12", save_path="out"), RAIN12)  # a test set
"""

import csv
import dataclasses
import io
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from derain import figure, page
from derain.cli import check_folder, setting, text_to_paths
from derain.images import (
    DecodedImage,
    network_input,
    network_output,
    read_image,
    read_rgb,
    write_image,
)
from derain.inference import Loader, derain_image, open_network, parse_tile, weights_file
from derain.pairs import Pair, find_pairs, find_rainy, list_images, rainy_file, read_pair
from derain.sets import TestSet, identify_pairs
from derain.synthesize import stand_in, synthetic_label
from derain.video import KEPT_CONTAINERS, derain_video, is_video
from networks import load_network
from SSIM import PROTOCOL, image_metrics
from utils import (
    InputError,
    choose_device,
    choose_precision,
    environment,
    sha256_of,
    write_atomically,
    write_json,
)

Scores = dict[str, float | None]  # by metric
METRICS = {"psnr_y": 3, "ssim_y": 4, "psnr_rgb": 3, "ssim_rgb": 4}  # with the digits in tables
Input = Pair | Path  # a pair of a test set, or an image or film of one's own


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """The images of a test, the weights, and the files that are written."""

    data_path: tuple[Path, ...] = setting(
        (), "images, films and folders of them; of a test set its folder", alias="rainy_dir"
    )
    clean_dir: Path | None = setting(None, "folder of the clean images, if not in --data_path")
    logdir: Path = setting(Path("logs/Rain100H"), "folder with net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for the results (default: results/NAME)")
    skip_existing: bool = setting(False, "keep results that are newer than input and weights")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "auto: bf16 where it is native", ("auto", "fp32", "bf16"))
    quantize: str = setting("round", "to 8 bits; the authors truncated", ("round", "truncate"))
    tile: str = setting("auto", "auto, off, or the side of exact tiles in pixels")
    page: bool = setting(True, "write index.html, every image with a before/after slider")
    figure: tuple[str, ...] | None = setting(None, "draw figure.png of images by name, or of three")
    crop: tuple[int, ...] | None = setting(None, "X Y SIZE: pixels that the figure enlarges")
    show_rain: bool = setting(False, "also write the rain removed from images, to rain/")
    recursive: bool = setting(False, "own images: take subfolders, too; results keep them")
    suffix: str = setting("", "own images: added to their names, such as _derained")
    format: str = setting("png", "own images: how they are saved", ("png", "jpg", "webp"))
    quality: int = setting(95, "of jpg and webp, 1 to 100")
    out: Path | None = setting(None, "the file for a single image or film, instead of a folder")
    codec: str = setting("libx264", "of films, in FFmpeg's words")
    crf: int = setting(17, "quality of films: 0 is the best, 51 the worst")
    start: float = setting(0.0, "second of a film to start at")
    duration: float | None = setting(None, "seconds of a film to derain (default: all)")

    def __post_init__(self) -> None:
        text_to_paths(self)
        if isinstance(self.data_path, Path):  # one path will do in Python
            object.__setattr__(self, "data_path", (self.data_path,))


def evaluate(
    settings: EvalSettings, test_set: TestSet | None = None, load: Loader = load_network
) -> None:
    """Derain a test set, or own images and films (test_set None); write the results, then print.

    load: makes a network from a weights file. Writes a result per input under its name,
    sources.json, results.csv, results.json and, if asked to, index.html, figure.png and rain/.

    Raises InputError for anything wrong with images, weights or settings. An unreadable image ends
    the run of a test set; of own images it is reported and skipped, and the error comes at the end.
    """
    check_settings(settings, test_set)
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    tile = parse_tile(settings.tile)
    weights = weights_file(settings.logdir)
    checksum = sha256_of(weights)  # now, because a training may replace the file meanwhile
    network = open_network(weights, device, precision, load)

    inputs, label, folder = find_inputs(settings, test_set)
    names = name_results(settings, folder, inputs)
    note(f"{label}: {len(inputs)} files, weights {weights}, {device} {precision}")

    rows: list[dict[str, Any]] = []
    scores: list[Future] = []
    errors: list[str] = []
    # While the network derains an image, another thread scores the one before, as it was saved.
    with ThreadPoolExecutor(1) as pool, tqdm(total=len(inputs), unit="file") as bar:

        def show_tiles(done: int, total: int) -> None:
            bar.set_postfix_str(f"{name}, tile {done} of {total}")

        def derain(rgb: np.ndarray) -> np.ndarray:
            return derain_image(network, rgb, tile, settings.quantize, show_tiles)

        for item, name in zip(inputs, names, strict=True):
            bar.set_postfix_str(name)
            source, milliseconds = rainy_file(item), None
            try:
                if not (settings.skip_existing and is_newer(folder / name, source, weights)):
                    milliseconds = derain_file(settings, item, folder, name, derain)
            except (InputError, ValueError) as error:
                text = str(error) if isinstance(error, InputError) else f"{source}: {error}"
                if test_set:  # a mean over the other images would pass for the set's
                    raise InputError(text) from error
                errors.append(text)
                note(f"skipped: {text}")
            else:
                rows.append({"data_set": label, "image": name, "milliseconds": milliseconds})
                scores.append(pool.submit(measure, item, folder / name))
            bar.update()
    for row, future in zip(rows, scores, strict=True):
        row |= future.result()

    if rows and not settings.out:
        about = {"weights": {"path": weights, "sha256": checksum}, "errors": errors}
        about |= {"settings": dataclasses.asdict(settings), "environment": environment(device)}
        report(settings, test_set, folder, dict(zip(names, inputs, strict=True)), rows, about)
    print(f"{len(rows)} results in {settings.out or folder}")
    if errors:
        raise InputError(f"{len(errors)} of {len(inputs)} files failed; see the lines above")


def note(text: str) -> None:
    """Print what is no result, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def derain_file(
    settings: EvalSettings, item: Input, folder: Path, name: str, derain: Callable
) -> float | None:
    """Derain an image or a film and write it; return the milliseconds that an image took.

    derain: (H, W, 3) uint8 or uint16 RGB -> the same.
    """
    source = rainy_file(item)
    if is_video(source):
        film = (settings.codec, settings.crf, settings.start, settings.duration)
        derain_video(source, folder / name, derain, *film)
        return None
    rainy = DecodedImage(read_pair(item)[0]) if isinstance(item, Pair) else read_image(item)
    if rainy.frames > 1:
        note(f"{source}: the first of {rainy.frames} frames or pages; the others are left out")
    began = time.perf_counter()
    derained = derain(network_input(rainy))
    if isinstance(item, Path):  # a test set's images are scored as the network made them
        derained = network_output(rainy, derained).rgb
    milliseconds = round(1000 * (time.perf_counter() - began), 1)
    write_image(folder / name, dataclasses.replace(rainy, rgb=derained), settings.quality)
    if settings.show_rain:
        rain = cv2.subtract(rainy.rgb, derained)  # clipped at 0
        write_image(folder / "rain" / name, DecodedImage(rain, grey=rainy.grey), settings.quality)
    return milliseconds


def measure(item: Input, output: Path) -> dict[str, float]:
    """Return the scores of a saved image and of its rainy input; none without a clean image."""
    if isinstance(item, Path):
        return {}
    rainy, clean = read_pair(item)
    try:
        scores = image_metrics(read_rgb(output), clean)
        for metric, value in image_metrics(rainy, clean).items():
            scores[f"input_{metric}"] = value
    except ValueError as error:  # smaller than SSIM's window
        raise InputError(f"{item.rainy}: {error}; remove the pair") from error
    return scores


def is_newer(output: Path, source: Path, weights: Path) -> bool:
    """Tell whether a result is there and newer than its input and the weights."""
    if not output.exists():
        return False
    return output.stat().st_mtime > max(source.stat().st_mtime, weights.stat().st_mtime)


# ---------------------------------------------------------------- inputs, and names of results


def check_settings(settings: EvalSettings, test_set: TestSet | None) -> None:
    """Raise InputError for settings that are out of range or don't go together."""
    if not 1 <= settings.quality <= 100:
        raise InputError(f"--quality {settings.quality}: must be from 1 to 100")
    if test_set is None and settings.clean_dir:
        raise InputError("--clean_dir: is for measuring; use a script such as test_Rain100H.py")
    if settings.clean_dir and not settings.data_path:
        raise InputError("--clean_dir: add --data_path, the folder of the rainy images")
    if test_set and (settings.suffix or settings.out or settings.format != "png"):
        raise InputError("--suffix, --format and --out: are for own images, in test_real.py")
    if test_set and len(settings.data_path) > 1:
        raise InputError(f"--data_path: {test_set.name} takes one folder of pairs")
    if settings.out and not (len(settings.data_path) == 1 and settings.data_path[0].is_file()):
        raise InputError("--out: takes a single file in --data_path; use --save_path for more")
    formats = (".png", ".jpg", ".jpeg", ".webp")
    if settings.out and settings.out.suffix.lower() not in formats and not is_video(settings.out):
        raise InputError(f"--out {settings.out}: images are saved as .png, .jpg or .webp")


def find_inputs(settings: EvalSettings, test_set: TestSet | None) -> tuple[list[Input], str, Path]:
    """Return the inputs, what tables call them, and the folder for their results."""
    name, rain = (test_set.name, test_set.rain) if test_set else ("real", "heavy")
    paths = settings.data_path
    if not paths and Path("datasets/test", name).is_dir():
        paths = (Path("datasets/test", name),)
    elif not paths:
        missing = f"datasets/test/{name} is missing (where to get it: datasets/README.md)"
        note(f"{missing}: using synthetic {rain} rain, whose scores are not those of {name}")
        paths = (stand_in(rain),)
    inputs: list[Input] = []
    if test_set:
        inputs += find_pairs(paths[0], note, settings.clean_dir)
        label = label_of(test_set, paths[0], inputs)
        if label != name:
            name = paths[0].resolve().name
    folder = settings.save_path or Path("results", name)
    if not test_set:
        for path in paths:
            inputs += own_files(path, settings.recursive, folder)
        if not inputs:
            raise InputError(f"{paths[0]}: holds no image and no film")
        inputs = list(dict.fromkeys(inputs))
        label = synthetic_label(inputs[0].parent) or "own images"
    if settings.out:
        folder = settings.out.parent
    check_folder(folder)
    return inputs, label, folder


def label_of(test_set: TestSet, folder: Path, pairs: Sequence[Pair]) -> str:
    """Return what tables call pairs: the test set's name only if they are all of it, exactly."""
    synthetic = synthetic_label(pairs[0].rainy.parent)
    if synthetic:
        return f"{synthetic}, not {test_set.name}"
    found = identify_pairs(pairs)
    if found.name == test_set.name:
        return found.label
    return f"{folder.resolve().name} ({found.label}), not {test_set.name}"


def own_files(path: Path, recursive: bool, results: Path) -> list[Path]:
    """Return the images and films at a path: a file, a folder, or a pattern such as *.jpg.

    recursive: also those of its subfolders, but links, hidden ones and `results`.
    """
    files: list[Path] = []
    if not path.exists():
        for match in sorted(path.parent.glob(path.name)):  # Windows leaves *.jpg as it is
            files += find_rainy(match)
    if files or not path.is_dir():
        return files or find_rainy(path)
    children = sorted(child for child in path.iterdir() if child.name[0] != ".")
    files += [child for child in children if is_video(child)]
    if not recursive:
        if list_images(path) or not files:
            files += find_rainy(path)  # of a data set the rainy images alone
        return files
    files += list_images(path)
    for child in children:
        if child.is_dir() and not child.is_symlink() and child.resolve() != results.resolve():
            files += own_files(child, recursive, results)
    return files


def name_results(settings: EvalSettings, folder: Path, inputs: Sequence[Input]) -> list[str]:
    """Return the names of the results in `folder`: their inputs' with a new suffix.

    Two inputs of one name get their folders' names or their suffixes added. sources.json keeps
    which result is of which input, so that none replaces that of another input, in a later run
    either; a test set's are replaced.

    Raises InputError if the folder holds other files, or if a result would replace an input.
    """
    record = folder / "sources.json"
    sources: dict[str, str] = {}
    if record.exists():
        sources = json.loads(record.read_text(encoding="utf-8"))
    elif not settings.out and any(folder.glob("[!.]*")):
        raise InputError(f"{folder}: holds files that are not results; choose another --save_path")
    counts = Counter(name for item in inputs for name in possible_names(settings, item))
    names = []
    for item in inputs:
        source = os.path.realpath(rainy_file(item))
        for name in possible_names(settings, item):
            free = name not in sources and not (folder / name).exists()
            if counts[name] == 1 and (free or sources.get(name) == source):
                break
        sources[name] = source
        names.append(name)
    if settings.out:
        names = [settings.out.name]
    figure.check_figure(settings.figure, settings.crop, names)

    written = [folder / name for name in (*names, "figure.png")]
    if settings.show_rain:
        written += [folder / "rain" / name for name in names]
    taken = {os.path.realpath(rainy_file(item)).casefold() for item in inputs}
    taken |= {os.path.realpath(item.clean).casefold() for item in inputs if isinstance(item, Pair)}
    for path in written:
        place = os.path.realpath(path).casefold()
        if place in taken:
            raise InputError(f"{path}: is an input or another result; choose another --save_path")
        taken.add(place)
    if not settings.out:
        write_json(record, sources)
    return names


def possible_names(settings: EvalSettings, item: Input) -> list[str]:
    """Return names for the result of an input, the simplest first."""
    path = rainy_file(item)
    if isinstance(item, Pair):
        return [f"{path.stem}.png"]
    place = Path()
    for folder in settings.data_path:
        if settings.recursive and folder in path.parents:
            place = path.parent.relative_to(folder)
    ending = f".{settings.format}"
    if is_video(path):
        ending = path.suffix if path.suffix.lower() in KEPT_CONTAINERS else ".mp4"
    parts = path.parent.resolve().parts
    stems = (path.stem, f"{parts[-1]}_{path.stem}", path.name, "_".join((*parts[1:], path.name)))
    return [(place / f"{stem}{settings.suffix}{ending}").as_posix() for stem in stems]


# ---------------------------------------------------------------- reports


def report(
    settings: EvalSettings,
    test_set: TestSet | None,
    folder: Path,
    inputs: dict[str, Input],
    rows: list[dict[str, Any]],
    about: dict[str, Any],
) -> None:
    """Write results.csv, results.json, index.html and figure.png; print the table of means.

    inputs: by the names of their results. about: for results.json, besides the scores.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(folder / "results.csv", text.getvalue())

    label, means, table = rows[0]["data_set"], {}, ""
    if test_set:
        numbers = [inputs[row["image"]].number for row in rows]
        means = table_of_means(test_set, label, numbers, rows)
        table = f"{label}, {len(rows)} pairs ({PROTOCOL})\n{as_text(means)}\n"
        about["protocol"] = PROTOCOL
        equal = sum(math.isinf(row["psnr_y"]) for row in rows)
        if equal:
            table += f"{equal} images equal their clean ones; PSNR is the mean over the others\n"
    about["data_set"] = {"name": label, "images": len(rows)}
    write_json(folder / "results.json", {**about, "means": means})
    items = []
    for row in rows:
        if not is_video(folder / row["image"]):
            items.append(page_item(inputs[row["image"]], folder, row))
    if settings.page and items:
        subtitle = f"{len(items)} images, weights {about['weights']['path']}."
        page.write_page(folder, label, subtitle, table, items, "rainy", "derained")
    if settings.figure is not None and items:
        draw_figure(folder / "figure.png", settings.figure, settings.crop, items)
    if table:
        print(table)


def draw_figure(
    path: Path, names: Sequence[str], crop: Sequence[int] | None, items: Sequence[page.Item]
) -> None:
    """Draw the images that --figure names, or those of largest, median and smallest gain."""
    by_name = {item.name: item for item in items}
    gains = {item.name: item.gain("rainy", "derained") for item in items if item.scores}
    rows = []
    for name in figure.choose_images(list(by_name), names, gains):
        images = {version: read_rgb(file) for version, file in by_name[name].files.items()}
        clean = images.pop("clean", None)
        title = f"{name}, {gains[name]:+.2f} dB" if name in gains else name
        rows.append(figure.Row(title, images, clean))
    figure.write_figure(path, rows, crop)


def page_item(item: Input, folder: Path, row: dict[str, Any]) -> page.Item:
    """Return what the page shows of an image."""
    files = {"rainy": rainy_file(item), "derained": folder / row["image"]}
    if isinstance(item, Path):
        return page.Item(row["image"], files)
    files["clean"] = item.clean
    rainy = (row["input_psnr_y"], row["input_ssim_y"])
    derained = (row["psnr_y"], row["ssim_y"])
    return page.Item(row["image"], files, {"rainy": rainy, "derained": derained})


def table_of_means(
    test_set: TestSet, label: str, numbers: Sequence[int | None], rows: Sequence[dict[str, Any]]
) -> dict[str, Scores]:
    """Return mean scores by line: rainy input, this run, its unseen images, the authors' images.

    numbers: those of the images. Only the whole test set is compared with its authors' scores.
    """
    if label != test_set.name:
        return {f"rainy input ({label})": mean(rows, "input_"), f"this run ({label})": mean(rows)}
    lines = {"rainy input": mean(rows, "input_"), "this run": mean(rows)}
    pairs = zip(numbers, rows, strict=True)
    unseen = [row for number, row in pairs if number in test_set.unseen]
    if unseen:
        lines[f"this run, {len(unseen)} images RainTrainL lacks"] = mean(unseen)
    if test_set.reference:
        lines["authors' released images"] = dict(zip(METRICS, test_set.reference, strict=False))
    return lines


def mean(rows: Sequence[dict[str, Any]], prefix: str = "") -> Scores:
    """Return the mean of each metric, without infinite PSNRs of images equal to the clean ones."""
    means: Scores = {}
    for metric in METRICS:
        values = [row[prefix + metric] for row in rows]
        finite = [value for value in values if math.isfinite(value)]
        means[metric] = float(np.mean(finite or values))
    return means


def as_text(means: dict[str, Scores]) -> str:
    """Return mean scores as a table for the terminal."""
    width = max(map(len, means))
    lines = [" " * width + "".join(f"{metric.upper():>10}" for metric in METRICS)]
    for name, scores in means.items():
        line = f"{name:<{width}}"
        for metric, digits in METRICS.items():
            score = scores.get(metric)
            line += f"{'-':>10}" if score is None else f"{score:>10.{digits}f}"
        lines.append(line)
    return "\n".join(lines)
