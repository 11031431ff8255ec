"""Derain videos: timestamps, colours and audio stay as they are.

A video is decoded twice: once to find its faults and the times of its frames before any work, once
to derain it. Derained frames are kept in a hidden folder beside the target until they are joined
with the audio. After an interruption, at whatever frame, the same call resumes.
"""

import hashlib
import heapq
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from derain.frames import av, from_rgb, has_extras, open_video, read_audio, read_frames, to_rgb
from utils import InputError, note


def derain_video(
    source: Path,
    target: Path,
    derain_rgb: Callable[[np.ndarray], np.ndarray],
    codec: str = "libx264",
    crf: int = 17,
    start: float = 0.0,
    duration: float | None = None,
) -> Path:
    """Derain a video and return the file written.

    derain_rgb: a frame -> the same, (H, W, 3) RGB, uint8, or uint16 if it has more than 8 bits.
    start, duration: the part to derain, in seconds from the first frame.
    Raises InputError before the first frame if video, codec or container can't be used.
    """
    first: Any = None
    clock = []  # times and durations of the frames
    for frame in tqdm(read_frames(source, start, duration), f"reading {source.name}", leave=False):
        first = first or frame
        clock.append((frame.pts - first.pts, frame.duration))
    if first is None:
        raise InputError(f"{source}: no readable frame in --start {start} --duration {duration}")
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3), np.uint8)  # tells networks apart
    made_of = (source.stat().st_size, source.stat().st_mtime, codec, crf, start, duration)
    key = hashlib.sha256(repr(made_of).encode() + derain_rgb(noise).tobytes()).hexdigest()[:8]
    folder = target.with_name(f".{target.name}.unfinished")
    folder.mkdir(parents=True, exist_ok=True)
    parts = sorted(folder.glob(f"{key}-*.nut"))
    parts.append(folder / f"{key}-{len(parts):04}.nut")
    done = sum(1 for _ in _packets(parts))
    work = folder / target.name
    try:
        with (
            av.open(f"file:{work}", "w") as writer,
            av.open(f"file:{parts[-1]}", "w", options={"flush_packets": "1"}) as part,
        ):
            encoder = _add_streams(writer, part, source, first, codec, crf)
            frames = islice(read_frames(source, start, duration), done, None)
            frames = tqdm(frames, source.name, len(clock), initial=done, unit="frame", leave=False)
            try:
                for frame in frames:
                    derained = derain_rgb(to_rgb(frame))
                    time = frame.pts - first.pts
                    part.mux(encoder.encode(from_rgb(derained, time, encoder.codec_context)))
            finally:  # an error loses no frame that is done
                part.mux(encoder.encode(None))
                part.close()
            pictures = _pictures(writer, parts, clock, first.time_base)
            audio = read_audio(writer, source, first.pts * first.time_base, duration)
            for packet in heapq.merge(pictures, audio, key=lambda item: item.pts * item.time_base):
                writer.mux(packet)
        work.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:  # such as a full disk
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        work.unlink(missing_ok=True)
        if next(_packets(parts[-1:]), None) is None:
            parts[-1].unlink(missing_ok=True)
        with suppress(OSError):  # it holds frames that are done
            folder.rmdir()
    return target


def _add_streams(writer: Any, part: Any, source: Path, first: Any, codec: str, crf: int) -> Any:
    """Add a stream for derained frames like `first`, and copies of it and of the audio.

    part: gets the encoder's stream, which is returned. writer: gets the copies.
    Raises InputError if codec, audio and container do not fit each other.
    """
    options = {"crf": str(crf), "x265-params": "log-level=error"}
    with open_video(source) as (reader, video):
        try:
            image = to_rgb(first)  # fails if PyAV cannot convert its pixel format
            height, width, _ = image.shape
            chroma = "444" if height % 2 or width % 2 else "420"
            depth = "10le" if image.dtype == np.uint16 else ""
            encoder = part.add_stream(codec, rate=video.average_rate or 25, options=options)
            encoder.width, encoder.height, encoder.pix_fmt = width, height, f"yuv{chroma}p{depth}"
            context = encoder.codec_context
            context.time_base = first.time_base
            context.max_b_frames = 0  # packets come in the order of frames
            context.sample_aspect_ratio = video.sample_aspect_ratio or Fraction(1)
            if first.rotation % 180:
                context.sample_aspect_ratio = 1 / context.sample_aspect_ratio
            for name in ("colorspace", "color_range", "color_primaries", "color_trc"):
                setattr(context, name, getattr(first, name))
            context.colorspace = first.colorspace or 1  # RGB becomes BT.709
            part.start_encoding()
            picture = writer.add_stream_from_template(encoder)
            if context.codec.canonical_name == "hevc" and writer.format.name != "matroska":
                picture.codec_context.codec_tag = "hvc1"  # the one that Apple's players take
            for stream in reader.streams.audio:
                copy = writer.add_stream_from_template(stream)
                if stream.layout.name == "2 channels":  # AVI leaves it open, and MP4 does not
                    copy.codec_context.layout = "stereo"
                copy.disposition = stream.disposition
                copy.metadata.update(stream.metadata)  # its language
            writer.metadata.update(reader.metadata)
            writer.start_encoding()
        except (av.FFmpegError, AttributeError, TypeError, ValueError) as error:
            fix = "try --codec libx264, --out NAME.mkv, or first ffmpeg -i ... -c:a aac NEW.mkv"
            raise InputError(f"{source} with --codec {codec}: {error}; {fix}") from error
        if has_extras(reader, video, first):
            note(f"{source}: subtitles, chapters, alpha and HDR data are left out, if it has any")
    return encoder


def _packets(parts: list[Path]) -> Iterator[Any]:
    """Yield the packets of all parts, except the last one of an older part: it may be cut off."""
    for path in parts:
        with suppress(av.FFmpegError), av.open(f"file:{path}") as reader:
            for packet, following in pairwise(reader.demux(video=0)):  # the last one is empty
                if following.size or path == parts[-1]:
                    yield packet


def _pictures(writer: Any, parts: list[Path], clock: list, time_base: Fraction) -> Iterator[Any]:
    """Yield the packets of all parts for a writer. clock: their times and durations."""
    for packet, (time, duration) in zip(_packets(parts), clock, strict=True):
        if packet.pts * packet.time_base != time * time_base:
            raise InputError(f"{parts[0].parent}: holds a damaged part; remove this folder")
        packet.time_base, packet.stream = time_base, writer.streams[0]
        packet.pts = packet.dts = time
        packet.duration = duration
        yield packet
