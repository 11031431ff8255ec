"""Testing, read top to bottom: `evaluate` finds the images, derains them, scores them and reports.

evaluate(EvalSettings((Path("my_photos"),), save_path=Path("out"), logdir=Path("logs/real")))
"""

import dataclasses
import glob
import hashlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from derain import images, report
from derain.cli import check_folder, setting
from derain.frames import KEPT_CONTAINERS, is_video
from derain.inference import Loader, derain_image, is_foldable, load_weights, optimize, weights_file
from derain.pairs import Pair, find_pairs, list_images
from derain.sets import TestSet, identify_pairs
from derain.synthesize import stand_in, synthetic_label
from derain.video import derain_video
from networks import load_network
from SSIM import PROTOCOL, image_metrics
from utils import InputError, choose_device, choose_precision, environment, note, write_json

CODECS = ("libx264", "libx265", "libvpx-vp9", "ffv1")  # others ignore crf, or lose the range


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """Inputs, weights and outputs of a test run."""

    data_path: tuple[Path, ...] = setting(
        (), "images, videos, folders; a test set's folder", names=["--data_path", "--rainy_dir"]
    )
    clean_dir: Path | None = setting(None, "test sets: folder of the clean images")
    logdir: Path = setting(Path("logs/Rain100H"), "folder with net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for the results (default: results/NAME)")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "auto: bf16 where it is native", ("auto", "fp32", "bf16"))
    quantize: str = setting("round", "rounding mode; the authors truncated", ("round", "truncate"))
    tile: int | None = setting(None, "side of exact tiles in pixels; 0: none (default: by size)")
    page: bool = setting(True, "write index.html, images with a before/after slider")
    format: str = setting("png", "test_real.py: file format of the results", ("png", "jpg", "webp"))
    quality: int = setting(95, "test_real.py: quality of jpg and webp, 1 to 100")
    out: Path | None = setting(None, "test_real.py: the file for a single image or video")
    codec: str = setting("libx264", "videos: encoder; ffv1 is lossless", CODECS)
    crf: int = setting(17, "videos: quality, 0 is the best, 51 the worst")
    start: float = setting(0.0, "videos: second to start at")
    duration: float | None = setting(None, "videos: seconds to derain (default: all)")


def evaluate(
    settings: EvalSettings, test_set: TestSet | None = None, load: Loader = load_network
) -> None:
    """Derain a test set, or any images and videos (test_set None); write results, print the table.

    load: makes a network from a weights file. Writes a result per input under its name,
    sources.json, results.csv, results.json and, unless page is False, index.html.

    Raises InputError for anything wrong with images, weights or settings. An unreadable image
    stops a test set; among other images it is reported and skipped, and the run ends with an error.
    """
    check_settings(settings, test_set)
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    weights = weights_file(settings.logdir)
    # The checksum is taken now, because a training may replace the file meanwhile.
    checksum = hashlib.sha256(weights.read_bytes()).hexdigest()
    network = load_weights(weights, load).to(device)
    if not is_foldable(network):
        precision = "fp32"
        note(f"{type(network).__name__} runs as it is written, in float32, without folding")
    network = optimize(network, precision)
    derain_rgb = partial(derain_image, network, tile=settings.tile, quantization=settings.quantize)

    inputs, label, folder = find_inputs(settings, test_set)
    sources = [pair.rainy for pair in inputs]
    names = result_names(sources, settings.format)
    if settings.out:
        folder, names = settings.out.parent, [settings.out.name]
        check_folder(folder, "--out")
    else:
        check_folder(folder)
        record_sources(folder, names, sources)
    note(f"{label}: {len(inputs)} files, weights {weights}, {device} {precision}")

    results, errors = list[report.Result](), list[str]()
    with tqdm(inputs, unit="file") as bar:
        for pair, name in zip(bar, names, strict=True):
            bar.set_postfix_str(name)
            source, output = pair.rainy, folder / name
            result = report.Result(name, {"rainy": source, "derained": output})
            try:
                result.milliseconds = derain_file(settings, pair, output, derain_rgb)
                if pair.clean:
                    rainy, clean = map(images.read_rgb, (source, pair.clean))  # sizes are equal
                    result.files["clean"] = pair.clean
                    result.before = image_metrics(rainy, clean)
                    result.after = image_metrics(images.read_rgb(output), clean)
            except (InputError, ValueError) as error:
                text = str(error) if isinstance(error, InputError) else f"{source}: {error}"
                if test_set:  # the mean of the others would be taken for the set's score
                    raise InputError(text) from error
                errors.append(text)
                note(f"skipped: {text}")
                continue
            if not is_video(source):
                results.append(result)

    if results and not settings.out:
        about = {"weights": {"path": weights, "sha256": checksum}, "errors": errors}
        about |= {"settings": dataclasses.asdict(settings) | {"precision": precision}}
        about |= {"environment": environment(device)}
        table = report.write_tables(folder, label, test_set, results, about)
        if settings.page:
            report.write_page(folder, label, table, results)
        if table:
            print(f"{label}, {len(results)} pairs ({PROTOCOL})\n{table}")
    print(f"{len(inputs) - len(errors)} of {len(inputs)} files derained: {settings.out or folder}")
    if errors:
        raise InputError(f"{len(errors)} of {len(inputs)} files failed; see the lines above")


