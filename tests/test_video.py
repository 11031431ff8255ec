"""Videos through PyAV: times, shape, colours and sound come out as they went in; videos resume."""

import re
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
from conftest import ROOT

from derain.frames import is_video
from derain.video import derain_video
from utils import InputError

av = pytest.importorskip("av", reason="an extra requirement")

DATA = Path(__file__).parent / "data"
TIMES = (0, 40, 80, 200, 240, 500)  # milliseconds: a variable frame rate
Image = np.ndarray


class Network:
    """Darken frames and count them; fail at one of them."""

    def __init__(self, divisor: int = 1, fails_at: int = -1) -> None:
        self.divisor, self.fails_at = divisor, fails_at
        self.frames: list[Image] = []

    def __call__(self, rgb: Image) -> Image:
        if rgb.shape != (64, 64, 3):  # the noise by which derain_video tells networks apart
            self.frames.append(rgb)
        if len(self.frames) == self.fails_at:
            raise InputError("no more memory")
        return rgb // self.divisor


same = Network()


def images(count: int, width: int = 64, height: int = 48) -> list[Image]:
    """Return smooth colours that move, so that compression changes little."""
    y, x = np.mgrid[:height, :width]
    frames = []
    for n in range(count):
        channels = [40 + 2 * x + 3 * (n % 20), 200 - 2 * y, np.full_like(x, 60 + 8 * (n % 20))]
        frames.append(np.stack(channels, axis=2).astype(np.uint8))
    return frames


def write_film(
    path: Path,
    pictures: list[Image],
    times: Sequence[int] = range(0, 10_000, 40),
    sound: tuple[str, ...] = (),
    codec: str = "libx264",
    layout: str = "mono",
    **encoder: object,
) -> Path:
    """Write a video of frames that have these times, in milliseconds.

    sound: codecs of tracks, of which the second is the default. encoder: its attributes.
    """
    colours = {f"dst_{name}": encoder.get(name) for name in ("colorspace", "color_range")}
    with av.open(str(path), "w", options={"movflags": "faststart"}) as writer:
        stream = writer.add_stream(codec, rate=25, options={"crf": "5"})
        stream.height, stream.width, _ = pictures[0].shape
        stream.codec_context.time_base = Fraction(1, 25 if path.suffix == ".avi" else 1000)
        for name, value in {"pix_fmt": "yuv420p", **encoder}.items():
            setattr(stream.codec_context, name, value)
        tracks = [writer.add_stream(name, rate=44100, layout=layout) for name in sound]
        for number, track in enumerate(tracks):
            track.disposition = int(number == 1)
            track.metadata["language"] = "fra"
        writer.metadata["title"] = "Rain"
        for number, (rgb, time) in enumerate(zip(pictures, times, strict=False)):
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format=stream.pix_fmt, **colours)
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            writer.mux(stream.encode(frame))
            for track in tracks:
                wave = np.random.RandomState(number).uniform(-0.3, 0.3, (1, 1764))
                chunk = av.AudioFrame.from_ndarray(wave.astype(np.float32), "fltp", "mono")
                chunk.sample_rate, chunk.pts = 44100, round(44.1 * time)
                chunk.time_base = Fraction(1, 44100)
                writer.mux(track.encode(chunk))
        for output in (stream, *tracks):
            writer.mux(output.encode(None))
    return path


def read_film(path: Path) -> dict:
    """Return what a player would see."""
    with av.open(str(path)) as reader:
        video = reader.streams.video[0]
        context = video.codec_context
        frames = list(reader.decode(video))
        return {
            "times": [round(1000 * float(frame.pts * frame.time_base)) for frame in frames],
            "rgb": [frame.to_ndarray(format="rgb24") for frame in frames],
            "aspect": video.sample_aspect_ratio or 1,
            "matrix": (context.colorspace, context.color_range),
            "colours": (context.color_primaries, context.color_trc),
            "pix_fmt": context.pix_fmt,
            "tag": context.codec_tag,
            "title": reader.metadata.get("title"),
            "defaults": [int(stream.disposition) & 1 for stream in reader.streams.audio],
            "languages": [stream.metadata.get("language") for stream in reader.streams.audio],
        }


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as reader:
        packets = [packet for packet in reader.demux() if packet.size]
        return [bytes(packet) for packet in packets if packet.stream_index == 1]


def difference(first: list[Image], second: list[Image]) -> float:
    """Return the largest mean difference of two frames, in levels of 8 bits, as `second` has."""
    scale = np.iinfo(first[0].dtype).max / 255
    return max(np.abs(a / scale - b).mean() for a, b in zip(first, second, strict=True))


