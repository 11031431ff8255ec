"""Videos: every frame is derained; times, colours and sound stay as they are.

A video is decoded twice: once to find its faults and the times of its frames before any work, once
to derain it. Derained frames are kept in a hidden folder beside the target until they are joined
with the sound. After an interruption, at whatever frame, the same call resumes.
"""

import hashlib
import heapq
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from utils import InputError, note

try:
    import av
except ImportError:  # an extra requirement
    av = None

VIDEO_SUFFIXES = {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
VIDEO_SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
KEPT_CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")
# Flags of swscale: bilinear; for 8 bits also accurate rounding of all chroma, or images get darker.
SCALER = {"rgb24": 2 | 0x2000 | 0x40000, "rgb48le": 2}
REPAIR = (
    "stop there with --duration, or first run "
    "ffmpeg -i FILE -vf yadif=deint=interlaced -crf 12 -c:a copy NEW.mkv"
)


def is_video(path: Path) -> bool:
    """Return whether a path is a video file, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def derain_video(
    source: Path,
    target: Path,
    derain: Callable[[np.ndarray], np.ndarray],
    codec: str = "libx264",
    crf: int = 17,
    start: float = 0.0,
    duration: float | None = None,
) -> Path:
    """Derain a video and return the file written.

    derain: a frame -> the same, (H, W, 3) RGB, uint8, or uint16 if it has more than 8 bits.
    start, duration: the part to derain, in seconds from the first frame.
    Raises InputError before the first frame if video, codec or container can't be used.
    """
    if target.suffix.lower() not in KEPT_CONTAINERS:
        raise InputError(f"{target}: videos are written as .mp4, .mov, .m4v or .mkv; rename it")
    first: Any = None
    clock = []  # times and durations of the frames
    for frame in tqdm(_frames(source, start, duration), f"reading {source.name}", leave=False):
        first = first or frame
        clock.append((frame.pts - first.pts, frame.duration))
    if first is None or start < 0 or duration == 0:
        raise InputError(f"{source}: no frame in --start {start} --duration {duration}")
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    made_of = (source.stat().st_size, source.stat().st_mtime, codec, crf, start, duration)
    key = hashlib.sha256(repr(made_of).encode() + derain(noise).tobytes()).hexdigest()[:8]
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
            frames = islice(_frames(source, start, duration), done, None)
            frames = tqdm(frames, source.name, len(clock), initial=done, unit="frame", leave=False)
            try:
                for frame in frames:
                    derained = derain(_rgb(frame))
                    time = frame.pts - first.pts
                    part.mux(encoder.encode(_frame(derained, time, encoder.codec_context)))
            finally:  # an error loses no frame that is done
                part.mux(encoder.encode(None))
                part.close()
            pictures = _pictures(writer, parts, clock, first.time_base)
            sound = _sound(writer, source, first.pts * first.time_base, duration)
            for packet in heapq.merge(pictures, sound, key=lambda item: item.pts * item.time_base):
                writer.mux(packet)
        work.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
    except av.FFmpegError as error:  # such as a full disk
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        work.unlink(missing_ok=True)
        if next(_packets(parts[-1:]), None) is None:
            parts[-1].unlink(missing_ok=True)
        with suppress(OSError):  # it holds frames that are done
            folder.rmdir()
    return target


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video; yield its reader and the stream of the picture."""
    if av is None:
        raise InputError(f"{source}: videos need PyAV: pip install 'av>=18.1'")
    try:
        reader = av.open(f"file:{source}")  # a name may hold a colon
    except av.FFmpegError as error:
        raise InputError(f"{source}: cannot be read as a video: {error.strerror}") from error
    with reader:  # PyAV must not be left to close it while it collects garbage
        covers = av.stream.Disposition.attached_pic
        videos = [video for video in reader.streams.video if not video.disposition & covers]
        is_image = reader.metadata.get("major_brand") in ("avif", "heic", "heix", "mif1")
        if not videos or is_image or reader.format.name.endswith("_pipe"):  # other images
            raise InputError(f"{source}: holds no video; give an image the suffix of its format")
        yield reader, videos[0]


def _frames(source: Path, start: float, duration: float | None) -> Iterator[Any]:
    """Yield a video's frames from `start` on, at times that rise.

    Raises InputError at a frame that can't be derained, and where the file was cut off.
    """
    begin = Fraction(str(start))
    end = begin + Fraction(str(duration or 10**9))
    previous: Any = None
    time = reached = Fraction(0)
    with _opened(source) as (reader, video):
        video.thread_type = "AUTO"  # several threads decode ahead
        for packet in reader.demux():
            if packet.pts is not None:
                reached = max(reached, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream is not video:
                continue
            frames: list[Any] = [None]  # one that is damaged
            with suppress(av.FFmpegError):
                frames = packet.decode()
            for frame in frames:
                fault = _fault(frame, previous)
                if fault == "damaged" and previous is None:
                    continue  # a recording may begin between key frames
                if fault:
                    raise InputError(f"{source}: {fault} after second {math.floor(time)}; {REPAIR}")
                if previous is None:
                    origin = frame.pts = frame.pts or 0
                elif frame.pts <= previous.pts:
                    frame.pts = previous.pts + 1
                previous, time = frame, (frame.pts - origin) * video.time_base
                if time >= end:
                    return
                if time >= begin:
                    yield frame
        length = video.frames / (video.average_rate or 1)  # as AVI has it
        if reader.format.name.startswith(("mov", "matroska", "flv")):  # others estimate it
            length = (reader.duration or 0) / 1e6
        if reached < length - 0.5:
            raise InputError(f"{source}: cut off after second {math.floor(time)}; {REPAIR}")


def _fault(frame: Any, previous: Any) -> str:
    """Return why a frame can't be derained like the one before, or nothing."""
    if frame is None or frame.is_corrupt:
        return "damaged"
    if frame.interlaced_frame:
        return "interlaced"
    if previous is None:
        return ""
    if (frame.width, frame.height) != (previous.width, previous.height):
        return "of another size"
    if frame.pts is None or frame.pts < previous.pts - 1:
        return "joined to another video, or of times that fall,"
    return ""


def _rgb(frame: Any) -> np.ndarray:
    """Return a frame as (H, W, 3) RGB, uint8, or uint16 if it has more than 8 bits, upright."""
    bits = max(component.bits for component in frame.format.components)
    layout = "rgb48le" if bits > 8 else "rgb24"
    image = frame.to_ndarray(format=layout, interpolation=SCALER[layout])
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # x' = a x + c y, y' = b x + d y
    if b:
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: np.sign(d), :: np.sign(a)])


