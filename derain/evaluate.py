"""Testing, read top to bottom: `evaluate` finds the images, derains them, scores them and reports.

evaluate(EvalSettings(data_path="my_photos", save_path="out"))          # own images
evaluate(EvalSettings(data_path="my/Rain12", save_path="out"), RAIN12)  # a test set
"""

import dataclasses
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from derain.cli import check_folder, setting, text_to_paths
from derain.figure import check_figure
from derain.images import (
    DecodedImage,
    network_input,
    network_output,
    read_image,
    read_rgb,
    write_image,
)
from derain.inference import Loader, derain_image, open_network, parse_tile, weights_file
from derain.pairs import Pair, find_pairs, list_images, rainy_file, read_pair
from derain.results import Result, draw_figure, record_sources, write_results
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
)


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
    names = result_names(settings, inputs)
    check_figure(settings.figure, names)
    results = [Result(name, item) for name, item in zip(names, inputs, strict=True)]
    record_outputs(settings, folder, results)
    note(f"{label}: {len(inputs)} files, weights {weights}, {device} {precision}")

    done: list[Result] = []
    scores: list[Future] = []
    errors: list[str] = []
    # While the network derains an image, another thread scores the one before, as it was saved.
    with ThreadPoolExecutor(1) as pool, tqdm(results, unit="file") as bar:

        def derain(rgb: np.ndarray) -> np.ndarray:
            return derain_image(network, rgb, tile, settings.quantize)

        for result in bar:
            bar.set_postfix_str(result.name)
            output = folder / result.name
            try:
                if not (settings.skip_existing and is_newer(output, result.source, weights)):
                    result.milliseconds = derain_file(settings, folder, result, derain)
            except (InputError, ValueError) as error:
                text = str(error) if isinstance(error, InputError) else f"{result.source}: {error}"
                if test_set:  # a mean over the other images would pass for the set's
                    raise InputError(text) from error
                errors.append(text)
                note(f"skipped: {text}")
            else:
                done.append(result)
                scores.append(pool.submit(measure, result.item, output))
    for result, future in zip(done, scores, strict=True):
        result.scores = future.result()

    images = [result for result in done if not is_video(result.source)]
    if images and not settings.out:
        about = {"weights": {"path": weights, "sha256": checksum}, "errors": errors}
        about |= {"settings": dataclasses.asdict(settings), "environment": environment(device)}
        table = write_results(folder, label, test_set, images, about, settings.page)
        if settings.figure is not None:
            draw_figure(folder, images, settings.figure)
        if table:
            print(f"{label}, {len(images)} pairs ({PROTOCOL})\n{table}")
    print(f"{len(done)} results in {settings.out or folder}")
    if errors:
        raise InputError(f"{len(errors)} of {len(inputs)} files failed; see the lines above")


