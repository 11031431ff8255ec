"""Images and files from anywhere: each is processed rightly or refused in one line, and the others still get done.

The images are written with Pillow, not with the library that reads them here.
"""

from __future__ import annotations

import contextlib
import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, write_pairs
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from derain.evaluate import EvalSettings, evaluate
from derain.images import network_input, network_output, read_image
from derain.inference import derain_image
from derain.optimized import fold
from DerainDataset import DerainDataset, prepare
from networks import DARGNet, DualAttention, load_network
from utils import InputError

# Runs of the same examples everywhere, and no judgement of how long they take. FUZZ=20 in the environment makes
# 20 times as many, other ones each time.
FUZZ = int(os.environ.get("FUZZ", "1"))
CALM = {
    "deadline": None,
    "derandomize": FUZZ == 1,
    "phases": (Phase.explicit, Phase.generate),
    "suppress_health_check": list(HealthCheck),
}


@pytest.fixture(scope="module")
def small_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a narrow DARGNet, quick on many images."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net_latest.pth"
    torch.save(DARGNet(channels=4, groups=1).state_dict(), path)
    return path


def pixels(seed: int, height: int, width: int, channels: int, dtype: type = np.uint8) -> np.ndarray:
    """Random pixels, (H, W) or (H, W, C)."""
    values = np.random.RandomState(seed).randint(np.iinfo(dtype).max + 1, size=(height, width, channels))
    return values.astype(dtype)[..., 0] if channels == 1 else values.astype(dtype)


def save(path: Path, array: np.ndarray, mode: str, **options: object) -> None:
    Image.frombytes(mode, array.shape[1::-1], array.tobytes()).save(path, **options)


def palette(path: Path, seed: int, height: int, width: int) -> None:
    Image.fromarray(pixels(seed, height, width, 3)).quantize(16).save(path)


