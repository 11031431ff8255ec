"""Films: every frame is derained; times, colours and sound stay as they are.

The result grows in a hidden folder beside the target, in a file that plays even if the process is
killed. The next call copies its complete frames and derains the others.
"""

import hashlib
import math
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from derain.cli import interrupts_noted
from utils import InputError

try:
    import av
except ImportError:  # an extra requirement
    av = None

VIDEO_SUFFIXES = {".3g2", ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"}
VIDEO_SUFFIXES |= {".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"}
KEPT_CONTAINERS = (".mp4", ".mov", ".m4v", ".mkv")
# An MP4 of fragments plays as far as it was written. FFmpeg makes a usual one of it at the end.
FRAGMENTS = "hybrid_fragmented+frag_keyframe+delay_moov"
ENCODER = {"g": "50", "x265-params": "open-gop=0:log-level=error"}  # a film resumes at a key frame
REPACKING = {"aac": "aac_adtstoasc", "h264": "h264_mp4toannexb", "hevc": "hevc_mp4toannexb"}
MATRICES = (1, 2, 4, 5, 6, 7, 9)  # that PyAV converts, in FFmpeg's numbers; 2 is unspecified


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
    """Derain a film and return the file written.

    derain: a frame -> the same, (H, W, 3) RGB, uint8, or uint16 if it has more than 8 bits.
    start, duration: the part to derain, in seconds from the first frame.
    Raises InputError before the first frame if film, codec or container can't be used, or where
    the film is damaged; KeyboardInterrupt after Ctrl-C or SIGTERM. The same call resumes.
    """
    if target.suffix.lower() not in KEPT_CONTAINERS:
        raise InputError(f"{target}: films are written as .mp4, .mov, .m4v or .mkv; rename it")
    first, begin, end, total = _inspect(source, start, duration)
    folder = target.with_name(f".{target.name}.unfinished")
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    made_of = (source.stat().st_size, source.stat().st_mtime, codec, crf, start)
    key = hashlib.sha256(repr(made_of).encode() + derain(noise).tobytes()).hexdigest()[:8]
    paths = [folder / f"{key}-{number}{target.suffix}" for number in (1, 2)]
    work, kept = sorted(paths, key=lambda path: sum(1 for _ in _complete_packets(path)))
    complete = _complete_packets(kept)
    options = {"flush_packets": "1"}
    if target.suffix.lower() != ".mkv":
        options["movflags"] = FRAGMENTS
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with (
            interrupts_noted() as interrupted,
            tqdm(desc=source.name, total=total, unit="frame", leave=False) as progress,
            av.open(f"file:{work}", "w", options=options) as writer,
        ):
            picture, sound = _add_streams(writer, source, first, codec, crf)
            clock: dict[int, Fraction] = {}
            for item in _read(source, first, begin, end):
                if interrupted():
                    break
                if isinstance(item, av.Packet):
                    copy, repacking = sound[item.stream_index]
                    _mux(writer, repacking.filter(item), copy, clock)
                    continue
                packets = [next(complete, None)]
                if packets == [None]:
                    packets = picture.encode(_frame(derain(_rgb(item)), item, picture))
                _mux(writer, packets, picture, clock)
                progress.update()
            _mux(writer, picture.encode(None), picture, clock)
        if interrupted():
            note = f"{source}: {progress.n} of {total} frames are done; the same command resumes"
            tqdm.write(note, sys.stderr)
            raise KeyboardInterrupt
        work.replace(target)
        shutil.rmtree(folder, ignore_errors=True)
    except av.FFmpegError as error:
        if isinstance(error, OSError):  # such as a full disk
            raise OSError(error.errno, error.strerror, str(target)) from error
        raise InputError(f"{target}: cannot be written: {error.strerror}") from error
    finally:
        if next(_complete_packets(work), None) is None:
            work.unlink(missing_ok=True)
        with suppress(OSError):  # something is kept there
            folder.rmdir()
    return target


@contextmanager
def _opened(source: Path) -> Iterator[tuple[Any, Any]]:
    """Open a video file; yield its reader and the stream of the picture."""
    if av is None or tuple(map(int, av.__version__.split(".")[:2])) < (17, 1):
        raise InputError(f"{source}: films need PyAV: pip install 'av>=17.1'")
    try:
        reader = av.open(f"file:{source}")  # a name may hold a colon
    except av.FFmpegError as error:
        raise InputError(f"{source}: cannot be read as a film: {error.strerror}") from error
    with reader:  # PyAV must not be left to close it while it collects garbage
        for video in reader.streams.video:
            is_cover = video.disposition & av.stream.Disposition.attached_pic
            if not is_cover and not reader.format.name.endswith("_pipe"):  # an image
                yield reader, video
                return
        raise InputError(f"{source}: holds no film; name another file")


def _decode(packet: Any) -> list[Any] | None:
    """Return the frames of a packet; None if it is damaged."""
    with suppress(av.FFmpegError):
        frames = packet.decode()
        if not any(frame.is_corrupt for frame in frames):
            return frames
    return None


def _inspect(source: Path, start: float, duration: float | None) -> tuple[Any, Any, Any, int]:
    """Return the first frame, where to begin and end on the file's clock, and how many frames.

    Reads the whole file: if it was cut off, or joined of several, the InputError comes now.
    """
    with _opened(source) as (reader, video):
        first, clock, reached = None, [-math.inf], Fraction(0)
        for packet in reader.demux():
            if packet.stream is video and first is None:
                first = next(iter(_decode(packet) or ()), None)
            if packet.pts is not None:
                reached = max(reached, (packet.pts + (packet.duration or 0)) * packet.time_base)
            if packet.stream is video and packet.dts is not None:
                clock.append(packet.dts * packet.time_base)
                if clock[-1] < clock[-2] - 1:
                    fix = f"first give it one: ffmpeg -i {source} -c copy NEW.mkv"
                    raise InputError(f"{source}: its clock starts again, as in joined files; {fix}")
        if first is None or first.pts is None:
            raise InputError(f"{source}: no frame can be read; get it again")
        begin = first.pts * first.time_base + Fraction(str(start))
        end = begin + Fraction(str(duration or 10**9))
        announced = 0.0  # in other containers an estimate
        if reader.format.name.startswith(("mov", "matroska")):
            announced = (reader.duration or 0) / 1e6
        if reached < min(end, announced - 0.5):
            fix = f"get it again, or add --duration {float(reached - begin) - 0.05:.1f}"
            raise InputError(f"{source}: ends early, as if cut off; {fix}")
        if start < 0 or begin >= reached:
            raise InputError(f"{source}: no frame from --start {start} on")
        return first, begin, end, sum(begin <= time < end for time in clock)


def _read(source: Path, first: Any, begin: Fraction, end: Fraction) -> Iterator[Any]:
    """Yield packets of sound and frames like `first`, deinterlaced; `begin` becomes time 0.

    Raises InputError at damage.
    """
    with _opened(source) as (reader, video):
        video.thread_type = "AUTO"  # several threads decode ahead
        graph = av.filter.Graph()
        yadif = graph.add("yadif", "deint=interlaced")
        graph.link_nodes(
            graph.add_buffer(template=video), yadif, graph.add("buffersink")
        ).configure()
        size = (first.width, first.height)
        last = first.pts - 1
        for packet in reader.demux(video, *reader.streams.audio):
            if packet.stream is not video:
                if packet.pts is not None:
                    packet.pts = packet.dts = packet.pts - round(begin / packet.time_base)
                    # Decoders need some sound before the first that is heard.
                    if -0.1 <= packet.pts * packet.time_base < end - begin:
                        yield packet
                continue
            if last * video.time_base >= end:
                continue  # only sound follows
            frames = _decode(packet)
            if frames is None and last < first.pts:
                continue  # a recording may begin between key frames
            if frames is None or {(frame.width, frame.height) for frame in frames} - {size}:
                seconds = float(last * video.time_base - begin) - 0.05  # rounded down
                fix = f"get it again, or add --duration {seconds:.1f}"
                raise InputError(f"{source}: damaged, or of another size from there on; {fix}")
            for frame in frames:
                if frame.pts is None or reader.format.name == "avi":  # which stores no times
                    frame.pts = last + 1
                last = frame.pts = max(frame.pts, last + 1)
                if begin <= last * video.time_base < end:
                    frame.pts -= round(begin / video.time_base)
                    graph.push(frame)
                    with suppress(BlockingIOError):  # yadif waits for the next frame
                        yield graph.pull()
        graph.push(None)
        with suppress(EOFError):
            yield graph.pull()


def _rgb(frame: Any) -> np.ndarray:
    """Return a frame as (H, W, 3) RGB, uint8, or uint16 if it has more than 8 bits, upright."""
    bits = max(component.bits for component in frame.format.components)
    image = frame.to_ndarray(format="rgb48le" if bits > 8 else "rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return image
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]  # x' = a x + c y, y' = b x + d y
    if b:
        image, a, d = image.swapaxes(0, 1), c, b
    return np.ascontiguousarray(image[:: np.sign(d), :: np.sign(a)])


def _frame(rgb: np.ndarray, original: Any, picture: Any) -> Any:
    """Return a derained image as a frame for a stream, at the time of the original frame."""
    layout = "rgb24" if rgb.dtype == np.uint8 else "rgb48le"
    context = picture.codec_context
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), layout).reformat(
        format=context.pix_fmt,
        dst_colorspace=context.colorspace,
        dst_color_range=context.color_range,
    )
    frame.pts, frame.time_base, frame.duration = original.pts, original.time_base, original.duration
    return frame