def note(text: str) -> None:
    """Print what is no result, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def derain_file(
    settings: EvalSettings, folder: Path, result: Result, derain: Callable
) -> float | None:
    """Derain an image or a film and write it; return the milliseconds that an image took.

    derain: (H, W, 3) uint8 or uint16 RGB -> the same.
    """
    output = folder / result.name
    if is_video(result.source):
        film = (settings.codec, settings.crf, settings.start, settings.duration)
        derain_video(result.source, output, derain, *film)
        return None
    paired = isinstance(result.item, Pair)
    rainy = DecodedImage(read_pair(result.item)[0]) if paired else read_image(result.source)
    if rainy.frames > 1:
        note(f"{result.source}: the first of {rainy.frames} frames or pages is taken")
    began = time.perf_counter()
    derained = derain(network_input(rainy))
    if not paired:  # a test set's images are scored as the network made them
        derained = network_output(rainy, derained).rgb
    milliseconds = round(1000 * (time.perf_counter() - began), 1)
    write_image(output, dataclasses.replace(rainy, rgb=derained), settings.quality)
    if settings.show_rain:
        rain = DecodedImage(cv2.subtract(rainy.rgb, derained), grey=rainy.grey)  # clipped at 0
        write_image(folder / "rain" / result.name, rain, settings.quality)
    return milliseconds


def measure(item: Pair | Path, output: Path) -> dict[str, float]:
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
    if settings.out:
        if len(settings.data_path) != 1 or not settings.data_path[0].is_file():
            raise InputError("--out: takes a single file in --data_path; use --save_path for more")
        if settings.out.resolve() == settings.data_path[0].resolve():
            raise InputError(f"--out {settings.out}: would replace the input")
        formats = (".png", ".jpg", ".jpeg", ".webp")
        if not is_video(settings.data_path[0]) and settings.out.suffix.lower() not in formats:
            raise InputError(f"--out {settings.out}: images are saved as .png, .jpg or .webp")


def find_inputs(
    settings: EvalSettings, test_set: TestSet | None
) -> tuple[list[Pair | Path], str, Path]:
    """Return the inputs, what tables call them, and the folder for their results."""
    name, rain = (test_set.name, test_set.rain) if test_set else ("real", "heavy")
    paths = settings.data_path
    if not paths and Path("datasets/test", name).is_dir():
        paths = (Path("datasets/test", name),)
    elif not paths:
        missing = f"datasets/test/{name} is missing (where to get it: datasets/README.md)"
        note(f"{missing}: using synthetic {rain} rain, whose scores are not those of {name}")
        paths = (stand_in(rain),)
    inputs: list[Pair | Path] = []
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
    if path.is_file():
        return [path]
    if not path.exists():
        for match in sorted(path.parent.glob(path.name)):  # Windows leaves *.jpg as it is
            if match != path:  # or a link to nothing
                files += own_files(match, recursive, results)
        if files:
            return files
    images = list_images(path)
    children = sorted(child for child in path.iterdir() if child.name[0] != ".")
    files += [child for child in children if is_video(child)]
    files += images
    if not recursive:
        others = set(children).difference(files)
        if others:
            note(f"{path}: {len(others)} other files and folders are left out")
        return files
    for child in children:
        if child.is_dir() and not child.is_symlink() and child.resolve() != results.resolve():
            files += own_files(child, recursive, results)
    return files


def result_names(settings: EvalSettings, inputs: Sequence[Pair | Path]) -> list[str]:
    """Return the names of the results: those of the inputs, with new suffixes.

    If names repeat, and with --recursive, results keep their inputs' folders; if names repeat even
    so, they keep the suffixes, too (a.jpg.png).
    """
    if settings.out:
        return [settings.out.name]
    files = [Path(os.path.normpath(rainy_file(item).absolute())) for item in inputs]
    stems = [file.stem for file in files]
    if settings.recursive or len({stem.casefold() for stem in stems}) < len(stems):
        folders = [path.absolute() for path in settings.data_path if path.is_dir()]
        folders += [file.parent for file in files]
        root = os.path.commonpath([os.path.normpath(folder) for folder in folders])
        stems = [file.relative_to(root).with_suffix("").as_posix() for file in files]
    counts = Counter(stem.casefold() for stem in stems)
    names = []
    for stem, file in zip(stems, files, strict=True):
        if counts[stem.casefold()] > 1:
            stem += file.suffix
        ending = f".{settings.format}"
        if is_video(file):
            ending = file.suffix if file.suffix.lower() in KEPT_CONTAINERS else ".mp4"
        names.append(f"{stem}{settings.suffix}{ending}")
    return names


def record_outputs(settings: EvalSettings, folder: Path, results: Sequence[Result]) -> None:
    """Record which files will be written for which inputs. Raises as record_sources does."""
    if settings.out:
        return
    outputs = [(result.name, result.source) for result in results]
    if settings.show_rain:
        outputs += [(f"rain/{result.name}", result.source) for result in results]
    if settings.figure is not None:
        outputs.append(("figure.png", folder / "figure.png"))
    record_sources(folder, outputs)
