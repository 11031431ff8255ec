"""Video files and cameras through OpenCV: which are read, which codec writes which container, and what is refused."""

from __future__ import annotations

import contextlib
import os
import struct
import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import IO

import cv2
import numpy as np

from utils import InputError, atomic_path

# A container's codecs, best first; the first that the local OpenCV can write is taken. All are of 8 bits and lossy.
CODECS = {
    ".avi": ("MJPG", "XVID"),
    ".mp4": ("mp4v", "avc1"),
    ".m4v": ("mp4v", "avc1"),
    ".mov": ("mp4v", "avc1", "MJPG"),
    ".mkv": ("mp4v", "avc1", "MJPG"),
    ".webm": ("VP80", "VP90"),
}
OTHERS = {".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".mts", ".m2ts", ".3gp", ".ogv"}  # read, and written as .mp4
VIDEO_SUFFIXES = {*CODECS, *OTHERS}

# A playlist can call itself clip.mp4 and name addresses elsewhere: FFmpeg is to open files and nothing else.
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")


def video_source(path: Path) -> Path | int | None:
    """What --data_path means: a video file, a camera's index, or None for pictures."""
    if path.suffix.lower() in VIDEO_SUFFIXES and not path.is_dir():
        return path
    return int(str(path)) if str(path).isdecimal() and not path.exists() else None


def output_name(source: Path | int, size: tuple[int, int]) -> str:
    """The derained video's name: its input's, with another ending behind it where the container must be another.

    size: (width, height). OpenCV's FFmpeg drops the last column or row of odd sizes, in every
    container; its own writer of Motion JPEG keeps them, in .avi alone.
    """
    name = f"camera{source}.avi" if isinstance(source, int) else source.name
    suffix = Path(name).suffix.lower()
    fitting = ".avi" if _odd(size) else suffix if suffix in CODECS else ".mp4"
    return name if fitting == suffix else name + fitting


# ---------------------------------------------------------------- reading


def open_video(source: Path | int) -> cv2.VideoCapture:
    """Open a video file or a camera. Frames come upright: OpenCV follows the rotation that phones note.

    Raises InputError, naming the file or camera, if there is none, it is cut off, or it is no video.
    """
    if isinstance(source, Path):
        if not source.is_file():
            raise InputError(f"{source}: no such video")
        _check_whole(source)
    with quiet():
        try:
            capture = cv2.VideoCapture(source if isinstance(source, int) else str(source))
            opened = capture.isOpened()
        except (cv2.error, UnicodeError):  # UnicodeError: a name that is no text
            opened = False
    if opened:
        return capture
    if isinstance(source, int):
        raise InputError(f"camera {source}: cannot be opened; --data_path takes the number of a connected, free camera")
    raise InputError(f"{source}: not a video that OpenCV can read; convert it to .mp4 or .avi, or get it again")


def read_frame(capture: cv2.VideoCapture, name: str) -> np.ndarray | None:
    """The next frame, (H, W, 3) uint8 RGB, or None after the last. name: of the video, for the error."""
    try:
        found, frame = capture.read()
    except cv2.error as error:
        raise InputError(f"{name}: a frame cannot be decoded ({error.err}); convert it to .mp4") from error
    return np.ascontiguousarray(frame[..., ::-1]) if found else None  # HWC BGR -> HWC RGB


def rate_of(capture: cv2.VideoCapture) -> float | None:
    """Frames per second, to the thousandth, or None if the file or camera doesn't tell.

    Of a variable rate it is the mean. MPEG-4 counts time in at most 65,535 parts of a second, so
    that rates above 60 are to the hundredth.
    """
    rate = capture.get(cv2.CAP_PROP_FPS)
    return round(rate, 2 if rate > 60 else 3) if 0.001 <= rate <= 600 else None


def _check_whole(path: Path) -> None:
    """Raise InputError for an .avi, .mp4, .mov, .mkv or .webm that ends before its own headers say it does.

    OpenCV would read it up to there, or fill what is missing with grey, and say nothing.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            announced = _announced_size(file, size)
    except (struct.error, IndexError):  # it ends within a header
        announced = size + 17
    if announced > size + 16:  # some programs count a header too many
        raise InputError(f"{path}: the video is cut off after {size} bytes; get it again")


def _announced_size(file: IO[bytes], size: int) -> int:
    """How long a file should be by its outermost headers; 0 if they don't say."""
    end, head = 0, file.read(12)
    if head[:4] == b"RIFF":  # .avi: chunks of up to 1 GB one after another
        while end < size - 8:
            file.seek(end)
            kind, length = struct.unpack("<4sI", file.read(8))
            if kind != b"RIFF" or length == 2**32 - 1:
                break
            end += 8 + length
    elif head[4:8] in (b"ftyp", b"wide", b"free", b"mdat", b"moov"):  # .mp4, .mov: boxes one after another
        while end < size - 8:
            file.seek(end)
            length = struct.unpack(">I", file.read(4))[0]
            if length == 1:  # the true length stands behind the name
                length = struct.unpack(">4xQ", file.read(12))[0]
            if length < 8:  # 0: up to the file's end
                break
            end += length
    elif head[:4] == b"\x1a\x45\xdf\xa3":  # .mkv, .webm: a header, then one segment
        for _ in range(2):
            file.seek(end + 4)
            length = _matroska_length(file)
            if length is None:
                return 0
            end = file.tell() + length
    return end


def _matroska_length(file: IO[bytes]) -> int | None:
    """The length that stands at the file's position; None if it is left open, as live recordings have it."""
    first = file.read(1)[0]
    more = 8 - first.bit_length()  # zeros before the first one: how many bytes follow
    value = int.from_bytes(bytes([first & (0x7F >> more)]) + file.read(more), "big")
    return None if value == 2 ** (7 * (more + 1)) - 1 else value


# ---------------------------------------------------------------- writing


@contextlib.contextmanager
def video_writer(path: Path, rate: float, size: tuple[int, int]) -> Iterator[tuple[Callable[[np.ndarray], None], str]]:
    """Give a function that adds a frame, (H, W, 3) uint8 RGB, to a new video, and its codec's four letters.

    At the end the file is read again, and is renamed to `path` if every frame is there; until
    then, and after any failure, what stood at `path` stays. size: (width, height).

    Raises InputError if OpenCV has no codec for the container or could not write all, as on a full disk.
    """
    suffix = path.suffix.lower()
    with atomic_path(path, suffix) as temporary:
        writer, codec = _open_writer(temporary, rate, size)
        count = 0

        def add(rgb: np.ndarray) -> None:
            nonlocal count
            writer.write(np.ascontiguousarray(rgb[..., ::-1]))  # HWC RGB -> HWC BGR
            count += 1

        own = writer.getBackendName() == "CV_MJPEG"
        try:
            yield add, codec
        finally:
            writer.release()
        if own:
            _set_rate(temporary, rate)
        if frames_and_size(temporary) != (count, size):  # OpenCV does not report failed writes
            raise InputError(f"{path}: the video could not be written whole; is the disk full?")


def _open_writer(path: Path, rate: float, size: tuple[int, int]) -> tuple[cv2.VideoWriter, str]:
    backend = cv2.CAP_OPENCV_MJPEG if _odd(size) else cv2.CAP_ANY
    codecs = ("MJPG",) if _odd(size) else CODECS[path.suffix]
    for codec in codecs:
        with quiet():
            writer = cv2.VideoWriter(str(path), backend, cv2.VideoWriter_fourcc(*codec), rate, size)
        if writer.isOpened():
            writer.set(cv2.VIDEOWRITER_PROP_QUALITY, 95)  # of 100; those that go by bits per second ignore it
            return writer, codec
        writer.release()
    raise InputError(
        f"{path.parent}: this OpenCV writes no {path.suffix} of {size[0]}x{size[1]} (tried {', '.join(codecs)}); "
        "pip install opencv-python, or convert the video to .avi"
    )


def _set_rate(path: Path, rate: float) -> None:
    """Put the exact rate into an .avi's headers: OpenCV's own writer of Motion JPEG rounds it to an integer."""
    exact = Fraction(rate).limit_denominator(1001)
    with open(path, "rb+") as file:
        head = file.read(4096)
        file.seek(head.index(b"avih") + 8)
        file.write(struct.pack("<I", round(1e6 / rate)))  # microseconds per frame
        file.seek(head.index(b"strh") + 28)
        file.write(struct.pack("<II", exact.denominator, exact.numerator))  # scale, rate


def frames_and_size(path: Path) -> tuple[int, tuple[int, int]]:
    """How many frames can be decoded, and (width, height); 0 frames if there is no video."""
    with quiet():
        capture, count = cv2.VideoCapture(str(path)), 0
        while capture.grab():
            count += 1
    size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    capture.release()
    return count, size


def _odd(size: tuple[int, int]) -> bool:
    return bool(size[0] % 2 or size[1] % 2)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep from stderr what OpenCV and FFmpeg print themselves: one line of ours says what is wrong."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
