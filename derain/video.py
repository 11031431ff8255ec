"""A video, derained frame by frame through PyAV (`pip install av`): each frame comes out as it would as an image.

Timestamps, aspect ratio, colours, metadata and sound stay as they are; the picture is encoded again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from derain.cli import interrupts_noted
from derain.results import refuse_replacing
from utils import InputError, atomic_path

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp"}
KEPT_CONTAINERS = {".mp4", ".mov", ".m4v", ".mkv"}  # others become .mp4


def is_video(path: Path) -> bool:
    """Whether a path is a video's, by its suffix."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir()


def derain_video(
    source: Path, target: Path, derain: Callable[[np.ndarray], np.ndarray], codec: str = "libx264", crf: int = 17
) -> Path:
    """Derain a video file and return the file written: `target`, or with .mp4 in place of a suffix that can't be kept.

    derain: one frame, (H, W, 3) RGB, uint8 or (of videos with more than 8 bits) uint16. codec, crf: of the encoder.
    The file appears when it is complete. After Ctrl-C it holds the frames so far, and KeyboardInterrupt is raised.

    Raises InputError if PyAV is not installed, or the video can't be read or written.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"{source}: videos need PyAV: pip install av") from error
    if not source.is_file():
        raise InputError(f"{source}: no such video; check its spelling")
    if target.suffix.lower() not in KEPT_CONTAINERS:
        target = target.with_suffix(".mp4")
    refuse_replacing([target], [source])
    try:
        with (
            interrupts_noted() as interrupted,
            av.open(str(source)) as reader,
            atomic_path(target, target.suffix) as temporary,
            av.open(str(temporary), "w") as writer,
        ):
            count = _copy(source, reader, writer, derain, codec, {"crf": str(crf)}, interrupted)
    except (av.FFmpegError, ValueError) as error:
        raise InputError(f"{source}: cannot be read or written as a video ({error}); convert it with ffmpeg") from error
    print(f"\n{count} frames in {target}", flush=True)
    if interrupted():
        print("interrupted: the video ends there", flush=True)
        raise KeyboardInterrupt
    return target


def _copy(
    source: Path,
    reader: Any,
    writer: Any,
    derain: Callable[[np.ndarray], np.ndarray],
    codec: str,
    options: dict[str, str],
    interrupted: Callable[[], bool],
) -> int:
    """Read packets in order, derain the frames of the first video stream, copy the sound; return how many frames."""
    if not reader.streams.video:
        raise InputError(f"{source}: has no video stream; name another file")
    video = reader.streams.video[0]
    announced = video.frames or round(float((reader.duration or 0) / 1_000_000 * (video.average_rate or 0)))
    writer.metadata.update(reader.metadata)
    output, sound, waiting, count, last_pts, began = None, {}, [], 0, -1, time.monotonic()
    shown = began
    for packet in reader.demux(video, *reader.streams.audio):
        if packet.stream.type == "audio":
            waiting += [packet] if packet.dts is not None else []
        while waiting and output is not None:  # nothing can be written before all streams are known
            audio = waiting.pop(0)
            audio.stream = sound[audio.stream]
            writer.mux(audio)
        for frame in packet.decode() if packet.stream is video else ():
            deep = max(component.bits for component in frame.format.components) > 8
            rgb = np.rot90(frame.to_ndarray(format="rgb48le" if deep else "rgb24"), frame.rotation // 90)
            if output is None:
                output = _add_video(writer, video, codec, options, rgb, deep)
                sound = {stream: writer.add_stream_from_template(stream) for stream in reader.streams.audio}
            derained = _encoded(frame, derain(np.ascontiguousarray(rgb)), output, deep)
            last_pts = derained.pts = max(last_pts + 1, last_pts if frame.pts is None else frame.pts)
            writer.mux(output.encode(derained))
            count += 1
            if time.monotonic() - shown > 5 or count == 1:
                shown, pace = time.monotonic(), count / (time.monotonic() - began)
                left = f", {max(0, announced - count) / pace / 60:.0f} min left" if announced else ""
                print(f"frame {count}/{announced or '?'} {pace:.2f} frames/s{left}", flush=True)
        if interrupted():
            break
    if output is None:
        raise InputError(f"{source}: no frame can be read; get the video again")
    writer.mux(output.encode(None))
    if count < announced and not interrupted():
        print(f"{source}: announces {announced} frames; {count} could be read, and those were derained", flush=True)
    return count


def _add_video(writer: Any, video: Any, codec: str, options: dict[str, str], rgb: np.ndarray, deep: bool) -> Any:
    """Add a video stream for frames like `rgb`, with the timing, shape and colours of the one that is read."""
    height, width = rgb.shape[:2]
    output = writer.add_stream(codec, rate=video.average_rate or 25, options=options)
    context, like = output.codec_context, video.codec_context
    chroma = "444" if height % 2 or width % 2 else "420"
    output.width, output.height, output.pix_fmt = width, height, f"yuv{chroma}p{'10le' if deep else ''}"
    context.time_base = video.time_base
    aspect = video.sample_aspect_ratio
    if aspect:
        context.sample_aspect_ratio = aspect if (height, width) == (like.height, like.width) else 1 / aspect
    context.color_range, context.colorspace = like.color_range, like.colorspace
    context.color_primaries, context.color_trc = like.color_primaries, like.color_trc
    return output


def _encoded(frame: Any, rgb: np.ndarray, output: Any, deep: bool) -> Any:
    """Return a derained frame in the stream's pixel format, with the colour matrix of the one it replaces."""
    import av

    derained = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb48le" if deep else "rgb24")
    derained = derained.reformat(
        format=output.pix_fmt, dst_colorspace=frame.colorspace, dst_color_range=frame.color_range
    )
    derained.time_base = frame.time_base
    return derained
