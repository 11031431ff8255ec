"""Testing, read top to bottom: `evaluate` finds the images, derains them, measures them, and writes what came out.

An image becomes a row of the table in `write_and_measure`.
"""

from __future__ import annotations

import dataclasses
import errno
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from derain import figure, page
from derain.cli import check_folder, setting
from derain.data.pairs import Pair, find_pairs, rainy_file, read_pair
from derain.data.synthesize import synthetic_label
from derain.inference import Loader, derain_image, open_network, parse_tile, weights_file
from derain.inputs import default_data, find_images, label_of
from derain.results import MadeWith, OutputPaths, identical, output_paths, summary_lines, table, write_results
from derain.test_sets import TestSet
from derain.video import derain_video, is_video
from networks import load_network
from SSIM import PROTOCOL, image_metrics
from utils import (
    DecodedImage,
    InputError,
    choose_device,
    choose_precision,
    environment,
    grey_mean,
    keep_freed_memory,
    read_image,
    sha256_of,
    write_image,
)


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What a test script measures, and with which weights."""

    data_path: Path | None = setting(None, "an image, a folder of images or of pairs, or a video (default: the set's)")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/NAME)")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "fp32", "arithmetic of the network; auto: bf16 where it is native", ("auto", "fp32", "bf16")
    )
    quantize: str = setting("round", "how values become 8-bit; the authors truncated", ("round", "truncate"))
    skip_existing: bool = setting(False, "keep images that an earlier run with the same weights and settings derained")
    page: bool = setting(True, "write index.html, every image with a before/after slider")
    figure: tuple[str, ...] | None = setting(
        None, "draw figure.png: images by name, or without names those of median, largest and smallest gain"
    )
    crop: tuple[int, ...] | None = setting(
        None, "X Y SIZE: left, top, width (pixels) of the figure's crop, half as high"
    )
    tile: str = setting("auto", "auto (by free memory), off, or the side of exact tiles in pixels")
    recursive: bool = setting(False, "own images: include all subfolders; results keep the subfolders")
    show_rain: bool = setting(False, "also write the removed rain, rainy - derained clipped at 0, to rain/")
    codec: str = setting("libx264", "of a video, in FFmpeg's words")
    crf: int = setting(17, "quality of a video: 0 is the best, 51 the worst")
    start: float = setting(0.0, "second of a video to start at")
    duration: float | None = setting(None, "seconds of a video to derain (default: all)")


@dataclasses.dataclass
class Images:
    """What is to be derained: a test set's pairs or own images, where results go, and what tables call them."""

    data_path: Path
    inputs: Sequence[Pair | Path]
    label: str
    save_path: Path
    outputs: list[OutputPaths]
    exact: int = 0  # pairs whose pixels are the test set's


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an image: its row of results and its small versions for the page, or why it has none."""

    row: dict[str, Any] | None
    thumbnails: page.Thumbnails | None = None
    error: str = ""


def evaluate(settings: EvalSettings, test_set: TestSet | None = None, load: Loader = load_network) -> None:
    """Derain a test set, or own images (test_set None), and write and print what came out.

    load: makes a network of a weights file. Writes to the save path: a PNG per image under the image's name,
    results.csv and results.json, and if the settings ask for them index.html, figure.png and the removed rain.
    Raises InputError for anything wrong with images, weights or settings. An unreadable image of a test set ends
    the run; one of one's own is reported and skipped, and the error comes at the end.
    """
    keep_freed_memory()
    device = choose_device(settings.device)
    precision = choose_precision(settings.precision, device)
    tile = parse_tile(settings.tile)
    figure.check_crop(settings.figure, settings.crop)
    weights = weights_file(settings.logdir)
    checksum = sha256_of(weights)  # now, because a training may replace the file meanwhile
    network = open_network(weights, device, precision, load)
    answer: Any = network.answer

    def derain(rgb: np.ndarray, source: Path) -> np.ndarray:
        try:
            return derain_image(network, rgb, tile, settings.quantize)
        except ValueError as error:
            raise InputError(f"{source}, weights {weights}: {error}") from error

    if test_set is None and settings.data_path and is_video(settings.data_path):
        video, folder = settings.data_path, settings.save_path or Path("results/real")
        check_folder(folder)
        MadeWith(folder, checksum, answer, precision, settings.quantize)
        flags = ("skip_existing", "figure", "recursive", "show_rain")
        ignored = [f"--{name}" for name in flags if getattr(settings, name) not in (None, False)]
        if ignored:
            print(f"{video}: a video, for which {', '.join(ignored)} has no effect", flush=True)
        how = (settings.codec, settings.crf, settings.start, settings.duration)
        derain_video(video, folder / video.name, lambda rgb: derain(rgb, video), *how)
        return
    images = collect(settings, test_set)
    made_with = MadeWith(images.save_path, checksum, answer, precision, settings.quantize)
    how = f"{device} {precision}"
    print(f"{images.label}: {len(images.inputs)} images of {images.data_path}, weights {weights}, {how}", flush=True)

    rows, thumbnails, errors = [], {}, []
    for outcome in derain_all(images, derain, made_with if settings.skip_existing else None, settings.page):
        if outcome.row is None:
            if test_set is not None:
                raise InputError(outcome.error)  # a mean over the rest of a set would pass for the set's
            errors.append(outcome.error)
            print(f"skipped: {outcome.error}", file=sys.stderr, flush=True)
            continue
        rows.append(outcome.row)
        if outcome.thumbnails:
            thumbnails[outcome.row["image"]] = outcome.thumbnails
        print(f"[{len(rows) + len(errors)}/{len(images.inputs)}] {line_of(outcome.row)}", flush=True)
    if rows:
        about: dict[str, Any] = {
            "weights": {"path": weights, "sha256": checksum},
            "settings": dataclasses.asdict(settings),
        }
        about |= {"errors": errors, "environment": environment(device)}
        report(settings, test_set, images, rows, thumbnails, f"weights {weights}, {how}", about)
    if errors:
        raise InputError(
            f"{len(errors)} of {len(images.inputs)} images could not be derained: see the lines that begin with skipped"
        )


def collect(settings: EvalSettings, test_set: TestSet | None) -> Images:
    """Find the images, name them, and decide where results go."""
    data_path = settings.data_path or default_data(test_set)
    save_path = settings.save_path or Path("results") / (test_set.name if test_set else "real")
    root, exact = None, 0
    if test_set is not None:
        inputs: Sequence[Pair | Path] = find_pairs(data_path)
        label, exact = label_of(test_set, data_path, inputs)
        if settings.save_path is None and label != test_set.name:
            save_path = Path("results") / data_path.resolve().name
    else:
        inputs = find_images(data_path, save_path, settings.recursive)
        label = synthetic_label(rainy_file(inputs[0]).parent) or "own images"
        root = data_path if settings.recursive and data_path.is_dir() else None
    outputs = output_paths(save_path, inputs, root, settings.show_rain)
    if settings.figure is not None:
        figure.check_names(settings.figure, save_path, inputs, outputs)
    check_folder(save_path)
    return Images(data_path, inputs, label, save_path, outputs, exact)


def derain_all(
    images: Images, derain: Callable[[np.ndarray, Path], np.ndarray], made_with: MadeWith | None, with_page: bool
) -> Iterator[Outcome]:
    """Read, derain, write and measure every image; two threads read and write while the network works.

    made_with: keep what it knows to be made already; None: derain everything.
    """
    on_page = page.shown(len(images.inputs)) if with_page else set()
    with ThreadPoolExecutor(2) as pool:
        waiting: deque[Future] = deque()
        loaded = prefetch(pool, read, images.inputs)
        for i, (item, paths, loading) in enumerate(zip(images.inputs, images.outputs, loaded, strict=True)):
            try:
                rainy, clean = loading.result()
                derained, milliseconds = made_with and made_with.existing(paths.output, rainy_file(item), rainy), None
                if derained is None:
                    began = time.perf_counter()
                    derained = derain(rainy.rgb, rainy_file(item))
                    milliseconds = round(1000 * (time.perf_counter() - began), 1)
                arguments = (images.label, item, paths, rainy, clean, derained, milliseconds, i in on_page)
                waiting.append(pool.submit(write_and_measure, *arguments))
            except InputError as error:
                waiting.append(Future())
                waiting[-1].set_exception(error)
            if len(waiting) > 2:
                yield outcome_of(waiting.popleft())
        yield from map(outcome_of, waiting)


def prefetch(pool: Executor, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Future]:
    """Yield the futures of call(item) in order, each begun two items early, so that few results wait in memory."""
    futures: deque[Future] = deque()
    for item in items:
        futures.append(pool.submit(call, item))
        if len(futures) > 2:
            yield futures.popleft()
    yield from futures


def outcome_of(future: Future) -> Outcome:
    """Return a finished outcome, or one with the error that ended it."""
    try:
        return future.result()
    except InputError as error:
        return Outcome(None, error=str(error))


def read(item: Pair | Path) -> tuple[DecodedImage, np.ndarray | None]:
    """Return a rainy image, and its clean one if it has one. Raises InputError naming what can't be read."""
    if isinstance(item, Path):
        return read_image(item), None
    rainy, clean = read_pair(item)
    return DecodedImage(rainy), clean