def _add_streams(writer: Any, source: Path, first: Any, codec: str, crf: int) -> tuple[Any, dict]:
    """Add a stream for frames like `first`, and copies of the sound by index; return both.

    Raises InputError if codec, sound and container do not fit each other.
    """
    with _opened(source) as (reader, video):
        image = _rgb(first)
        height, width, _ = image.shape
        chroma = "444" if height % 2 or width % 2 else "420"
        depth = "10le" if image.dtype == np.uint16 else ""
        aspect = video.sample_aspect_ratio
        if aspect and first.rotation % 180:
            aspect = 1 / aspect
        sound = {}
        try:
            options = {"crf": str(crf), **ENCODER}
            picture = writer.add_stream(codec, rate=video.average_rate or 25, options=options)
            picture.width, picture.height, picture.pix_fmt = width, height, f"yuv{chroma}p{depth}"
            context = picture.codec_context
            context.time_base = video.time_base
            context.flags |= av.codec.context.Flags.frame_duration
            if aspect:
                context.sample_aspect_ratio = aspect
            context.colorspace, context.color_range = 1, 1  # BT.709, limited
            if first.colorspace in MATRICES:  # RGB is not
                context.colorspace, context.color_range = first.colorspace, first.color_range
            context.color_primaries, context.color_trc = first.color_primaries, first.color_trc
            if context.codec.canonical_name == "hevc" and writer.format.name != "matroska":
                context.codec_tag = "hvc1"  # the one that Apple's players take
            for stream in reader.streams.audio:
                copy = writer.add_stream_from_template(stream)
                sound[stream.index] = copy, _repacking(stream)
                copy.disposition = stream.disposition
                copy.metadata.update(stream.metadata)  # its language
            writer.metadata.update(reader.metadata)
            writer.start_encoding()
        except (av.FFmpegError, AttributeError, TypeError, ValueError) as error:
            fix = (
                "try --codec libx264, --out NAME.mkv, or first ffmpeg -i ... -c:v copy -c:a aac ..."
            )
            raise InputError(f"{source} with --codec {codec}: {error}; {fix}") from error
        lost = {
            stream.type for stream in reader.streams if stream.index not in (video.index, *sound)
        }
        if reader.chapters():
            lost.add("chapters")
        if any(component.is_alpha for component in first.format.components):
            lost.add("alpha")
        if first.side_data.get("MASTERING_DISPLAY_METADATA"):
            lost.add("HDR metadata")
        if lost:
            tqdm.write(f"{source}: left out: {', '.join(sorted(lost))}", sys.stderr)
        return picture, sound