def turned(path: Path, seed: int, height: int, width: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    Image.fromarray(pixels(seed, width, height, 3)).save(path, exif=exif)


def animated(path: Path, seed: int, height: int, width: int) -> None:
    frames = [Image.fromarray(pixels(seed + i, height, width, 3)) for i in range(2)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


# name: (suffix, writer(path, seed, height, width), values per channel, grey?, alpha?)
GOOD: dict[str, tuple[str, Callable[[Path, int, int, int], None], type, bool, bool]] = {
    "grey": (".png", lambda p, s, h, w: save(p, pixels(s, h, w, 1), "L"), np.uint8, True, False),
    "rgb": (".png", lambda p, s, h, w: save(p, pixels(s, h, w, 3), "RGB"), np.uint8, False, False),
    "rgba": (".png", lambda p, s, h, w: save(p, pixels(s, h, w, 4), "RGBA"), np.uint8, False, True),
    "grey and alpha": (".png", lambda p, s, h, w: save(p, pixels(s, h, w, 2), "LA"), np.uint8, False, True),
    "16-bit grey": (".png", lambda p, s, h, w: save(p, pixels(s, h, w, 1, np.uint16), "I;16"), np.uint16, True, False),
    "palette": (".png", palette, np.uint8, False, False),
    "two colours": (
        ".png",
        lambda p, s, h, w: Image.fromarray(pixels(s, h, w, 1)).convert("1").save(p),
        np.uint8,
        True,
        False,
    ),
    "jpeg": (".jpg", lambda p, s, h, w: save(p, pixels(s, h, w, 3), "RGB"), np.uint8, False, False),
    "cmyk jpeg": (".jpeg", lambda p, s, h, w: save(p, pixels(s, h, w, 4), "CMYK"), np.uint8, False, False),
    "turned jpeg": (".JPG", turned, np.uint8, False, False),
    "webp": (".webp", lambda p, s, h, w: save(p, pixels(s, h, w, 3), "RGB"), np.uint8, False, False),
    "tiff": (".tif", lambda p, s, h, w: save(p, pixels(s, h, w, 3), "RGB"), np.uint8, False, False),
    "bmp": (".bmp", lambda p, s, h, w: save(p, pixels(s, h, w, 3), "RGB"), np.uint8, False, False),
    "animated png": (".png", animated, np.uint8, False, False),
}


def png_bytes(seed: int = 0) -> bytes:
    data = io.BytesIO()
    Image.fromarray(pixels(seed, 40, 50, 3)).save(data, "PNG")
    return data.getvalue()


def bomb() -> bytes:
    """A PNG of under a kilobyte that says it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": lambda p: p.write_bytes(png_bytes()[:-40]),
    "zero bytes": lambda p: p.write_bytes(b""),
    "text": lambda p: p.write_text("rain, but no picture of it"),
    "directory": lambda p: p.mkdir(),
    "symlink loop": lambda p: p.symlink_to(p),
    "dangling link": lambda p: p.symlink_to(p.with_name("nowhere")),
    "pipe": lambda p: os.mkfifo(p) if hasattr(os, "mkfifo") else p.write_bytes(b""),
    "bomb": lambda p: p.write_bytes(bomb()),
    "float tiff": lambda p: Image.fromarray(np.zeros((8, 8), np.float32)).save(p, "TIFF"),
}

NAMES = st.one_of(
    st.sampled_from(["a", "A", "rain-1", "雨の写真", "mit Leerzeichen & Ümläut", "x" * 240, "%s {0} 'q'", "-f"]),
    st.text(st.characters(exclude_characters="/\\\0", exclude_categories=("Cs", "Cc")), min_size=1, max_size=30).filter(
        lambda text: text[0] != "." and text.strip() == text
    ),
)
SIDE = st.one_of(st.just(1), st.integers(1, 90))
FILES = st.lists(
    st.tuples(st.sampled_from([*GOOD, *BAD]), NAMES, SIDE, SIDE, st.integers(0, 99)), min_size=1, max_size=5
)


@given(files=FILES)
@example(files=[("rgb", "high", 4000, 3, 0), ("rgba", "wide", 2, 4000, 1), ("cmyk jpeg", "large", 400, 600, 2)])
@settings(max_examples=60 * FUZZ, **CALM)
@pytest.mark.slow
def test_every_picture_is_processed_or_refused(small_weights: Path, files: list) -> None:
    """A folder of files through test_real.py's evaluation: each is derained, or named in a line of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "pictures"
        folder.mkdir()
        made = {}
        for kind, stem, height, width, seed in files:
            path = folder / (stem + (GOOD[kind][0] if kind in GOOD else ".png"))
            if len(os.fsencode(path.name)) > 240 or any(p.name.casefold() == path.name.casefold() for p in made):
                continue
            GOOD[kind][1](path, seed, height, width) if kind in GOOD else BAD[kind](path)
            made[path] = kind
        if not made:
            return
        out, said = Path(name) / "out", io.StringIO()
        run = EvalSettings(data_path=folder, logdir=small_weights, save_path=out, device="cpu")
        error = None
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                evaluate(run)
            except InputError as caught:
                error = str(caught)
        refused = said.getvalue().splitlines()
        bad = [path for path, kind in made.items() if kind in BAD]
        assert len(refused) == len(bad)
        for path in bad:
            assert sum(str(path) in line for line in refused) == 1
        assert (error is not None) == bool(bad)
        written = {path.name for path in out.glob("*.png")} if out.exists() else set()
        assert len(written) == len(made) - len(bad)
        network = fold(load_network(small_weights))
        for path in made:
            if path in bad:
                continue
            _, _, dtype, grey, alpha = GOOD[made[path]]
            given_picture = read_image(path)
            output = next(out / n for n in (path.stem + ".png", path.name + ".png") if n in written)
            found = read_image(output)
            assert found.rgb.dtype == given_picture.rgb.dtype == dtype
            assert found.grey == given_picture.grey == grey
            assert (found.alpha is not None) == alpha
            if alpha:
                assert np.array_equal(found.alpha, given_picture.alpha)
            expected = network_output(given_picture, derain_image(network, network_input(given_picture))).rgb
            if not grey:
                assert np.array_equal(found.rgb, expected)
            assert found.rgb.shape == expected.shape


def test_names_of_any_length(small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """File systems take 255 bytes: such a name is kept, and refused where the result's would be longer."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    longest = "🌧" * 62 + "abc.png"
    for name in (longest, "雨" * 83 + "a.png", "雨" * 83 + "a.jpg", "b.png"):
        Image.fromarray(pixels(1, 9, 9, 3)).save(folder / name)
    run = EvalSettings(data_path=folder, logdir=small_weights, save_path=tmp_path / "out", device="cpu")
    with pytest.raises(InputError, match="2 of 4"):
        evaluate(run)
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {longest, "b.png"}
    assert capsys.readouterr().err.count("too long") == 2


# ---------------------------------------------------------------- bytes that were damaged


def damaged(whole: bytes, cuts: list[tuple[float, int]], length: float) -> bytes:
    """Some bytes changed, at places given as fractions, and the end cut off."""
    data = bytearray(whole)
    for place, value in cuts:
        data[int(place * (len(data) - 1))] = value
    return bytes(data[: int(length * len(data))])


DAMAGE = {
    "cuts": st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    "length": st.one_of(st.just(1.0), st.floats(0, 1)),
}


@given(**DAMAGE)
@settings(max_examples=150 * FUZZ, **CALM)
def test_damaged_checkpoints(small_weights: Path, cuts: list, length: float) -> None:
    """A network, or ValueError naming the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.pth"
        path.write_bytes(damaged(small_weights.read_bytes(), cuts, length))
        try:
            assert isinstance(load_network(path), DARGNet)
        except ValueError as error:
            assert "net.pth" in str(error)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    return prepare(write_pairs(folder / "pairs", 2), log=lambda _: None)


def read_all(path: Path) -> None:
    """Every patch of a packed file, as training would read them."""
    data = DerainDataset(path, patch_size=16, stride=64)
    for i in range(len(data)):
        rainy, clean = data[i]
        assert rainy.shape == clean.shape == (3, 16, 16)


@given(**DAMAGE)
@settings(max_examples=150 * FUZZ, **CALM)
@pytest.mark.slow
def test_damaged_packed_sets(packed: Path, cuts: list, length: float) -> None:
    """Patches, or InputError naming the file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.h5"
        path.write_bytes(damaged(packed.read_bytes(), cuts, length))
        try:
            read_all(path)
        except InputError as error:
            assert "pairs.h5" in str(error)


# ---------------------------------------------------------------- files made to do harm


@pytest.mark.parametrize("shape", [(2**20, 2**20, 3), (1, 2**40, 3), (0, 0, 3)])
def test_packed_sets_with_absurd_shapes_are_refused(tmp_path: Path, packed: Path, shape: tuple[int, ...]) -> None:
    path = tmp_path / "pairs.h5"
    path.write_bytes(packed.read_bytes())
    with h5py.File(path, "r+") as file:
        for name in list(file["images"]):
            del file[f"images/{name}"]
            file.create_dataset(f"images/{name}", shape, np.uint8)  # no byte of it is written
    with pytest.raises(InputError, match="pairs"):
        read_all(path)


@pytest.mark.slow
def test_a_read_only_target_leaves_nothing(small_weights: Path, tmp_path: Path) -> None:
    """The folder for the results is a file: one line, and no half-written image anywhere."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.png").write_bytes(png_bytes())
    (tmp_path / "out").write_text("in the way")
    command = [sys.executable, str(ROOT / "test_real.py"), "--data_path", "pictures", "--save_path", "out"]
    result = subprocess.run([*command, "--logdir", str(small_weights)], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 2
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1
    assert "Traceback" not in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pictures"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from utils import write_atomically

    path = tmp_path / "image.png"
    path.write_bytes(b"whole")

    def full(self: Path, data: bytes) -> None:
        with open("/dev/full", "wb") as file:  # the system's own error
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"half")
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["image.png"]
    assert path.read_bytes() == b"whole"


def test_skip_existing_continues_with_the_rest(
    small_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.png").write_bytes(png_bytes(i))
    run = {"data_path": folder, "logdir": small_weights, "save_path": tmp_path / "out", "device": "cpu"}
    evaluate(EvalSettings(**run))
    kept, damaged_one, gone = (tmp_path / f"out/{i}.png" for i in range(3))
    whole = damaged_one.read_bytes(), gone.read_bytes()
    damaged_one.write_bytes(whole[0][:-30])
    gone.unlink()
    before = kept.stat().st_mtime_ns
    capsys.readouterr()
    evaluate(EvalSettings(**run, skip_existing=True))
    assert kept.stat().st_mtime_ns == before
    assert (damaged_one.read_bytes(), gone.read_bytes()) == whole
    assert capsys.readouterr().out.count("was there") == 1
    evaluate(EvalSettings(**run))
    assert kept.stat().st_mtime_ns != before  # without being asked nothing is skipped


@pytest.mark.parametrize("change", ["weights", "network", "settings", "input", "output"])
def test_skip_existing_keeps_only_what_this_run_would_make(
    small_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    change: str,
) -> None:
    """Two images; of one the input or the derained file changes, or for both the weights, the code or settings."""
    folder, out = tmp_path / "pictures", tmp_path / "out"
    folder.mkdir()
    for i in range(2):
        (folder / f"{i}.png").write_bytes(png_bytes(i))
    run = {"data_path": folder, "logdir": small_weights, "save_path": out, "device": "cpu"}
    evaluate(EvalSettings(**run))
    before = [(out / f"{i}.png").read_bytes() for i in range(2)]
    if change == "weights":
        state = torch.load(small_weights, weights_only=True)
        run["logdir"] = tmp_path / "other.pth"
        torch.save({name: value * 1.1 for name, value in state.items()}, run["logdir"])
    elif change == "network":
        monkeypatch.setattr(DualAttention, "forward", lambda self, x: x + self.spatial(x))
    elif change == "settings":
        run["quantize"] = "truncate"
    elif change == "input":
        (folder / "1.png").write_bytes(png_bytes(7))
    else:
        Image.fromarray(pixels(9, 7, 8, 3)).save(out / "1.png")  # of another size
    capsys.readouterr()
    evaluate(EvalSettings(**run, skip_existing=True))
    assert capsys.readouterr().out.count("was there") == (0 if change in ("weights", "network", "settings") else 1)
    evaluate(EvalSettings(**run | {"save_path": tmp_path / "again"}))
    after = [(out / f"{i}.png").read_bytes() for i in range(2)]
    assert after == [(tmp_path / f"again/{i}.png").read_bytes() for i in range(2)]
    assert (after != before) == (change in ("weights", "network", "settings", "input"))
    capsys.readouterr()
    evaluate(EvalSettings(**run, skip_existing=True))
    assert capsys.readouterr().out.count("was there") == 2