def write_and_measure(
    label: str,
    item: Pair | Path,
    paths: OutputPaths,
    rainy: DecodedImage,
    clean: np.ndarray | None,
    derained: np.ndarray,
    milliseconds: float | None,
    with_thumbnails: bool,
) -> Outcome:
    """Write a derained image (unless it was there: milliseconds is None) and the removed rain, and measure it."""
    try:
        if milliseconds is not None:
            write_image(paths.output, dataclasses.replace(rainy, rgb=derained))
        if paths.rain is not None:
            rain = cv2.subtract(rainy.rgb, grey_mean(derained) if rainy.grey else derained)  # clipped at 0
            write_image(paths.rain, DecodedImage(rain, grey=rainy.grey))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise  # such as a full disk, on which the next image would fail too
        raise InputError(f"{paths.output}: the name is too long for this file system; rename the image") from error
    row: dict[str, Any] = {"data_set": label, "image": paths.name}
    if clean is not None:
        try:
            row |= image_metrics(derained, clean)
            row |= {f"input_{name}": value for name, value in image_metrics(rainy.rgb, clean).items()}
        except ValueError as error:
            raise InputError(f"{rainy_file(item)}: {error}; remove the pair") from error
    row["milliseconds"] = milliseconds
    return Outcome(row, page.thumbnails(rainy.rgb, derained, clean) if with_thumbnails else None)


