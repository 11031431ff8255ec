"""Videos through PyAV: pixels, times, shape, colours and sound come out as they went in; stops and damage are told."""

from __future__ import annotations

import os
import signal
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


def test_other_containers_become_mp4(tmp_path: Path) -> None:
    source = write_video(tmp_path / "in.avi")
    assert derain_video(source, tmp_path / "out/in.avi", same).name == "in.mp4"


def test_a_stop_keeps_a_playable_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, count = write_video(tmp_path / "in.mp4"), 0

    def stop(rgb: np.ndarray) -> np.ndarray:
        nonlocal count
        count += 1
        if count == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return rgb

    with pytest.raises(KeyboardInterrupt):
        derain_video(source, tmp_path / "out.mp4", stop)
    assert 3 <= len(read_video(tmp_path / "out.mp4")["times"]) < len(TIMES) + 1
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
