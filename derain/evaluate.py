"""Testing, read top to bottom: `evaluate` finds the images, derains them, measures them, and writes what came out.

An image becomes a row of the table in `write_and_measure`.
"""

import dataclasses
import errno
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from derain import figure, page
from derain.cli import Progress, check_folder
from derain.pairs import Pair, rainy_file, read_pair
from derain.images import (
    DecodedImage,
    network_input,
    network_output,
    read_image,
    read_rgb,
    write_image,
)
from derain.inference import Loader, derain_image, open_network, parse_tile, weights_file
from derain.inputs import EvalSettings, Images, collect
from derain.results import MadeWith, OutputPaths, identical, refuse_replacing, summary_lines, table, write_results
from derain.sets import TestSet
from derain.video import derain_video, is_video
from networks import load_network
from SSIM import PROTOCOL, image_metrics
from utils import InputError, choose_device, choose_precision, environment, keep_freed_memory, sha256_of

Result = TypeVar("Result")
Outcome = tuple[dict[str, Any], page.Thumbnails | None]  # of one image: its row, and what the page shows of it


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
    if not 1 <= settings.quality <= 100:
        raise InputError(f"--quality {settings.quality}: must be from 1 to 100")
    weights = weights_file(settings.logdir)
    checksum = sha256_of(weights)  # now, because a training may replace the file meanwhile
    network = open_network(weights, device, precision, load)

    def derain(rgb: np.ndarray, source: Path) -> np.ndarray:
        try:
            return derain_image(network, rgb, tile, settings.quantize, tile_progress(source))
        except ValueError as error:
            raise InputError(f"{source}, weights {weights}: {error}") from error

    answer: Any = network.answer
    made_with = {"weights_sha256": checksum, "network": answer, "precision": precision}
    made_with |= {name: getattr(settings, name) for name in ("quantize", "format", "quality")}
    if test_set is None and (settings.out or any(map(is_video, settings.data_path))):
        derain_file(settings, derain, made_with)
        return
    images = collect(settings, test_set)
    made, how = MadeWith(images.save_path, made_with), f"{device} {precision}"
    print(f"{images.label}: {len(images.inputs)} images of {images.source}, weights {weights}, {how}", flush=True)

    rows, thumbnails, errors, began, progress = [], {}, [], time.monotonic(), Progress()
    for outcome in two_late(derain_all(images, derain, made if settings.skip_existing else None, settings.page)):
        try:
            row, small = outcome.result()
        except InputError as error:
            if test_set is not None:
                raise  # a mean over the rest of a set would pass for the set's
            errors.append(str(error))
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            continue
        rows.append(row)
        if small:
            thumbnails[row["image"]] = small
        done, total = len(rows) + len(errors), len(images.inputs)
        left = f", {seconds_left(began, done, total)}" if done < total else ""
        progress.show(f"[{done}/{total}] {line_of(row)}{left}")
    if rows:
        about: dict[str, Any] = {"weights": {"path": weights, "sha256": checksum}}
        about |= {"settings": dataclasses.asdict(settings), "errors": errors, "environment": environment(device)}
        report(settings, test_set, images, rows, thumbnails, f"weights {weights}, {how}", about)
    if errors:
        count = f"{len(errors)} of {len(images.inputs)} images"
        raise InputError(f"{count} could not be derained: see the lines that begin with skipped")


def derain_all(
    images: Images, derain: Callable[[np.ndarray, Path], np.ndarray], made_with: MadeWith | None, with_page: bool
) -> Iterator[Future[Outcome]]:
    """Read, derain, write and measure every image; two threads read and write while the network works.

    made_with: keep what it knows to be made already; None: derain everything.
    """
    on_page = page.shown(len(images.inputs)) if with_page else set()
    with ThreadPoolExecutor(2) as pool:
        loaded = two_late(pool.submit(read, item) for item in images.inputs)
        for i, (item, paths, loading) in enumerate(zip(images.inputs, images.outputs, loaded, strict=True)):
            try:
                rainy, clean = loading.result()
                note_frames(item, rainy)
                derained, milliseconds = made_with and made_with.existing(paths.output, rainy_file(item), rainy), None
                if derained is None:
                    began = time.perf_counter()
                    derained = derain(network_input(rainy), rainy_file(item))
                    if isinstance(item, Path):  # a test set's images are scored as the network made them
                        derained = network_output(rainy, derained).rgb
                    milliseconds = round(1000 * (time.perf_counter() - began), 1)
                done = (item, paths, rainy, clean, derained, milliseconds)
                yield pool.submit(write_and_measure, images.label, *done, i in on_page, images.quality)
            except InputError as error:
                failed: Future[Outcome] = Future()
                failed.set_exception(error)
                yield failed