def fails(source: Path, target: Path, **settings: object) -> str:
    """Check that a call fails with one line, before any work, and leaves nothing."""
    network = Network()
    with pytest.raises(InputError) as caught:
        derain_video(source, target, network, **settings)
    assert "\n" not in str(caught.value)
    assert network.frames == []
    assert not target.parent.exists() or list(target.parent.iterdir()) == []
    return str(caught.value)


KINDS = {
    "odd size": ((63, 41), {"pix_fmt": "yuv444p", "sample_aspect_ratio": Fraction(4, 3)}),
    "BT.709": ((64, 48), {"colorspace": 1, "color_range": 1, "color_primaries": 1}),
    "BT.601, full": ((64, 48), {"colorspace": 5, "color_range": 2, "color_trc": 6}),
    "10 bits": ((64, 48), {"pix_fmt": "yuv420p10le", "colorspace": 9, "color_trc": 16}),  # HDR10
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_not_rain_stays(tmp_path: Path, kind: str, suffix: str) -> None:
    size, settings = KINDS[kind]
    pictures = images(6, *size)
    source = write_film(tmp_path / f"in{suffix}", pictures, TIMES, ("aac", "aac"), **settings)
    network, target = Network(divisor=2), tmp_path / f"out/in{suffix}"
    derain_video(source, target, network, crf=5)
    before, after = read_film(source), read_film(target)
    assert after["times"][0] < 25  # Matroska begins with the sound, a little earlier
    assert np.diff(after["times"]).tolist() == np.diff(TIMES).tolist()
    for name in ("aspect", "matrix", "colours", "pix_fmt", "title", "defaults", "languages"):
        assert after[name] == before[name], name
    assert difference([rgb // 2 for rgb in before["rgb"]], after["rgb"]) < 4
    assert network.frames[0].dtype == (np.uint16 if kind == "10 bits" else np.uint8)
    assert difference(network.frames, pictures) < 6  # RGB, not BGR, and the right colour matrix
    assert sound_of(target) == sound_of(source)
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("codec", ["libx264", "ffv1"])
def test_nothing_gets_darker(tmp_path: Path, codec: str) -> None:
    """Not even by the level that swscale loses when it rounds fast."""
    ramp = np.broadcast_to(np.linspace(20, 230, 320).astype(np.uint8)[:, None], (240, 320, 3))
    source = write_film(tmp_path / "in.mkv", [ramp] * 6)
    after = derain_video(source, tmp_path / "out.mkv", same, codec, crf=5)

    def luma_of(path: Path) -> float:
        with av.open(str(path)) as reader:
            return np.mean([frame.to_ndarray()[:240].mean() for frame in reader.decode(video=0)])

    assert luma_of(after) == pytest.approx(luma_of(source), abs=0.1)


def test_rgb_becomes_bt709(tmp_path: Path) -> None:
    """A file of RGB has no matrix for 4:2:0; with its tag players would show other colours."""
    source = write_film(tmp_path / "in.mov", images(6), codec="png", pix_fmt="rgb24")
    after = read_film(derain_video(source, tmp_path / "out.mov", same, crf=5))
    assert after["matrix"] == (1, 2)
    assert difference(after["rgb"], images(6)) < 3


ONE = 1 << 16  # in the fixed point of the matrix
TURNS = {
    "right": ((0, ONE, 0, -ONE, 0), lambda rgb: np.rot90(rgb, -1)),
    "mirrored": ((-ONE, 0, 0, 0, ONE), np.fliplr),
}


@pytest.mark.parametrize("turn", TURNS)
def test_films_of_phones_come_upright(tmp_path: Path, turn: str) -> None:
    matrix, upright = TURNS[turn]
    aspect = Fraction(4, 3)
    source = write_film(tmp_path / "in.mp4", images(6), sample_aspect_ratio=aspect)
    data = bytearray(source.read_bytes())
    struct.pack_into(">5i", data, data.index(b"tkhd") + 44, *matrix)
    source.write_bytes(data)
    after = read_film(derain_video(source, tmp_path / "out.mp4", same, crf=5))
    assert after["aspect"] == (aspect if matrix[0] else 1 / aspect)
    assert difference(after["rgb"], [upright(rgb) for rgb in images(6)]) < 5


@pytest.mark.parametrize("suffix", [".ts", ".mkv", ".flv", ".avi"])
@pytest.mark.parametrize("first", [0, 30_000_000, 95_442_200])
def test_a_clock_may_begin_anywhere(tmp_path: Path, first: int, suffix: str) -> None:
    """As in broadcasts. A transport stream's clock wraps after the last time; AVI's begins at 0."""
    first *= suffix != ".avi"
    times = range(first, first + 800, 40)
    order = {"max_b_frames": 0} if suffix == ".avi" else {}  # AVI has no times for another one
    source = write_film(tmp_path / f"in{suffix}", images(20), times, sound=("aac",), **order)
    target = derain_video(source, tmp_path / "out.mp4", same)
    assert read_film(target)["times"] == list(range(0, 800, 40))
    assert len(sound_of(target)) == len(sound_of(source))


def test_avi_keeps_its_gaps(tmp_path: Path) -> None:
    """As cameras leave them that drop frames, with a sound whose channels it does not name."""
    times = [0, 40, 80, 120, 400, 440, 480, 800, 840, 1200]
    source = write_film(tmp_path / "in.avi", images(10), times, ("pcm_s16le",), "mpeg4", "stereo")
    assert read_film(derain_video(source, tmp_path / "out.mp4", same))["times"] == times


def write_faulty(name: str, folder: Path) -> Path:
    """Write a video with a fault somewhere after its first second, or interlaced."""
    if name == "interlaced.mts":
        return write_film(folder / name, images(50), flags=(1 << 18) | (1 << 29))
    if name == "joined.avi":  # by its B-frames, whose times are those of another order
        return write_film(folder / name, images(50))
    if name == "joined.mp4":  # a stream without any times
        with av.open(str(folder / name), "w", format="h264") as writer:
            stream = writer.add_stream("libx264", rate=25)
            stream.height, stream.width, _ = images(1)[0].shape
            for rgb in images(50):
                writer.mux(stream.encode(av.VideoFrame.from_ndarray(rgb)))
            writer.mux(stream.encode(None))
        return folder / name
    # Without B-frames, of which the cut could leave a later one and lose an earlier one.
    path = write_film(folder / name, images(100), sound=("aac",), gop_size=20, max_b_frames=0)
    whole = path.read_bytes()
    half = len(whole) // 2
    if path.name == "joined.ts":
        path.write_bytes(whole + whole)
    if path.stem == "of another size":
        other = write_film(folder / "other.ts", images(50, 80, 60), range(4000, 6000, 40))
        path.write_bytes(whole + other.read_bytes())
    if path.stem == "damaged":
        path.write_bytes(whole[:half] + bytes(4000) + whole[half + 4000 :])
    if path.stem == "cut off":
        path.write_bytes(whole[:half])
    return path


FAULTY = ("interlaced.mts", "joined.ts", "joined.avi", "joined.mp4", "of another size.ts")
FAULTY += ("damaged.mp4", "cut off.mp4", "cut off.mkv", "cut off.avi", "cut off.flv")


@pytest.mark.parametrize("name", FAULTY)
def test_faults_are_found_before_any_work(tmp_path: Path, name: str) -> None:
    """What comes before the fault can be derained."""
    source = write_faulty(name, tmp_path)
    line = fails(source, tmp_path / "out/in.mp4")
    assert "ffmpeg -i" in line
    assert f": {source.stem} " in line or ": damaged " in line  # the cut may be within a frame
    seconds = int(re.search(r"after second (\d+);", line)[1])
    assert (seconds == 0) == (name in ("interlaced.mts", "joined.avi", "joined.mp4"))
    if seconds:
        target = derain_video(source, tmp_path / "part.mp4", same, duration=seconds)
        assert read_film(target)["times"] == list(range(0, 1000 * seconds, 40))


@pytest.mark.parametrize(
    ("name", "frames", "note"),
    [
        ("cover_first.mp4", 10, "left out"),
        ("subtitles_end_later.mkv", 20, "left out"),
        ("sound_repeats_a_time.mkv", 40, ""),
    ],
)
def test_odd_films_are_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, frames: int, note: str
) -> None:
    target = derain_video(DATA / name, tmp_path / "out.mp4", same)
    assert len(read_film(target)["times"]) == frames
    assert sound_of(target) == sound_of(DATA / name) or name == "cover_first.mp4"
    assert note in capsys.readouterr().err


def test_lost_alpha_is_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also VP9's, which the decoder hides."""
    for name, codec, layout in (("a.webm", "libvpx-vp9", "yuva420p"), ("b.mov", "png", "rgba")):
        source = write_film(tmp_path / name, images(6), codec=codec, pix_fmt=layout)
        derain_video(source, tmp_path / "out.mp4", same)
        assert f"{name}: subtitles, chapters, alpha" in capsys.readouterr().err


def test_a_part(tmp_path: Path) -> None:
    """Seconds count from the first frame. Key frames do not matter."""
    times = range(30_000_000, 30_002_400, 40)
    source = write_film(tmp_path / "in.mkv", images(60), times, sound=("aac",), gop_size=20)
    target = tmp_path / "out.mp4"
    after = read_film(derain_video(source, target, same, crf=5, start=1.2, duration=0.4))
    assert after["times"] == list(range(0, 400, 40))
    assert difference(after["rgb"], images(60)[30:40]) < 5
    packets = [sound_of(source).index(packet) for packet in sound_of(target)]
    seconds = np.array(packets) * 1024 / 44100
    assert (seconds[0], seconds[-1]) == pytest.approx((1.1, 1.6), abs=0.05)
    assert "no readable frame in --start 9" in fails(source, tmp_path / "none/none.mp4", start=9)


def test_a_recording_may_begin_between_key_frames(tmp_path: Path) -> None:
    source = write_film(tmp_path / "in.ts", images(60), gop_size=20)
    data = source.read_bytes()
    source.write_bytes(data[len(data) // 4 // 188 * 188 :])
    after = read_film(derain_video(source, tmp_path / "out.mp4", same))
    assert 30 <= len(after["times"]) < 50
    assert (after["times"][0], set(np.diff(after["times"]))) == (0, {40})


@pytest.mark.parametrize("codec", ["aac", "prores_ks", "libx264"])
def test_what_does_not_fit_is_named(tmp_path: Path, codec: str) -> None:
    sound = ("adpcm_ms",) if codec == "libx264" else ()
    source = write_film(tmp_path / "in.avi", images(6), sound=sound)
    line = fails(source, tmp_path / "out/in.mp4", codec=codec)
    assert ".mkv" in line
    assert codec == "libx264" or f"--codec {codec}" in line
    assert not sound or sound[0] in line


@pytest.mark.parametrize("kind", ["JPEG", "AVIF"])
def test_images_are_no_films(tmp_path: Path, kind: str) -> None:
    PIL.Image.fromarray(images(1)[0]).save(tmp_path / "in.mp4", kind)
    assert "in.mp4: holds no video" in fails(tmp_path / "in.mp4", tmp_path / "out/in.mp4")


def test_a_full_disk_is_an_error_of_the_target(tmp_path: Path) -> None:
    source = write_film(tmp_path / "in.mp4", images(6))
    target, limits = tmp_path / "out/in.mp4", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores its signal
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            derain_video(source, target, same)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(target)
    assert not target.exists()


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derain.frames.av", None)
    assert "pip install" in fails(tmp_path / "in.mp4", tmp_path / "out/in.mp4")


def test_is_video(tmp_path: Path) -> None:
    (tmp_path / "clips.mov").mkdir()
    names = ("drive.MP4", "00001.mts", "VTS_01_1.VOB", "drive.png", tmp_path / "clips.mov")
    assert [is_video(Path(name)) for name in names] == [True, True, True, False, False]


# A program that derains a video and is killed at the frame of number 260.
KILLED = """
import itertools, os, sys
from pathlib import Path
from derain.video import derain_video

numbers = itertools.count()

def stop(rgb):
    return rgb if next(numbers) < 260 else os.kill(os.getpid(), 9)

derain_video(Path(sys.argv[1]), Path(sys.argv[2]), stop, "libx265")
"""


def test_a_killed_film_resumes(tmp_path: Path) -> None:
    """The result is as without an interruption, and most frames are not derained twice."""
    times = [40 * n + 7 * (n % 3) + 900 * (n // 200) for n in range(300)]
    source = write_film(tmp_path / "in.mp4", images(300), times, sound=("aac",))
    whole = read_film(derain_video(source, tmp_path / "whole.mp4", same, "libx265"))
    target = tmp_path / "out/in.mp4"
    command = [sys.executable, "-c", KILLED, source, target]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="typo"):  # which another call does not lose
        derain_video(source, target, same, codec="typo")
    (part,) = target.parent.glob(".*/*.nut")
    assert len(read_film(part)["times"]) > 150  # it plays

    network = Network()
    derain_video(source, target, network, "libx265")
    assert len(network.frames) <= 150
    assert list(target.parent.iterdir()) == [target]
    after = read_film(target)
    assert after["tag"] == "hvc1"  # as Apple's players want it
    assert after["times"] == whole["times"]
    assert difference(after["rgb"], whole["rgb"]) < 5
    assert sound_of(target) == sound_of(source)


def test_an_error_loses_no_frame_and_another_call_begins_anew(tmp_path: Path) -> None:
    source, target = write_film(tmp_path / "in.mp4", images(60)), tmp_path / "out.mp4"
    for divisor, crf, derained in ((1, 17, 12), (2, 17, 60), (1, 10, 60)):
        with pytest.raises(InputError, match="memory"):
            derain_video(source, target, Network(fails_at=50))
        network = Network(divisor)
        derain_video(source, target, network, crf=crf)
        assert len(network.frames) == derained
        assert difference(read_film(target)["rgb"], [rgb // divisor for rgb in images(60)]) < 5
