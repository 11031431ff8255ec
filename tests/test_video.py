"""Videos through PyAV: pixels, times, shape, colours and sound come out as they went in; stops and damage are told."""

from __future__ import annotations

import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from derain.video import derain_video, is_video
from networks import DARGNet
from utils import InputError

av = pytest.importorskip("av", reason="an extra requirement")

TIMES = (0, 40, 80, 200, 240, 500)  # milliseconds: a variable frame rate


def frames(width: int, height: int, deep: bool = False) -> list[np.ndarray]:
    """Smooth colours that move, so that compression changes little."""
    y, x = np.mgrid[:height, :width]
    found = []
    for n in range(len(TIMES)):
        rgb = np.stack([40 + 2 * x + 3 * n, 200 - 2 * y, np.full_like(x, 60 + 10 * n)], axis=2) % 256
        found.append((rgb * 257).astype(np.uint16) if deep else rgb.astype(np.uint8))
    return found


def write_video(path: Path, width: int = 64, height: int = 48, sound: bool = False, **options: object) -> Path:
    """Write a clip with a time for each frame. options: attributes of the codec's context."""
    pix_fmt = options.pop("pix_fmt", "yuv444p" if width % 2 else "yuv420p")
    with av.open(str(path), "w") as writer:
        stream = writer.add_stream("libx264", rate=25, options={"crf": "5"})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = Fraction(1, 1000)
        for name, value in options.items():
            setattr(stream.codec_context, name, value)
        audio = writer.add_stream("aac", rate=44100, layout="mono") if sound else None
        writer.metadata["title"] = "Rain"
        for rgb, time in zip(frames(width, height, "10" in pix_fmt), TIMES, strict=True):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb48le" if "10" in pix_fmt else "rgb24")
            frame = frame.reformat(format=pix_fmt, dst_colorspace=options.get("colorspace"))
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            writer.mux(stream.encode(frame))
        writer.mux(stream.encode(None))
        if audio:
            wave = (np.sin(np.arange(22050) / 20) * 0.3).astype(np.float32)[None]
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 0
            writer.mux(audio.encode(frame))
            writer.mux(audio.encode(None))
    return path