def derain_file(
    settings: EvalSettings, pair: Pair, output: Path, derain_rgb: Callable
) -> float | None:
    """Derain an image or a video and write it; return the milliseconds that an image took.

    derain_rgb: (H, W, 3) uint8 or uint16 RGB -> the same.
    """
    source = pair.rainy
    if is_video(source):
        part = (settings.start, settings.duration)
        derain_video(source, output, derain_rgb, settings.codec, settings.crf, *part)
        return None
    image = images.read_image(source)
    if image.frames > 1:
        note(f"{source}: the first of {image.frames} frames or pages is taken")
    if pair.clean:  # a test set is scored as 8-bit RGB
        image = images.DecodedImage(images.to_8_bits(image.rgb))
    began = time.perf_counter()
    derained = derain_rgb(image.rgb)
    milliseconds = round(1000 * (time.perf_counter() - began), 1)
    result = images.DecodedImage(derained)  # scores are of the network's own output
    if not pair.clean:
        result = images.like_input(image, derained)
    images.write_image(output, result, settings.quality)
    return milliseconds


def check_settings(settings: EvalSettings, test_set: TestSet | None) -> None:
    """Raise InputError for settings that are out of range or don't go together."""
    if not (0 <= settings.crf <= 51 and 1 <= settings.quality <= 100):
        raise InputError("--crf takes 0 to 51, --quality 1 to 100")
    if settings.tile and settings.tile < 16:
        raise InputError(f"--tile {settings.tile}: takes at least 16 pixels, or 0 for none")
    if settings.start < 0 or (settings.duration is not None and settings.duration <= 0):
        raise InputError("--start takes seconds from 0 on, --duration more than 0")
    if settings.clean_dir and not (test_set and settings.data_path):
        raise InputError("--clean_dir: needs --data_path, and a script such as test_Rain100H.py")
    for_photos = settings.out or settings.start or settings.duration or settings.format != "png"
    if test_set and (for_photos or len(settings.data_path) > 1):
        only = "several --data_path, --format, --out, --start and --duration are for test_real.py"
        raise InputError(f"{test_set.name} is one folder of pairs: {only}")
    if settings.out:
        if len(settings.data_path) != 1 or not settings.data_path[0].is_file():
            raise InputError("--out: takes a single file in --data_path; use --save_path for more")
        if settings.out.resolve() == settings.data_path[0].resolve():
            raise InputError(f"--out {settings.out}: would replace the input")
        formats = (".png", ".jpg", ".jpeg", ".webp")
        if is_video(settings.data_path[0]):
            formats = KEPT_CONTAINERS
        if settings.out.suffix.lower() not in formats:
            raise InputError(f"--out {settings.out}: must end with {', '.join(formats)}")


