"""A video, derained frame by frame through PyAV (`pip install av`): each frame comes out as it would as an image.

Timestamps, aspect ratio, colour matrix and range, bit depth (8 or 10), metadata and sound stay as they are. The frames
are encoded again, upright, in 4:2:0 (odd sizes in 4:4:4, which keeps them); alpha is dropped.
"""

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from derain.cli import interrupts_noted
from utils import InputError, atomic_path

VIDEO_SUFFIXES = {".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp"}
KEPT_CONTAINERS = {".mp4", ".mov", ".m4v", ".mkv"}  # others become .mp4
MATRICES = (1, 2, 4, 5, 6, 7, 9)  # that PyAV converts, in FFmpeg's numbers; 2 is unspecified
BT709, LIMITED = 1, 1
FRAME_DURATION = 1 << 8  # the codec flag by which packets last as long as their frames
CONTAINER_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder"}  # which the writer sets itself


def is_video(path: Path) -> bool:
    """Whether a path is a video's, by its suffix."""
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
    """Derain a video file and return the file written: `target`, or with .mp4 in place of a suffix that can't be kept.

    derain: one frame, (H, W, 3) RGB, uint8 or (of videos with more than 8 bits) uint16. codec, crf: of the encoder.
    start, duration: the part to derain, in seconds. The file appears when it is complete. After Ctrl-C or SIGTERM
    it holds the frames so far, and KeyboardInterrupt is raised.

    Raises InputError if PyAV is not installed, or the video is damaged, cut off, or can't be read or written.
    """
    try:
        import av
    except ImportError as error:
        raise InputError(f"{source}: videos need PyAV: pip install av") from error
    if tuple(map(int, av.__version__.split(".")[:2])) < (17, 1):  # older ones convert BT.709 and 10 bits wrongly
        raise InputError(f"{source}: PyAV {av.__version__} is too old for videos: pip install 'av>=17.1'")
    end = math.inf if duration is None else start + duration
    if not 0 <= start < end:
        raise InputError(f"--start {start:g} --duration {duration}: give seconds, from 0 and above 0")
    if not source.is_file():
        raise InputError(f"{source}: no such video; check its spelling")
    if target.suffix.lower() not in KEPT_CONTAINERS:
        target = target.with_suffix(".mp4")
    if target.resolve() == source.resolve():
        raise InputError(f"{target}: would replace the input; choose another file or folder")
    try:
        with av.open(f"file:{source}") as reader:  # a name may hold a colon
            first, total, times = _inspect(source, reader, start, end)
        reader = av.open(f"file:{source}")
    except av.FFmpegError as error:
        raise InputError(f"{source}: cannot be read as a video ({error.strerror}); convert it with ffmpeg") from error
    with interrupts_noted() as interrupted, reader, atomic_path(target, target.suffix) as temporary:
        try:
            options = {} if target.suffix.lower() == ".mkv" else {"movflags": "use_metadata_tags"}  # any tag is kept
            with av.open(f"file:{temporary}", "w", options=options) as writer:
                streams = _add_streams(source, reader, writer, first, codec, crf)
                items = _read(source, reader, list(streams), first, start, end, times)
                count = _copy(items, writer, streams, derain, total, interrupted)
        except av.FFmpegError as error:
            if isinstance(error, OSError):  # such as a full disk; atomic_path sets its file name, unlike PyAV's
                raise OSError(error.errno, error.strerror) from error
            how = f"--codec {codec} --crf {crf}"
            raise InputError(f"{target}: cannot be written with {how} ({error.strerror}); change them") from error
        if not count:
            raise KeyboardInterrupt if interrupted() else InputError(f"{source}: no frame can be read; get it again")
    print(f"\n{count} frames in {target}", flush=True)
    if interrupted():
        print("interrupted: the video ends there; the same command starts again", flush=True)
        raise KeyboardInterrupt
    return target


