"""Videos, cameras, folders of folders and layers of rain: test_real.py on tiny clips that the tests make."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from conftest import ROOT, scene, write, write_pairs
from torch import nn

from derain import containers, video
from derain.containers import CODECS, frames_and_size, open_video, rate_of, read_frame, video_writer
from derain.evaluation import derain_image
from derain.inference import fold
from networks import load_network
from utils import DecodedImage, InputError, read_image, read_rgb, write_image

WEIGHTS = ROOT / "logs/Rain100L"  # trained ones: random ones would not keep colours
HEIGHT, WIDTH = 36, 48
Command = Callable[..., "object"]


@pytest.fixture(scope="module")
def fast() -> nn.Module:
    return fold(load_network(WEIGHTS / "net_latest.pth"))


def moving(count: int = 6, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    """Frames of a rainy scene that moves to the right."""
    return [np.roll(scene(1, height, width)[0], 3 * i, axis=1) for i in range(count)]


def clip(path: Path, frames: list[np.ndarray], rate: float = 12.5, codec: str = "MJPG") -> Path:
    """Write a video with OpenCV's own writer, to check ours against."""
    path.parent.mkdir(parents=True, exist_ok=True)
    size = frames[0].shape[1], frames[0].shape[0]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), rate, size)
    assert writer.isOpened()
    for frame in frames:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def decoded(path: Path) -> list[np.ndarray]:
    """A video's frames by OpenCV's own reader, RGB."""
    capture, frames = cv2.VideoCapture(str(path)), []
    while (found := capture.read())[0]:
        frames.append(np.ascontiguousarray(found[1][..., ::-1]))
    capture.release()
    return frames


def refused(result: object, *texts: object) -> None:
    """One line that has all of `texts`, status 2, and nothing left behind."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1, result.stderr
    for text in texts:
        assert str(text) in result.stderr


def files(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir())


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[np.ndarray]]:
    """What videos are given to encode, before a codec changes it: folder's name -> frames."""
    frames: dict[str, list[np.ndarray]] = {}

    @contextlib.contextmanager
    def noting(path: Path, *arguments: object) -> Iterator[tuple[Callable[[np.ndarray], None], str]]:
        noted = frames.setdefault(path.parent.name, [])
        with video_writer(path, *arguments) as (add, codec):
            yield lambda rgb: (noted.append(rgb), add(rgb)), codec

    monkeypatch.setattr(video, "video_writer", noting)
    return frames


class Camera:
    """A camera's stand-in: gives the frames, then nothing, as one that is unplugged."""

    def __init__(self, frames: list[np.ndarray]) -> None:
        self.frames = iter(frames)

    def read(self) -> tuple[bool, np.ndarray | None]:
        frame = next(self.frames, None)
        return frame is not None, None if frame is None else frame[..., ::-1]

    def get(self, what: int) -> float:
        return 30.0 if what == cv2.CAP_PROP_FPS else 0.0

    def release(self) -> None:
        pass


# ---------------------------------------------------------------- frames