def find_inputs(settings: EvalSettings, test_set: TestSet | None) -> tuple[list[Pair], str, Path]:
    """Return the inputs, their label in tables, and the folder for their results.

    The label is the set's name only if the pairs are the complete, unmodified set.
    """
    name, rain = (test_set.name, test_set.rain) if test_set else ("real", "heavy")
    paths = settings.data_path or (default_folder(name, rain),)
    if test_set:
        inputs = find_pairs(paths[0], settings.clean_dir)
        label = identify_pairs(inputs)
        if name not in label:
            label += f", not {name}"
        if label != name:
            name = paths[0].resolve().name
    else:
        files = [file for path in paths for file in files_at(path)]
        if not files:
            raise InputError(f"{paths[0]}: holds no image and no video")
        inputs = list(map(Pair, {file.absolute(): file for file in files}.values()))
        label = synthetic_label(inputs[0].rainy.parent) or "your images"
    return inputs, label, settings.save_path or Path("results", name)


def default_folder(name: str, rain: str) -> Path:
    """Return the set's usual folder; if it is missing, a synthetic stand-in, and say so."""
    folder = Path("datasets/test", name)
    if folder.is_dir():
        return folder
    if name == "real":
        note(f"no --data_path: a demonstration on synthetic {rain} rain")
        return stand_in(rain) / "rainy"
    missing = f"{folder} is missing (where to get it: datasets/README.md)"
    note(f"{missing}: using synthetic {rain} rain, whose scores are not those of {name}")
    return stand_in(rain)


def files_at(path: Path) -> list[Path]:
    """Return the images and videos at a path: a file, a folder, or a pattern such as *.jpg."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        # The shell of Windows doesn't expand patterns. If none matches, list_images says so.
        matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207
        return [match for match in matches if not match.is_dir()] or list_images(path)
    children = {child for child in path.iterdir() if child.name[0] != "."}
    files = sorted(filter(is_video, children)) + list_images(path)
    others = children.difference(files)
    if others:
        note(f"{path}: {len(others)} other files and folders are left out")
    return files


def result_names(sources: Sequence[Path], image_format: str) -> list[str]:
    """Return the names of the results: those of the inputs, with new suffixes.

    Inputs whose names repeat keep their folders and suffixes, too (monday/a.jpg.png).
    """
    files = [Path(os.path.normpath(source.absolute())) for source in sources]
    shared = os.path.commonpath([file.parent for file in files])
    counts = Counter(file.stem.casefold() for file in files)
    names = []
    for file in files:
        name = file.stem
        if counts[name.casefold()] > 1:
            name = file.relative_to(shared).as_posix()
        suffix = f".{image_format}"
        if is_video(file):
            suffix = file.suffix if file.suffix.lower() in KEPT_CONTAINERS else ".mp4"
        names.append(name + suffix)
    return names


def record_sources(folder: Path, names: Sequence[str], sources: Sequence[Path]) -> None:
    """Add to sources.json in the results folder which input each file there comes from.

    names: the files, in the sources' order. Raises InputError if one would replace a file that
    comes from another input, or that is no result.
    """
    record, recorded = folder / "sources.json", dict[str, str]()
    if record.exists():
        try:
            recorded = dict(json.loads(record.read_text(encoding="utf-8")))
        except (TypeError, ValueError) as error:
            raise InputError(f"{record}: damaged; choose another --save_path") from error
    elif any(folder.glob("[!.]*")):
        raise InputError(f"{folder}: holds other files than results; choose another --save_path")
    for name, source in zip(names, map(os.path.realpath, sources), strict=True):
        if (folder / name).exists():
            recorded.setdefault(name, "another program")
        if recorded.setdefault(name, source) != source:
            what = f"would be the result of {recorded[name]} and of {source}"
            raise InputError(f"{folder / name}: {what}; choose another --save_path")
    write_json(record, recorded)