def _inspect(source: Path, reader: Any, start: float, end: float) -> tuple[Any, int, list[int]]:
    """Return the first frame, how many lie between two times, and all timestamps if frames don't bring them (AVI).

    Reads on without decoding, because a file that was cut off should fail now and not after hours.
    """
    if not reader.streams.video:
        raise InputError(f"{source}: has no video stream; name another file")
    video, avi = reader.streams.video[0], reader.format.name == "avi"
    first, times, reached = None, [], 0.0
    for packet in reader.demux(video, *reader.streams.audio):
        if first is None and packet.stream is video:
            first = next(iter(_decoded(packet)), None)
        pts = packet.dts if avi or packet.pts is None else packet.pts
        if pts is None:
            continue
        seconds = _seconds(reader, packet, pts)
        decoded = seconds if packet.dts is None else _seconds(reader, packet, packet.dts)
        if seconds < end and packet.is_corrupt:
            raise _damage(source, decoded, start)
        if packet.stream is video:
            if decoded >= end:
                break
            times.append(pts)
        reached = max(reached, seconds + float((packet.duration or 0) * packet.time_base))
    announced = (reader.duration or 0) / 1e6
    if avi and video.average_rate:  # FFmpeg shortens the duration to the length of the file
        announced = float(video.frames / video.average_rate)
    elif reader.format.name.startswith("mpeg"):  # FFmpeg estimates the duration, there is nothing to compare with
        announced = 0
    if reached < min(announced, end) - max(0.1, 2 / (video.average_rate or 25)):
        raise _damage(source, reached, start)
    if first is None:
        raise InputError(f"{source}: no frame can be read; get the video again")
    count = sum((start or -math.inf) <= _seconds(reader, video, pts) < end for pts in times)
    if not count:
        raise InputError(f"{source}: no frame is left after --start {start:g}, as it lasts {reached:.1f} seconds")
    return first, count, sorted(times) if avi else []


def _seconds(reader: Any, item: Any, pts: int) -> float:
    """Return the time of a packet's or frame's timestamp, in seconds from the beginning of the file."""
    return float(pts * item.time_base) - (reader.start_time or 0) / 1e6


def _damage(source: Path, seconds: float, start: float) -> InputError:
    usable = math.floor(10 * (seconds - start)) / 10
    part = f", or derain what comes before with --duration {usable:g}" if usable > 0 else ""
    return InputError(f"{source}: damaged or cut off at {seconds:.1f} seconds; get it again{part}")


def _decoded(packet: Any) -> list[Any]:
    """Return the frames of one of the first packets; a recording that starts between key frames has none at first."""
    import av

    try:
        return [frame for frame in packet.decode() if not frame.is_corrupt]
    except av.FFmpegError:
        return []


def _read(
    source: Path, reader: Any, streams: list[Any], first: Any, start: float, end: float, times: list[int]
) -> Iterator[tuple[Any, np.ndarray | None]]:
    """Yield (packet of sound, None) and (frame, upright RGB) between two times; `start` becomes time zero."""
    import av

    video, last, number, done = streams[0], None, 0, False
    video.thread_type = "AUTO"  # several threads decode ahead
    begin = start or -math.inf  # sound may begin just before zero
    if start and not times:
        reader.seek(int(1e6 * start) + (reader.start_time or 0))
    for packet in reader.demux(*streams):
        seconds = math.nan if packet.dts is None else _seconds(reader, packet, packet.dts)
        if packet.stream is not video:
            if begin <= seconds < end:
                packet.dts, packet.pts = (t - round(start / packet.time_base) for t in (packet.dts, packet.pts))
                yield packet, None
            continue
        if done:
            if seconds >= end + 1:  # until then sound may follow
                return
            continue
        done = seconds >= end
        try:
            frames = video.codec_context.decode(None) if done else _decoded(packet) if last is None else packet.decode()
        except av.FFmpegError as error:
            raise _damage(source, 0 if last is None else _seconds(reader, video, last), start) from error
        for frame in frames:
            pts, number = times[number] if number < len(times) else frame.pts, number + 1
            if pts is None or (last is not None and pts < last):
                raise InputError(f"{source}: times run backwards; correct them: ffmpeg -i {source} -c copy NEW.mkv")
            seconds = _seconds(reader, video, pts)
            if frame.is_corrupt:
                raise _damage(source, seconds, start)
            if (frame.width, frame.height) != (first.width, first.height):
                raise InputError(f"{source}: from {seconds:.1f} seconds on frames have another size; split it there")
            if pts != last and begin <= seconds < end:
                frame.pts, frame.time_base = pts - round(start / video.time_base), video.time_base
                yield frame, _upright(frame, frame.to_ndarray(format="rgb48le" if _is_deep(frame) else "rgb24"))
            last = pts