def _mux(writer: Any, packets: list[Any], stream: Any, clock: dict[int, Fraction]) -> None:
    """Write packets to a stream, at decoding times that rise, as containers demand.

    clock: of each stream the earliest time for the next packet, in seconds.
    """
    for packet in packets:
        packet.stream = stream
        if packet.dts is None:  # the first ones from Matroska
            packet.dts = packet.pts - round(1 / packet.time_base)
        earliest = clock.get(stream.index, packet.dts * packet.time_base)
        packet.dts = max(packet.dts, math.ceil(earliest / packet.time_base))
        packet.pts = max(packet.pts, packet.dts)
        clock[stream.index] = packet.dts * packet.time_base + stream.time_base
        writer.mux(packet)


def _complete_packets(path: Path) -> Iterator[Any]:
    """Yield the packets before the last key frame of an unfinished film, if there is one."""
    waiting: list[Any] = []
    with suppress(av.FFmpegError), av.open(f"file:{path}") as reader:
        repacking = _repacking(reader.streams.video[0])
        for packet in reader.demux(video=0):
            if packet.is_keyframe:
                yield from waiting
                waiting = []
            waiting += repacking.filter(packet)


def _repacking(stream: Any) -> Any:
    """Return the filter that packs a file's packets as an encoder does."""
    return av.BitStreamFilterContext(REPACKING.get(stream.codec_context.name, "null"), stream)
