"""Read videos: frames with increasing timestamps, as RGB images, and packets of audio."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from utils import InputError

try:
    import av
except ImportError:  # an extra requirement
    av = None

VIDEO_SUFFIXES = {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
VIDEO_SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
KEPT_CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")  # others become .mp4
# Flags of swscale: bilinear; for 8 bits also accurate rounding of all chroma, or images get darker.
SCALER = {"rgb24": 2 | 0x2000 | 0x40000, "rgb48le": 2}
REPAIR = (
    "choose a part that ends before it (--start, --duration), or first run "
    "ffmpeg -i FILE -vf yadif=deint=interlaced -crf 12 -c:a copy NEW.mkv"
)


def is_video(path: Path) -> bool:
    """Return whether a path is a video file, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


@contextmanager
def open_video(source: Path) -> Iterator[tuple[Any, Any]]:
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


def read_frames(source: Path, start: float, duration: float | None) -> Iterator[Any]:
    """Yield a video's frames from `start` on, in seconds; their timestamps increase.

    Raises InputError at a frame that can't be derained, and where the file was cut off.
    """
    begin = Fraction(str(start))
    end = begin + Fraction(str(duration or 10**9))
    previous: Any = None
    time = reached = Fraction(0)
    with open_video(source) as (reader, video):
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
        return "joined to another video, or without increasing timestamps,"
    return ""


def has_extras(reader: Any, video: Any, first: Any) -> bool:
    """Return whether a file has more than video and audio, or its first frame more than colours."""
    has_alpha = any(component.is_alpha for component in first.format.components)
    has_alpha |= "alpha_mode" in video.metadata  # which decoders of VP9 hide
    has_hdr = first.side_data.get("MASTERING_DISPLAY_METADATA") is not None
    has_streams = len(reader.streams) > 1 + len(reader.streams.audio)  # such as subtitles
    return has_alpha or has_hdr or has_streams or bool(reader.chapters())


def read_audio(writer: Any, source: Path, begin: Fraction, duration: float | None) -> Iterator[Any]:
    """Yield audio packets with increasing timestamps, for a writer's streams after the first.

    begin: the time of the source that becomes 0.
    """
    with open_video(source) as (reader, _):
        copies = dict(zip(reader.streams.audio, tuple(writer.streams)[1:], strict=True))
        earliest = dict.fromkeys(copies, -math.inf)
        for packet in reader.demux():
            if packet.stream not in copies or packet.pts is None:
                continue
            copy = copies[packet.stream]
            time = max(packet.pts - round(begin / packet.time_base), earliest[packet.stream])
            earliest[packet.stream] = time + math.ceil(copy.time_base / packet.time_base)
            # Decoders need some audio before the first that is heard.
            if -0.1 <= time * packet.time_base < (duration or math.inf):
                packet.pts = packet.dts = time
                packet.stream = copy
                yield packet


def to_rgb(frame: Any) -> np.ndarray:
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


def from_rgb(rgb: np.ndarray, time: int, context: Any) -> Any:
    """Return an RGB image as a frame for an encoder, at a time in units of its time base."""
    layout = "rgb24" if rgb.dtype == np.uint8 else "rgb48le"
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), layout)
    colours = {"dst_colorspace": context.colorspace, "dst_color_range": context.color_range}
    frame = frame.reformat(format=context.pix_fmt, interpolation=SCALER[layout], **colours)
    frame.pts, frame.time_base = time, context.time_base
    return frame