def line_of(row: dict[str, Any]) -> str:
    """Return an image's line of progress."""
    psnr = f" {row['psnr_y']:6.2f} dB" if "psnr_y" in row else ""
    return f"{row['image']}{psnr} " + (
        "was there" if row["milliseconds"] is None else f"{row['milliseconds'] / 1000:.2f} s"
    )


def report(
    settings: EvalSettings,
    test_set: TestSet | None,
    images: Images,
    rows: list[dict[str, Any]],
    thumbnails: dict[str, page.Thumbnails],
    how: str,
    about: dict[str, Any],
) -> None:
    """Write results.csv, results.json and what else was asked for, and print the table of means."""
    numbers = [item.number if isinstance(item, Pair) else None for item in images.inputs]
    lines = summary_lines(test_set, images.label, rows, numbers) if test_set else []
    times = [row["milliseconds"] for row in rows if row["milliseconds"] is not None]
    data_set = {"name": images.label, "path": images.data_path, "images": len(images.inputs)}
    summary = {
        "data_set": data_set | {"exact_pairs": images.exact, "identical_to_clean": identical(rows) if lines else None},
        "protocol": PROTOCOL if lines else None,
        "means": dict(lines),
        "median_milliseconds": float(np.median(times)) if times else None,
        **about,
    }
    write_results(images.save_path, rows, summary)
    files = ["results.csv", "results.json"]
    if settings.page:
        note = f"{len(rows)} images of {images.data_path}, {how}." + (f" Scores: {PROTOCOL}." if lines else "")
        title = images.label if lines else f"Derained: {images.data_path.name}"
        page.write_test_page(images.save_path, title, note, lines, rows, thumbnails)
        files.append("index.html")
    if lines:
        print("\n" + table(f"{images.label}, {len(rows)} pairs ({PROTOCOL})", lines))
        if count := identical(rows):
            print(f"{count} derained images are identical to the clean ones: PSNR is the mean over the others")
    if settings.figure is not None and figure.write_figure(
        images.save_path, settings.figure, settings.crop, rows, images.inputs, images.outputs
    ):
        files.append(figure.NAME)
    print(f"\n{len(rows)} images, {', '.join(files)} in {images.save_path}")