def test_every_frame_is_derained_as_a_picture_is(
    inline: Command, tmp_path: Path, fast: nn.Module, given: dict[str, list[np.ndarray]]
) -> None:
    source = clip(tmp_path / "drive.avi", moving())
    result = inline("test_real.py", "--data_path", "drive.avi", "--logdir", WEIGHTS, "--show_rain", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "frame 6/6" in result.stdout
    frames = decoded(source)
    expected = [derain_image(fast, frame) for frame in frames]
    assert len(given["real"]) == len(frames) == 6
    assert all(np.array_equal(a, b) for a, b in zip(given["real"], expected, strict=True))
    rain = [np.clip(a.astype(int) - b, 0, 255) for a, b in zip(frames, expected, strict=True)]
    assert max(layer.max() for layer in rain) > 10
    assert all(np.array_equal(a, b) for a, b in zip(given["rain"], rain, strict=True))

    out = tmp_path / "results/real"
    assert files(out) == ["drive.avi", "provenance.jsonl", "rain/drive.avi", "results.csv", "results.json"]
    for path in (out / "drive.avi", out / "rain/drive.avi"):
        assert frames_and_size(path) == (6, (WIDTH, HEIGHT))
        assert rate_of(open_video(path)) == 12.5
    summary = json.loads((out / "results.json").read_text())
    assert summary["video"].items() >= {"frames": 6, "width": WIDTH, "height": HEIGHT, "rate": 12.5}.items()
    assert summary["video"]["codec"] == "MJPG" and summary["protocol"] is None
    assert len(summary["weights"]["sha256"]) == 64 and "torch" in summary["environment"]
    assert next(csv.DictReader((out / "results.csv").read_text().splitlines()))["frames"] == "6"

    before = (out / "drive.avi").read_bytes()
    arguments = ("--data_path", "drive.avi", "--logdir", WEIGHTS, "--skip_existing")
    assert "drive.avi was there, with 6 frames" in inline("test_real.py", *arguments).stdout
    assert (out / "drive.avi").read_bytes() == before
    assert inline("test_real.py", *arguments, "--frames", "2").returncode == 0  # 6 frames are not these 2
    assert frames_and_size(out / "drive.avi")[0] == 2
    (out / "rain/drive.avi").unlink()
    assert inline("test_real.py", *arguments, "--frames", "2", "--show_rain").returncode == 0
    assert frames_and_size(out / "rain/drive.avi")[0] == 2  # one of both was there


def test_tiles_leave_no_seam_and_a_still_scene_does_not_flicker(fast: nn.Module) -> None:
    still = scene(2, 70, 80)[0]
    whole = [derained for _, derained in video.derained_frames(iter([still] * 3 + [None]).__next__, fast)]
    assert len(whole) == 3
    assert all(np.array_equal(frame, whole[0]) for frame in whole)
    (_, tiled), *_ = video.derained_frames(iter([still, None, None, None]).__next__, fast, tile=32)
    difference = np.abs(tiled.astype(int) - whole[0])
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # the rounding of sums


def test_colours_stay_what_they_were(inline: Command, tmp_path: Path) -> None:
    frame = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    frame[:, :24] = 200, 40, 60
    clip(tmp_path / "red.avi", [frame] * 3)
    assert inline("test_real.py", "--data_path", "red.avi", "--logdir", WEIGHTS).returncode == 0
    last = decoded(tmp_path / "results/real/red.avi")[-1]
    assert np.abs(last[8:28, 8:16].mean((0, 1)) - (200, 40, 60)).max() < 25
    assert np.abs(last[8:28, 32:40].mean((0, 1)) - 90).max() < 25


# ---------------------------------------------------------------- containers


@pytest.mark.parametrize("rate", [12.5, 30000 / 1001], ids=["12.5", "29.97"])
@pytest.mark.parametrize("name", [*(f"a{suffix}" for suffix in CODECS), "A.MP4", "odd.avi"])
def test_containers_keep_frames_size_and_rate(tmp_path: Path, name: str, rate: float) -> None:
    size = (47, 35) if name == "odd.avi" else (WIDTH, HEIGHT)
    frames = [cv2.GaussianBlur(frame, None, 3) for frame in moving(4, size[1], size[0])]
    with video_writer(tmp_path / name, round(rate, 3), size) as (add, _):
        for frame in frames:
            add(frame)
    assert files(tmp_path) == [name]
    assert frames_and_size(tmp_path / name) == (4, size)
    assert rate_of(open_video(tmp_path / name)) == pytest.approx(rate, abs=0.01)
    for found, frame in zip(decoded(tmp_path / name), frames, strict=True):
        assert np.abs(found.astype(int) - frame).mean() < 8


def test_rates_are_those_that_mpeg4_can_count(tmp_path: Path) -> None:
    """A phone's mean rate, which takes more than 65,535 parts of a second to the thousandth."""
    rate = rate_of(SimpleNamespace(get=lambda _: 119.8123))
    with video_writer(tmp_path / "a.mp4", rate, (WIDTH, HEIGHT)) as (add, codec):
        add(scene(1, HEIGHT, WIDTH)[0])
    assert rate == 119.81 and codec == "mp4v"
    assert [rate_of(SimpleNamespace(get=lambda _, x=x: x)) for x in (0.0, -1.0, 1e6, float("nan"))] == [None] * 4


@pytest.mark.parametrize(
    ("name", "size", "expected"),
    [
        ("a.mp4", (48, 36), "a.mp4"),
        ("A.MOV", (48, 36), "A.MOV"),
        ("a.wmv", (48, 36), "a.wmv.mp4"),
        ("a.mp4", (47, 36), "a.mp4.avi"),
        ("a.avi", (48, 35), "a.avi"),
    ],
)
def test_names_tell_another_container(name: str, size: tuple[int, int], expected: str) -> None:
    assert containers.output_name(Path(name), size) == expected


def test_phones_videos_come_upright(tmp_path: Path) -> None:
    frame = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    frame[:, :24] = 255
    path = clip(tmp_path / "phone.mp4", [frame] * 3, codec="mp4v")
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # behind version, times, identity, duration, layer, volume
    one = 1 << 16
    assert struct.unpack_from(">9i", data, matrix) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    struct.pack_into(">9i", data, matrix, 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)  # a quarter turn clockwise
    path.write_bytes(data)
    upright = read_frame(open_video(path), "phone.mp4")
    assert upright.shape == (WIDTH, HEIGHT, 3)
    assert upright[:20].mean() > 200 and upright[28:].mean() < 50


def test_what_cannot_be_written_whole_is_not_kept(tmp_path: Path) -> None:
    old = clip(tmp_path / "a.avi", moving(2)).read_bytes()
    with (
        pytest.raises(InputError, match="could not be written whole"),
        video_writer(tmp_path / "a.avi", 25, (WIDTH, HEIGHT)) as (add, _),
    ):
        for frame in (*moving(3), scene(1, 20, 20)[0]):  # OpenCV drops the last, as a full disk would, without a word
            add(frame)
    assert files(tmp_path) == ["a.avi"] and (tmp_path / "a.avi").read_bytes() == old


# ---------------------------------------------------------------- stops, cameras, bad input


def interrupt_after(monkeypatch: pytest.MonkeyPatch, count: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal while frame `count` is being derained."""
    derained = []

    def derain(network: nn.Module, rgb: np.ndarray, *_: object) -> np.ndarray:
        derained.append(rgb)
        if len(derained) == count:
            signal.raise_signal(number)
        return rgb

    monkeypatch.setattr(video, "derain_image", derain)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_video_leaves_what_was_there(
    inline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    clip(tmp_path / "drive.avi", moving())
    old = clip(tmp_path / "out/drive.avi", moving(2)).read_bytes()
    interrupt_after(monkeypatch, 3, number)
    arguments = ("--data_path", "drive.avi", "--logdir", WEIGHTS, "--save_path", "out", "--show_rain")
    result = inline("test_real.py", *arguments)
    assert result.returncode == 130, result.stderr
    assert "stopped at frame 3: nothing is kept" in result.stdout
    assert files(tmp_path / "out") == ["drive.avi"] and (tmp_path / "out/drive.avi").read_bytes() == old


@pytest.mark.parametrize(("flags", "count"), [((), 3), (("--frames", "2"), 2)], ids=["until Ctrl-C", "--frames 2"])
def test_a_camera(
    inline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], count: int
) -> None:
    monkeypatch.setattr(video, "open_video", lambda source: Camera(moving() * 100))
    interrupt_after(monkeypatch, 3)
    result = inline("test_real.py", "--data_path", "0", "--logdir", WEIGHTS, *flags)
    assert result.returncode == 0, result.stderr
    assert frames_and_size(tmp_path / "results/real/camera0.avi") == (count, (WIDTH, HEIGHT))
    assert f"\n{count} frames, 48x36, MJPG" in result.stdout


def test_a_missing_camera_gets_one_line_and_nothing_of_opencvs(command: Command, tmp_path: Path) -> None:
    result = command("test_real.py", "--data_path", "63", "--logdir", WEIGHTS)
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("error: camera 63: cannot be opened")
    assert "VIDEOIO" not in result.stderr and "index out of range" not in result.stderr
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "how", ["text", "empty", "playlist", "missing", "cut off", "no codec", "frames", "itself", "index"]
)
def test_bad_videos_get_one_line(inline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    path, texts, flags = tmp_path / "a.mp4", ["a.mp4"], ["--save_path", "out"]
    if how == "cut off":
        path = clip(tmp_path / "a.avi", moving(30))
        path.write_bytes(path.read_bytes()[:-3000])
        texts = ["a.avi", "cut off"]
    elif how in ("no codec", "frames", "itself"):
        clip(path, moving(2), codec="mp4v")
        monkeypatch.setitem(CODECS, ".mp4", ("none",) if how == "no codec" else ("mp4v",))
        texts = {"no codec": ["tried none"], "frames": ["--frames 0"], "itself": ["--save_path"]}[how]
        flags += {"frames": ["--frames", "0"], "itself": ["--save_path", "."]}.get(how, [])
    elif how != "missing":
        path.write_text({"text": "hello " * 500, "playlist": "#EXTM3U\n#EXTINF:9,\n/etc/hostname\n"}.get(how, ""))
    before = path.read_bytes() if path.exists() else b""
    data = 10**30 if how == "index" else path.name
    result = inline("test_real.py", "--data_path", data, "--logdir", WEIGHTS, *flags)
    refused(result, *(["camera"] if how == "index" else texts))
    assert files(tmp_path) == [path.name] * path.exists()
    assert how == "missing" or path.read_bytes() == before


@pytest.mark.parametrize("suffix", [".avi", ".mp4", ".mov", ".mkv", ".webm"])
def test_cut_off_files_are_told_by_their_headers(tmp_path: Path, suffix: str) -> None:
    path = clip(tmp_path / f"a{suffix}", moving(8), codec={".avi": "MJPG", ".webm": "VP80"}.get(suffix, "mp4v"))
    whole = path.read_bytes()
    open_video(path).release()
    for length in range(40, len(whole) - 40, len(whole) // 12):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"a\.\w+: "):
            open_video(path)


def test_frames_count_not_what_is_announced(inline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "derain_image", lambda network, rgb, *_: rgb)
    path = clip(tmp_path / "a.avi", moving(6))
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, 9)
    path.write_bytes(data)
    assert cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT) == 9
    result = inline("test_real.py", "--data_path", "a.avi", "--logdir", WEIGHTS)
    assert result.returncode == 0, result.stderr
    assert "announces 9 frames; 6 can be read" in result.stdout
    assert frames_and_size(tmp_path / "results/real/a.avi")[0] == 6


def test_frames_of_another_size_are_refused(inline: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "open_video", lambda source: Camera([*moving(2), scene(1, 20, 20)[0]]))
    monkeypatch.setattr(video, "derain_image", lambda network, rgb, *_: rgb)
    result = inline("test_real.py", "--data_path", "0", "--logdir", WEIGHTS)
    refused(result, "frame 3 is 20x20, not 48x36")
    assert files(tmp_path) == []


# ---------------------------------------------------------------- folders and rain layers


REPORT = ("index.html", "provenance.jsonl", "results.csv", "results.json")


def test_folders_of_folders(inline: Command, tmp_path: Path) -> None:
    """Equal names, circular links, results within the input, a folder that is called rain."""
    photos = tmp_path / "photos"
    inputs = {
        "a.png": "a.png",
        "one/a.jpg.png": "one/a.jpg",
        "one/a.png.png": "one/a.png",
        "rain/deep/a.png": "rain/deep/a.png",
        "two/b.png": "two/b.bmp",
    }
    for seed, name in enumerate(inputs.values()):
        write(photos / name, scene(seed, 20, 24)[0])
    write(photos / ".hidden/a.png", scene(1, 20, 24)[0])
    (photos / "one/again").symlink_to(photos)
    (photos / "two/self").symlink_to("self")
    (photos / "zwei").symlink_to(photos / "two")
    arguments = ("--data_path", "photos", "--logdir", WEIGHTS, "--save_path", "photos/derained", "--recursive")
    for _ in range(2):  # the second time with the first one's results inside the input
        result = inline("test_real.py", *arguments, "--show_rain")
        assert result.returncode == 0, result.stderr
        found = set(files(photos / "derained"))
        assert found == {*inputs, *(f"rain_/{name}" for name in inputs), *REPORT}
    rows = csv.DictReader((photos / "derained/results.csv").read_text().splitlines())
    assert [row["image"] for row in rows] == list(inputs)
    for name, source in inputs.items():
        rainy, derained, rain = (read_rgb(photos / p) for p in (source, f"derained/{name}", f"derained/rain_/{name}"))
        assert np.array_equal(rain, np.clip(rainy.astype(int) - derained, 0, 255))


def test_without_recursive_only_the_folder_itself(inline: Command, tmp_path: Path) -> None:
    write(tmp_path / "photos/a.png", scene(1, 20, 24)[0])
    write(tmp_path / "photos/sub/b.png", scene(1, 20, 24)[0])
    for name in ("IMG_1.HEIC", "clip.gif", "notes.txt", "wedding.CR2"):
        (tmp_path / "photos" / name).write_bytes(b"of another kind")
    result = inline("test_real.py", "--data_path", "photos", "--logdir", WEIGHTS, "--save_path", "out")
    assert result.returncode == 0
    assert "left out, of kinds that are not read here: IMG_1.HEIC, clip.gif, notes.txt and 1 more" in result.stdout
    assert "subfolders are left out, --recursive takes them: sub" in result.stdout
    assert files(tmp_path / "out") == ["a.png", *REPORT]
    (tmp_path / "photos/a.png").unlink()
    result = inline("test_real.py", "--data_path", "photos", "--logdir", WEIGHTS, "--save_path", "out")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "photos: holds no image, but subfolders (sub): add --recursive" in result.stderr
    pairs = write_pairs(tmp_path / "pairs", 1, "PReNet train", height=20, width=24)
    for flags, expected in ((), ["rain-1.png"]), (("--recursive",), ["norain-1.png", "rain-1.png"]):
        out = tmp_path / f"pairs{len(flags)}"
        result = inline("test_real.py", "--data_path", pairs, "--logdir", WEIGHTS, "--save_path", out, *flags)
        assert result.returncode == 0 and sorted(p.name for p in out.glob("*.png")) == expected


def test_rain_keeps_depth_and_greyness(inline: Command, tmp_path: Path) -> None:
    rgb = scene(3, 30, 40)[0]
    write_image(tmp_path / "photos/deep.png", DecodedImage(rgb.astype(np.uint16) * 257))
    write_image(tmp_path / "photos/grey.png", DecodedImage(np.repeat(rgb[..., :1], 3, axis=2), grey=True))
    write_image(tmp_path / "photos/alpha.png", DecodedImage(rgb, rgb[..., 0]))
    arguments = ("--data_path", "photos", "--logdir", WEIGHTS, "--save_path", "out", "--show_rain")
    assert inline("test_real.py", *arguments).returncode == 0
    for name in ("deep", "grey", "alpha"):
        rainy, derained, rain = (
            read_image(tmp_path / folder / f"{name}.png") for folder in ("photos", "out", "out/rain")
        )
        assert rain.rgb.dtype == rainy.rgb.dtype and rain.grey == rainy.grey and rain.alpha is None
        assert np.array_equal(rain.rgb, np.maximum(rainy.rgb.astype(int) - derained.rgb, 0))
        assert rain.rgb.max() > 0
    (tmp_path / "out/rain/deep.png").unlink()
    assert "was there" in inline("test_real.py", *arguments, "--skip_existing").stdout
    assert (tmp_path / "out/rain/deep.png").exists()


def test_rain_never_replaces_an_input(inline: Command, tmp_path: Path) -> None:
    before = write(tmp_path / "out/rain/a.png", scene(1, 20, 24)[0]).read_bytes()
    result = inline("test_real.py", "--data_path", "out/rain", "--logdir", WEIGHTS, "--save_path", "out", "--show_rain")
    refused(result, "out/rain/a.png: would replace an input")
    assert files(tmp_path) == ["out/rain/a.png"] and (tmp_path / "out/rain/a.png").read_bytes() == before


def test_videos_among_pictures_are_named(inline: Command, tmp_path: Path) -> None:
    clip(tmp_path / "mixed/drive.avi", moving(2))
    arguments = ("--data_path", "mixed", "--logdir", WEIGHTS, "--save_path", "out")
    refused(inline("test_real.py", *arguments), "holds no image but videos (1)", "--data_path mixed/drive.avi")
    write(tmp_path / "mixed/a.png", scene(1, 20, 24)[0])
    result = inline("test_real.py", *arguments)
    assert result.returncode == 0, result.stderr
    assert "--data_path mixed/drive.avi" in result.stdout
    assert "drive.avi" not in files(tmp_path / "out")
