"""A video or a camera, derained frame by frame: each frame comes out exactly as it would as a picture.

    python test_real.py --data_path drive.mp4       # writes results/real/drive.mp4, without sound

The file stays upright, of the same size, rate and number of frames; containers.py has what is read and written.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from torch import nn

from derain import results as report
from derain.cli import check_folder
from derain.containers import frames_and_size, open_video, output_name, rate_of, read_frame, video_writer
from derain.evaluation import Provenance, ahead, automatic_tile, derain_image, fast_network, rain_layer, weights_file
from derain.settings import EvalSettings, parse_tile
from derain.training import interrupts_noted
from utils import InputError, choose_device, environment, sha256_of

USUAL_RATE = 25.0  # frames per second, for files and cameras that don't tell theirs


def derain_video(settings: EvalSettings, source: Path | int) -> None:
    """Derain a video file, or what a camera (its index) shows until Ctrl-C or --frames.

    Writes to the save path: the video under its own name, with --show_rain the rain that was
    taken away in rain/, results.csv (one line) and results.json. A stopped run of a file leaves no
    video, for a part of it would pass for the whole; a camera's ends where it was stopped.

    Raises InputError for a video or camera that can't be read or written, KeyboardInterrupt when stopped.
    """
    if settings.figure is not None or settings.crop is not None:
        raise InputError(f"{source}: a video; --figure and --crop are for pictures, leave them out")
    if settings.frames is not None and settings.frames <= 0:
        raise InputError(f"--frames {settings.frames}: must be above 0")
    device = choose_device(settings.device)
    tile = parse_tile(settings.tile)
    save_path = settings.save_path or Path("results") / settings.name
    check_folder(save_path)
    weights = weights_file(settings.logdir)
    checksum = sha256_of(weights)  # now: a training may replace the file meanwhile
    network = fast_network(weights, settings, device)
    camera = isinstance(source, int)
    name = f"camera {source}" if camera else str(source)

    capture = open_video(source)
    announced = 0 if camera else max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))  # in some files a guess
    total = min((n for n in (announced, settings.frames) if n), default=0)
    rate = rate_of(capture)
    how = f"{device} {settings.precision}, {settings.backend}"
    said = f"{rate or USUAL_RATE:g} frames per second" + ("" if rate else f" (assumed: {name} does not tell)")
    print(f"{name}: {total or 'unknown number of'} frames, {said}, weights {weights}, {how}", flush=True)
    rate = rate or USUAL_RATE

    frames = derained_frames(partial(read_frame, capture, name), network, tile, settings.quantize)
    began = shown = time.monotonic()
    with interrupts_noted() as interrupted, contextlib.ExitStack() as stack:
        stack.callback(capture.release)
        stack.callback(frames.close)
        first = next(frames, None)
        if first is None:
            raise InputError(f"{name}: no frame can be read; convert it to .mp4 or .avi, or get it again")
        shape = first[0].shape
        size = shape[1], shape[0]
        output = save_path / output_name(source, size)
        outputs = [output, *([save_path / "rain" / output.name] if settings.show_rain else [])]
        report.refuse_replacing(outputs, [] if camera else [source])
        provenance = None if camera else Provenance(save_path, checksum, settings)
        fitting = provenance and total and all(frames_and_size(path) == (total, size) for path in outputs)
        if settings.skip_existing and fitting and provenance.made(output, source):
            print(f"{output} was there, with {total} frames")
            return
        writers = [stack.enter_context(video_writer(path, rate, size)) for path in outputs]
        codec = writers[0][1]

        def write(rainy: np.ndarray, derained: np.ndarray) -> None:
            writers[0][0](derained)
            if settings.show_rain:
                writers[1][0](rain_layer(rainy, derained))

        pool = stack.enter_context(ThreadPoolExecutor(1))  # to write a frame while the network works on the next
        writing: Future | None = None
        count = 0
        for count, (rainy, derained) in enumerate(itertools.chain([first], frames), 1):
            if rainy.shape != shape:
                other = f"{rainy.shape[1]}x{rainy.shape[0]}"
                raise InputError(f"{name}: frame {count} is {other}, not {size[0]}x{size[1]}; split the video there")
            if writing is not None:
                writing.result()
            writing = pool.submit(write, rainy, derained)
            now = time.monotonic()
            if now - shown > 5 or count in (1, total):
                shown, pace = now, count / (now - began)
                left = f", {(total - count) / pace / 60:.0f} min left" if total >= count else ""
                print(f"frame {count}{f'/{total}' * (total >= count)} {pace:.2f} frames/s{left}", flush=True)
            if count == settings.frames:
                break
            if interrupted():
                if camera:
                    break
                print(f"stopped at frame {count}: nothing is kept, as a part would pass for the whole", flush=True)
                raise KeyboardInterrupt
        writing.result()
    seconds = time.monotonic() - began
    if provenance:
        provenance.add(output, source)

    video = {"frames": count, "width": size[0], "height": size[1], "rate": rate, "codec": codec}
    row = {"image": output.name} | video | {"milliseconds": round(1000 * seconds / count, 1)}
    summary = {
        "data_set": {"name": settings.name, "path": name, "frames": count},
        "protocol": None,
        "video": video | {"path": output, "announced_frames": announced or None, "sound": False},
        "frames_per_second": count / seconds,
        "weights": {"path": weights, "sha256": checksum},
        "settings": dataclasses.asdict(settings),
        "environment": environment(device),
    }
    report.write_results(save_path, [row], summary)
    if count < total:
        print(f"{name} announces {announced} frames; {count} can be read, and those were derained")
    if camera:
        print(f"{count} frames of {seconds:.0f} seconds: played, they take {count / rate:.0f} seconds")
    also = f", its rain in {outputs[1]}" if settings.show_rain else ""
    print(f"\n{count} frames, {size[0]}x{size[1]}, {codec}, no sound: {output}{also}; results.csv, results.json")


def derained_frames(
    read: Callable[[], np.ndarray | None], network: nn.Module, tile: int | None = None, quantization: str = "round"
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Every frame and its derained image, (H, W, 3) uint8 RGB each; a thread reads at most three frames ahead.

    read: gives the next frame, None after the last. The others are evaluation.derain_image's, which
    does the work. The tiles are those of the first frame: if they went by what memory is free at
    each, the rounding of sums could flicker.
    """
    with ThreadPoolExecutor(1) as reader:  # one thread: frames come in order
        for future in ahead(reader, lambda _: read(), itertools.count()):
            rainy = future.result()
            if rainy is None:
                return
            if tile is None:
                tile = automatic_tile(*rainy.shape[:2], network)
            yield rainy, derain_image(network, rainy, tile, quantization)