def _frame(rgb: np.ndarray, time: int, context: Any) -> Any:
    """Return a derained image as a frame for an encoder."""
    layout = "rgb24" if rgb.dtype == np.uint8 else "rgb48le"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), layout).reformat(
        format=context.pix_fmt,
        interpolation=SCALER[layout],
        dst_colorspace=context.colorspace,
        dst_color_range=context.color_range,
    )
    frame.pts, frame.time_base = time, context.time_base
    return frame


def _add_streams(writer: Any, part: Any, source: Path, first: Any, codec: str, crf: int) -> Any:
    """Add a stream for derained frames like `first`, and copies of it and of the sound.

    part: gets the encoder's stream, which is returned. writer: gets the copies.
    Raises InputError if codec, sound and container do not fit each other.
    """
    options = {"crf": str(crf), "x265-params": "log-level=error"}
    with _opened(source) as (reader, video):
        try:
            image = _rgb(first)  # of a colour space that PyAV converts
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
            context.colorspace = first.colorspace or 1  # RGB becomes BT.709
            context.color_range = first.color_range
            context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
            part.start_encoding()
            picture = writer.add_stream_from_template(encoder)
            if context.codec.canonical_name == "hevc" and writer.format.name != "matroska":
                picture.codec_context.codec_tag = "hvc1"  # the one that Apple's players take
            for stream in reader.streams.audio:
                copy = writer.add_stream_from_template(stream)
                copy.disposition = stream.disposition
                copy.metadata.update(stream.metadata)  # its language
            writer.metadata.update(reader.metadata)
            writer.start_encoding()
        except (av.FFmpegError, AttributeError, TypeError, ValueError) as error:
            fix = "try --codec libx264, --out NAME.mkv, or first ffmpeg -i ... -c:a aac NEW.mkv"
            raise InputError(f"{source} with --codec {codec}: {error}; {fix}") from error
        lost = len(reader.streams) > len(writer.streams) or reader.chapters()
        lost = lost or first.side_data.get("MASTERING_DISPLAY_METADATA")
        if lost or any(component.is_alpha for component in first.format.components):
            note(f"{source}: left out all but video and sound: subtitles, chapters, alpha, HDR")
    return encoder


def _packets(parts: list[Path]) -> Iterator[Any]:
    """Yield the packets of parts, of older ones without the last, which may be cut off."""
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


def _sound(writer: Any, source: Path, begin: Fraction, duration: float | None) -> Iterator[Any]:
    """Yield packets of sound for a writer, at times that rise. begin: the time 0 of the result."""
    with _opened(source) as (reader, _):
        copies = dict(zip(reader.streams.audio, tuple(writer.streams)[1:], strict=True))
        earliest = dict.fromkeys(copies, -math.inf)
        for packet in reader.demux():
            if packet.stream not in copies or packet.pts is None:
                continue
            copy = copies[packet.stream]
            time = max(packet.pts - round(begin / packet.time_base), earliest[packet.stream])
            earliest[packet.stream] = time + math.ceil(copy.time_base / packet.time_base)
            # Decoders need some sound before the first that is heard.
            if -0.1 <= time * packet.time_base < (duration or math.inf):
                packet.pts = packet.dts = time
                packet.stream = copy
                yield packet