def _is_deep(frame: Any) -> bool:
    return max(component.bits for component in frame.format.components) > 8


def _upright(frame: Any, image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) turned and mirrored by the frame's matrix, as players show it."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # x' = a x + c y, y' = b x + d y
    if abs(b) > abs(a):
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _add_streams(source: Path, reader: Any, writer: Any, first: Any, codec: str, crf: int) -> dict[Any, Any]:
    """Add a video stream for frames like the first, and copies of the sound; return them by the streams to read."""
    video = reader.streams.video[0]
    try:
        output = writer.add_stream(codec, rate=video.average_rate or 25, options={"crf": str(crf)})
        sound = {stream: writer.add_stream_from_template(stream) for stream in reader.streams.audio}
    except (ValueError, TypeError) as error:
        what = f"{source} with --codec {codec}"
        raise InputError(f"{what}: {error}; choose another codec, or convert the video with ffmpeg") from error
    context = output.codec_context
    height, width = _upright(first, np.empty((first.height, first.width, 0))).shape[:2]
    chroma = "444" if height % 2 or width % 2 else "420"
    output.width, output.height, output.pix_fmt = width, height, f"yuv{chroma}p{'10le' if _is_deep(first) else ''}"
    context.time_base, context.flags = video.time_base, context.flags | FRAME_DURATION
    if aspect := video.sample_aspect_ratio:
        context.sample_aspect_ratio = aspect if (height, width) == (first.height, first.width) else 1 / aspect
    known = first.colorspace in MATRICES  # RGB, for one, is not
    context.colorspace, context.color_range = (first.colorspace, first.color_range) if known else (BT709, LIMITED)
    context.color_primaries, context.color_trc = video.codec_context.color_primaries, video.codec_context.color_trc
    tags = {tag: text for tag, text in reader.metadata.items() if tag not in CONTAINER_TAGS}
    if "creation_time" in tags:
        tags["creation_time"] = tags["creation_time"].split(";")[0]  # FFmpeg 9 finds it in two places
    writer.metadata.update(tags)
    for stream, copy in sound.items():
        copy.metadata.update(stream.metadata)  # its language
    if others := [stream.type for stream in reader.streams if stream is not video and stream not in sound]:
        print(f"{source}: one video stream and the sound are kept; left out: {', '.join(others)}", flush=True)
    return {video: output, **sound}


def _copy(
    items: Iterator[tuple[Any, np.ndarray | None]],
    writer: Any,
    streams: dict[Any, Any],
    derain: Callable[[np.ndarray], np.ndarray],
    total: int,
    interrupted: Callable[[], bool],
) -> int:
    """Derain the frames and write everything; FFmpeg's own threads encode meanwhile. Return how many frames."""
    output = next(iter(streams.values()))
    count, began, shown = 0, time.monotonic(), -math.inf
    for item, rgb in items:
        if interrupted():
            break
        if rgb is None:
            item.stream = streams[item.stream]
            writer.mux(item)
            continue
        writer.mux(output.encode(_frame(derain(rgb), item, output)))
        count, now = count + 1, time.monotonic()
        if now - shown > 5 or count == total:
            shown, pace = now, count / (now - began)
            left = max(0, total - count) / pace / 60
            print(f"frame {count}/{total} {pace:.2f} frames/s, {left:.0f} min left", flush=True)
    if count:
        writer.mux(output.encode(None))
    return count


def _frame(rgb: np.ndarray, like: Any, output: Any) -> Any:
    """Return a derained image as a frame of the output stream, at the time of the frame it replaces."""
    import av

    layout = "rgb48le" if rgb.dtype == np.uint16 else "rgb24"
    colours = {"dst_colorspace": output.codec_context.colorspace, "dst_color_range": output.codec_context.color_range}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), layout).reformat(format=output.pix_fmt, **colours)
    frame.pts, frame.time_base, frame.duration = like.pts, like.time_base, like.duration
    return frame