def write_images(
    path: Path,
    images: list[np.ndarray],
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    tags: dict[str, str] | None = None,
    sound: bool = False,
    **context: object,
) -> Path:
    """Write images at 25 per second, the index of an MP4 in front. context: attributes of the codec's context."""
    mp4 = {"movflags": "faststart+use_metadata_tags"} if path.suffix in (".mp4", ".mov") else {}
    with av.open(str(path), "w", options=mp4) as writer:
        stream = writer.add_stream(codec, rate=25, options=options or {"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = *images[0].shape[:2], pix_fmt
        for name, value in context.items():
            setattr(stream.codec_context, name, value)
        audio = writer.add_stream("aac", rate=44100, layout="mono") if sound else None
        writer.metadata.update(tags or {})
        for number, rgb in enumerate(images):
            colours = {"dst_colorspace": context.get("colorspace"), "dst_color_range": context.get("color_range")}
            frame = av.VideoFrame.from_ndarray(rgb).reformat(format=pix_fmt, **colours)
            frame.pts, frame.time_base = number, Fraction(1, 25)
            writer.mux(stream.encode(frame))
            if audio:
                wave = np.random.RandomState(number).uniform(-0.3, 0.3, (1, 1764)).astype(np.float32)
                chunk = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = 44100, 1764 * number, Fraction(1, 44100)
                writer.mux(audio.encode(chunk))
        for output in (stream, audio) if audio else (stream,):
            writer.mux(output.encode(None))
    return path


def read_video(path: Path) -> dict[str, object]:
    """What a player would see."""
    with av.open(str(path)) as reader:
        video = reader.streams.video[0]
        shown = list(reader.decode(video))
        context = video.codec_context
        return {
            "times": [round(1000 * float(f.pts * f.time_base)) for f in shown],
            "rgb": [f.to_ndarray(format="rgb24").astype(int) for f in shown],
            "aspect": video.sample_aspect_ratio,
            "colours": (context.colorspace, context.color_range),
            "pix_fmt": context.pix_fmt,
            "title": reader.metadata.get("title"),
        }


def sound_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as reader:
        return [bytes(p) for p in reader.demux(audio=0) if p.size] if reader.streams.audio else []


def same(image: np.ndarray) -> np.ndarray:
    return image


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"width": 63, "height": 41},
        {"sample_aspect_ratio": Fraction(4, 3)},
        {"colorspace": 1, "color_range": 1},
        {"colorspace": 5, "color_range": 1},
        {"pix_fmt": "yuv420p10le"},
        {"sound": True},
    ],
    ids=["plain", "odd size", "aspect 4:3", "BT.709", "BT.601", "10 bits", "sound"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_is_not_rain_stays(tmp_path: Path, options: dict, suffix: str) -> None:
    source = write_video(tmp_path / f"in{suffix}", **options)
    seen: list[np.ndarray] = []
    target = derain_video(source, tmp_path / f"out/in{suffix}", lambda rgb: seen.append(rgb) or rgb, crf=5)
    before, after = read_video(source), read_video(target)
    assert after["times"] == before["times"] == list(TIMES)
    for name in ("aspect", "colours", "pix_fmt", "title"):
        assert after[name] == before[name], name
    for first, second, rgb, expected in zip(
        before["rgb"], after["rgb"], seen, frames(options.get("width", 64), options.get("height", 48)), strict=True
    ):
        assert np.abs(first - second).mean() < 3
        assert rgb.dtype == (np.uint16 if "pix_fmt" in options else np.uint8)
        shown = rgb / 257 if rgb.dtype == np.uint16 else rgb.astype(float)
        assert np.abs(shown - expected).mean() < 6  # RGB, not BGR, and the right colour matrix
    assert sound_of(target) == sound_of(source)
    assert bool(sound_of(source)) == ("sound" in options)


def test_each_frame_is_derained(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4")
    after = read_video(derain_video(source, tmp_path / "out.mp4", lambda rgb: rgb // 2, crf=5))
    for rgb, expected in zip(after["rgb"], frames(64, 48), strict=True):
        assert np.abs(rgb - expected // 2).mean() < 5


@pytest.mark.parametrize(("matrix", "limits"), [(2, 0), (1, 1), (1, 2)], ids=["unspecified", "limited", "full range"])
def test_black_stays_black_and_white_white(tmp_path: Path, matrix: int, limits: int) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    image[:, 32:] = 255
    source = write_images(tmp_path / "in.mp4", [image] * 2, colorspace=matrix, color_range=limits)
    after = read_video(derain_video(source, tmp_path / "out.mp4", same, crf=5))
    assert np.abs(after["rgb"][0] - image).max() < 6
    assert after["colours"] == read_video(source)["colours"]


def test_rgb_becomes_bt709(tmp_path: Path) -> None:
    """A file of RGB notes no matrix that fits 4:2:0; with its tag kept, players would show other colours."""
    source = write_images(tmp_path / "in.mov", frames(64, 48), codec="png", pix_fmt="rgb24")
    after = read_video(derain_video(source, tmp_path / "out.mov", same, crf=5))
    assert (after["colours"], after["pix_fmt"]) == ((1, 1), "yuv420p")
    for rgb, expected in zip(after["rgb"], frames(64, 48), strict=True):
        assert np.abs(rgb - expected).mean() < 3


ONE = 1 << 16  # in the fixed point of the matrix


@pytest.mark.parametrize(
    ("matrix", "upright"),
    [
        ((0, ONE, 0, -ONE, 0), lambda image: np.rot90(image, -1)),
        ((-ONE, 0, 0, 0, -ONE), lambda image: np.rot90(image, 2)),
        ((0, -ONE, 0, ONE, 0), np.rot90),
        ((-ONE, 0, 0, 0, ONE), np.fliplr),
        ((0, ONE, 0, ONE, 0), lambda image: image.swapaxes(0, 1)),
    ],
    ids=["right", "half", "left", "mirrored", "transposed"],
)
def test_videos_of_phones_come_upright(tmp_path: Path, matrix: tuple[int, ...], upright: Callable) -> None:
    source = write_video(tmp_path / "in.mp4", sample_aspect_ratio=Fraction(4, 3))
    data = bytearray(source.read_bytes())
    at = data.index(b"tkhd") + 4 + 40  # behind version, times, identity, duration, layer, volume
    assert struct.unpack_from(">5i", data, at) == (ONE, 0, 0, 0, ONE)
    struct.pack_into(">5i", data, at, *matrix)
    source.write_bytes(data)
    after = read_video(derain_video(source, tmp_path / "out.mp4", same, crf=5))
    assert after["rgb"][0].shape == upright(frames(64, 48)[0]).shape
    assert after["aspect"] == (Fraction(4, 3) if matrix[0] else Fraction(3, 4))
    assert np.abs(after["rgb"][0] - upright(frames(64, 48)[0])).mean() < 5


def test_frames_of_avi_are_evenly_spaced(tmp_path: Path) -> None:
    """AVI stores no times, and those that FFmpeg gives frames between others are not in order."""
    source = write_images(tmp_path / "in.avi", frames(64, 48) * 2)
    after = read_video(derain_video(source, tmp_path / "out.mp4", same))
    assert after["times"] == list(range(0, 480, 40))


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_tags_are_kept(tmp_path: Path, suffix: str) -> None:
    tags = {"title": "Rain", "com.android.version": "14", "creation_time": "2020-01-02T03:04:05.000000Z"}
    source = write_images(tmp_path / f"in{suffix}", frames(64, 48), tags=tags)
    with av.open(str(derain_video(source, tmp_path / f"out{suffix}", same))) as reader:
        found = {name.lower(): text.split(";")[0] for name, text in reader.metadata.items()}
        assert suffix == ".mkv" or reader.streams.video[0].metadata["creation_time"] == tags["creation_time"]
    assert found.items() >= tags.items()


def test_a_part(tmp_path: Path) -> None:
    """Across a key frame, with the sound of that time."""
    images = frames(64, 48) * 10
    source = write_images(tmp_path / "in.mp4", images, sound=True, options={"crf": "5", "g": "20"})
    target = derain_video(source, tmp_path / "out.mp4", same, crf=5, start=1.2, duration=0.4)
    after, sound = read_video(target), sound_of(source)
    assert after["times"] == list(range(0, 400, 40))
    for rgb, expected in zip(after["rgb"], images[30:40], strict=True):
        assert np.abs(rgb - expected).mean() < 5
    kept = sound_of(target)
    assert abs(len(kept) - 0.4 * 44100 / 1024) <= 2
    assert abs(sound.index(kept[0]) - 1.2 * 44100 / 1024) <= 2
    for start, duration in ((-1, None), (0, 0), (float("nan"), None), (9, None)):
        with pytest.raises(InputError, match="--start"):
            derain_video(source, tmp_path / "none.mp4", same, start=start, duration=duration)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_a_video_that_is_cut_off_fails_before_any_work(tmp_path: Path, suffix: str) -> None:
    noise = [np.random.RandomState(n).randint(0, 256, (48, 64, 3)).astype(np.uint8) for n in range(60)]
    source = write_images(tmp_path / f"in{suffix}", noise, sound=suffix != ".avi")  # as many bytes at any time
    whole = source.read_bytes()
    for part in (0.5, 0.9):
        source.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(InputError, match=r"in\.\w+: damaged or cut off at .* --duration ") as caught:
            derain_video(source, tmp_path / "out/in.mp4", lambda rgb: pytest.fail("derained"))
        duration = float(str(caught.value).split()[-1])
        assert abs(duration / 2.4 - part) < 0.15
        assert not (tmp_path / "out").exists()
        target = derain_video(source, tmp_path / f"{part}.mp4", same, duration=duration)
        assert abs(len(read_video(target)["times"]) - 25 * duration) <= 3


def test_damage_within_frames_leaves_nothing(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in.mp4", frames(64, 48) * 10)
    data = bytearray(source.read_bytes())
    at = data.index(b"mdat")
    middle = range(at + (len(data) - at) // 2, at + (len(data) - at) // 2 + 400)
    for i in middle:
        data[i] ^= 0x5A
    source.write_bytes(data)
    with pytest.raises(InputError, match=r"in\.mp4: damaged or cut off at \d\.\d seconds"):
        derain_video(source, tmp_path / "out/in.mp4", same)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_recording_may_begin_between_key_frames(tmp_path: Path) -> None:
    source = write_images(tmp_path / "in.ts", frames(64, 48) * 10, options={"crf": "5", "g": "20"})
    data = source.read_bytes()
    source.write_bytes(data[len(data) // 4 // 188 * 188 :])
    after = read_video(derain_video(source, tmp_path / "out.mp4", same))
    assert 30 <= len(after["times"]) < 50
    assert set(np.diff(after["times"])) == {40}


def test_frames_of_another_size_are_an_error(tmp_path: Path) -> None:
    """The encoder would scale them without a word."""
    parts = [write_images(tmp_path / f"{w}.mkv", frames(w, 48), codec="mjpeg", pix_fmt="yuvj420p") for w in (64, 80)]
    with av.open(str(tmp_path / "in.mkv"), "w") as writer:
        for number, part in enumerate(parts):
            with av.open(str(part)) as reader:
                stream = writer.streams[0] if number else writer.add_stream_from_template(reader.streams.video[0])
                for packet in reader.demux(video=0):
                    if packet.dts is not None:
                        packet.pts = packet.dts = packet.dts + 240 * number
                        packet.stream = stream
                        writer.mux(packet)
    with pytest.raises(InputError, match=r"from 0\.2 seconds on frames have another size"):
        derain_video(tmp_path / "in.mkv", tmp_path / "out/in.mkv", same)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_an_error_of_the_target(tmp_path: Path) -> None:
    source, limits = write_video(tmp_path / "in.mp4"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            derain_video(source, tmp_path / "out/in.mp4", same)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.filename == str(tmp_path / "out/in.mp4")
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("codec", ["none", "aac", "prores_ks"])
def test_codecs_that_do_not_fit_get_one_line(tmp_path: Path, codec: str) -> None:
    with pytest.raises(InputError, match=f"--codec {codec}: .*choose another codec"):
        derain_video(write_video(tmp_path / "in.mp4"), tmp_path / "out/in.mp4", same, codec)
    assert list((tmp_path / "out").iterdir()) == []


def test_names_may_hold_colons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # FFmpeg takes what stands before a colon for a protocol
    write_video(tmp_path / "in.mp4").rename("12:30.mp4")
    assert derain_video(Path("12:30.mp4"), Path("out.12:30.mp4"), same).stat().st_size > 0


def test_other_containers_become_mp4(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.avi")
    assert derain_video(source, tmp_path / "out/in.avi", same).name == "in.mp4"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_keeps_a_playable_part(tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int) -> None:
    source, count = write_video(tmp_path / "in.mp4"), 0

    def stop(rgb: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), number)
        return rgb

    with pytest.raises(KeyboardInterrupt):
        derain_video(source, tmp_path / "out.mp4", stop)
    assert read_video(tmp_path / "out.mp4")["times"] == list(TIMES[:3])
    assert "interrupted: the video ends there" in capsys.readouterr().out


@pytest.mark.parametrize("how", ["cut off", "text", "empty", "missing", "folder", "sound alone"])
def test_what_is_no_video_gets_one_line(tmp_path: Path, how: str) -> None:
    path = tmp_path / "in.mp4"
    if how == "cut off":
        write_video(path)
        path.write_bytes(path.read_bytes()[:1500])
    elif how == "folder":
        path.mkdir()
    elif how == "sound alone":
        with av.open(str(path), "w") as writer:
            audio = writer.add_stream("aac", rate=44100, layout="mono")
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 44100, 0
            writer.mux(audio.encode(frame))
            writer.mux(audio.encode(None))
    elif how != "missing":
        path.write_bytes(b"words" if how == "text" else b"")
    with pytest.raises(InputError, match=r"in\.mp4"):
        derain_video(path, tmp_path / "out/in.mp4", same)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_an_error_while_deraining_leaves_nothing(tmp_path: Path) -> None:
    def fail(rgb: np.ndarray) -> np.ndarray:
        raise InputError("broken weights")

    with pytest.raises(InputError, match="broken weights"):
        derain_video(write_video(tmp_path / "in.mp4"), tmp_path / "out/in.mp4", fail)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_video_is_never_replaced_by_its_result(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.mp4")
    before = source.read_bytes()
    with pytest.raises(InputError, match="would replace an input"):
        derain_video(source, source, same)
    assert source.read_bytes() == before


def test_without_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # importing it fails then
    with pytest.raises(InputError, match="videos need PyAV: pip install av"):
        derain_video(tmp_path / "in.mp4", tmp_path / "out.mp4", same)


def test_an_old_pyav_is_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions before 17.1 convert the colours of BT.709 and of 10 bits wrongly, without an error."""
    monkeypatch.setattr(av, "__version__", "16.1.0")
    with pytest.raises(InputError, match=r"16.1.0 is too old for videos: pip install 'av>=17.1'"):
        derain_video(write_video(tmp_path / "in.mp4"), tmp_path / "out.mp4", same)


def test_what_is_taken_for_a_video(tmp_path: Path) -> None:
    assert is_video(Path("drive.MP4"))
    assert not is_video(Path("drive.png"))
    (tmp_path / "clips.mov").mkdir()
    assert not is_video(tmp_path / "clips.mov")


def test_the_script_derains_a_video(inline: Callable, tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    torch.save(DARGNet(4, 1).state_dict(), tmp_path / "weights/net_latest.pth")
    write_video(tmp_path / "drive.mp4")
    result = inline("test_real.py", "--data_path", "drive.mp4", "--logdir", "weights", "--crf", "20")
    assert result.returncode == 0, result.stderr
    assert read_video(tmp_path / "results/real/drive.mp4")["times"] == list(TIMES)
    assert "6 frames in results/real/drive.mp4" in result.stdout
    part = ("--start", "0.1", "--duration", "0.2")
    without = ("--figure", "--show_rain")
    result = inline("test_real.py", "--data_path", "drive.mp4", "--logdir", "weights", *part, *without)
    assert result.returncode == 0, result.stderr
    assert "drive.mp4: a video, for which --figure, --show_rain has no effect" in result.stdout
    assert read_video(tmp_path / "results/real/drive.mp4")["times"] == [100, 140]