def two_late(futures: Iterable[Future[Result]]) -> Iterator[Future[Result]]:
    """Yield futures in order, each when the two after it have begun: work goes on, and few results wait in memory."""
    waiting: deque[Future[Result]] = deque()
    for future in futures:
        waiting.append(future)
        if len(waiting) > 2:
            yield waiting.popleft()
    yield from waiting


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
    quality: int,
) -> Outcome:
    """Write a derained image (unless it was there: milliseconds is None) and the removed rain, and measure it."""
    try:
        if milliseconds is not None:
            write_image(paths.output, dataclasses.replace(rainy, rgb=derained), quality)
        if paths.rain is not None:
            rain = cv2.subtract(rainy.rgb, derained)  # clipped at 0
            write_image(paths.rain, DecodedImage(rain, grey=rainy.grey), quality)
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
    profile = rainy.metadata.get("icc_profile")
    return row, page.thumbnails(rainy.rgb, derained, clean, profile) if with_thumbnails else None


def derain_file(
    settings: EvalSettings, derain: Callable[[np.ndarray, Path], np.ndarray], made_with: Mapping[str, Any]
) -> None:
    """Derain a video, or with --out a single image. Raises InputError if there are several, or a folder."""
    if len(settings.data_path) != 1 or (settings.out and not settings.data_path[0].is_file()):
        what = "--out takes" if settings.out else "videos are derained one at a time:"
        raise InputError(f"{what} a single file in --data_path; process the others in separate calls")
    source = settings.data_path[0]
    folder = settings.save_path or Path("results/real")
    target = settings.out or folder / f"{source.stem}{settings.suffix}{source.suffix}"
    check_folder(target.parent)
    refuse_replacing([target], [source])
    flags = ("skip_existing", "figure", "recursive", "show_rain", "clean_dir", *(("suffix",) if settings.out else ()))
    if ignored := [f"--{name}" for name in flags if getattr(settings, name) not in (None, False, "")]:
        kind = "a video" if is_video(source) else "a single image"
        print(f"{source}: {kind}, for which {', '.join(ignored)} has no effect", flush=True)
    if settings.out is None:
        MadeWith(folder, made_with)
    if is_video(source):
        how = (settings.codec, settings.crf, settings.start, settings.duration)
        derain_video(source, target, lambda rgb: derain(rgb, source), *how)
        return
    if target.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--out {target}: images are saved as .png, .jpg or .webp; choose another name")
    image = read_image(source)
    note_frames(source, image)
    derained = derain(network_input(image), source)
    write_image(target, network_output(image, derained), settings.quality)
    print(f"{target}: written")


def note_frames(source: Path | Pair, image: DecodedImage) -> None:
    """Say how many frames of an animation, or pages of a TIFF, are left out."""
    if image.frames > 1:
        print(f"{source}: the first of {image.frames} frames or pages; the others are left out", flush=True)


def tile_progress(source: Path) -> Callable[[int, int], None]:
    """Return what prints, every five seconds, how many tiles of an image are done and how long the others take."""
    began = shown = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal shown
        if (now := time.monotonic()) - shown > 5 and done < total:
            shown = now
            print(f"  {source.name}: tile {done} of {total}, {seconds_left(began, done, total, now)}", flush=True)

    return progress


def seconds_left(began: float, done: int, total: int, now: float | None = None) -> str:
    """Say how long the rest takes at the pace so far. began, now: as time.monotonic has them."""
    return f"{((time.monotonic() if now is None else now) - began) / done * (total - done):.0f} s left"


def line_of(row: dict[str, Any]) -> str:
    """Return an image's line of progress."""
    psnr = f" {row['psnr_y']:6.2f} dB" if "psnr_y" in row else ""
    took = "was there" if row["milliseconds"] is None else f"{row['milliseconds'] / 1000:.2f} s"
    return f"{row['image']}{psnr} {took}"


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
    data_set = {"name": images.label, "path": images.source, "images": len(images.inputs)}
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
        note = f"{len(rows)} images of {images.source}, {how}." + (f" Scores: {PROTOCOL}." if lines else "")
        title = images.label if lines else f"Derained: {Path(images.source).name}"
        page.write_test_page(images.save_path, title, note, lines, rows, thumbnails)
        files.append("index.html")
    if lines:
        print("\n" + table(f"{images.label}, {len(rows)} pairs ({PROTOCOL})", lines))
        if count := identical(rows):
            print(f"{count} derained images are identical to the clean ones: PSNR is the mean over the others")
    if settings.figure is not None:
        draw_figure(settings, images, rows)
        files.append("figure.png")
    print(f"\n{len(rows)} images, {', '.join(files)} in {images.save_path}")


def draw_figure(settings: EvalSettings, images: Images, rows: list[dict[str, Any]]) -> None:
    """Draw figure.png of the images that --figure names, or of largest, median and smallest gain."""
    gains = {row["image"]: row["psnr_y"] - row["input_psnr_y"] for row in rows if "psnr_y" in row}
    found = {p.name: (item, p.output) for item, p in zip(images.inputs, images.outputs, strict=True)}
    drawn = []
    for name in figure.choose_images([row["image"] for row in rows], settings.figure or (), gains):
        item, output = found[name]
        title = f"{name}, {gains[name]:+.2f} dB" if name in gains else name
        versions = {"rainy": read_rgb(rainy_file(item)), "derained": read_rgb(output)}
        clean = read_rgb(item.clean) if isinstance(item, Pair) else None
        drawn.append(figure.Row(title, versions, clean))
    figure.write_figure(images.save_path / "figure.png", drawn, settings.crop)
