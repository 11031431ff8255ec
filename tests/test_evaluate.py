"""The four test scripts as a user runs them, on images that the tests make."""

import csv
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ENVIRONMENT, ROOT, TEST_SCRIPTS, Command, one_error, scene, write, write_pairs
from PIL import Image

from derain import sets
from derain.evaluate import EvalSettings, evaluate
from derain.images import DecodedImage, read_image, read_rgb, write_image
from derain.pairs import find_pairs, read_pair
from SSIM import image_metrics, psnr_y

RGB = scene(1, 40, 50)[0]
TO_OUT = ("--logdir", "my_logs", "--save_path", "out")
pytestmark = pytest.mark.usefixtures("inline", "weights")  # an empty folder, but for my_logs


def rows_of(folder: Path) -> list[dict[str, str]]:
    """The lines of results.csv."""
    return list(csv.DictReader((folder / "results.csv").read_text().splitlines()))


def results_of(folder: Path) -> dict[str, bytes]:
    """The derained images, by their paths in the folder."""
    suffixes = (".png", ".jpg", ".webp")
    files = [path for path in folder.rglob("*") if path.suffix in suffixes]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def succeeds(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    return result


def test_each_script_has_its_weights(inline: Command) -> None:
    names = ("Rain100H", "Rain100L", "Rain100L", "real")
    for script, name in zip(TEST_SCRIPTS, names, strict=True):
        shown = inline(script, "--help").stdout.split()
        assert f"(default: logs/{name})" in " ".join(shown)


# ---------------------------------------------------------------- test sets


def test_a_set_is_measured(inline: Command) -> None:
    """The scores are those of the saved images; three pairs are no Rain12, and labelled so."""
    write_pairs(Path("pairs"), 3)
    flags = ("--rainy_dir", "pairs/rainy", "--clean_dir", "pairs", *TO_OUT)
    shown = succeeds(inline("test_Rain12.py", *flags)).stdout
    rows = rows_of(Path("out"))
    assert [row["image"] for row in rows] == [f"rain-00{i}.png" for i in (1, 2, 3)]
    for row, number in zip(rows, (1, 2, 3), strict=True):
        rainy, clean = scene(number)
        saved = read_rgb(Path("out") / row["image"])
        for metric, value in image_metrics(saved, clean).items():
            assert float(row[metric]) == pytest.approx(value, rel=1e-12)
        assert float(row["input_psnr_y"]) == pytest.approx(psnr_y(rainy, clean))
        assert float(row["milliseconds"]) > 0
    summary = json.loads(Path("out/results.json").read_text())
    content = Path("my_logs/net_latest.pth").read_bytes()
    assert summary["weights"]["sha256"] == hashlib.sha256(content).hexdigest()
    label = "3 pairs of no known set, not Rain12"
    assert summary["data_set"]["name"] == label
    mean = np.mean([float(row["psnr_y"]) for row in rows])
    assert summary["means"][f"this run ({label})"]["psnr_y"] == pytest.approx(mean)
    assert f"{mean:.3f}" in shown
    assert "authors" not in shown
    files = {path.name for path in Path("out").iterdir()} - {row["image"] for row in rows}
    assert files == {"index.html", "results.csv", "results.json", "sources.json"}


def test_a_whole_set_has_its_name_and_its_reference(
    inline: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = find_pairs(write_pairs(Path("datasets/test/Rain12"), 12, height=16, width=16))
    fingerprint = sets.fingerprint([sets.pair_hash(*read_pair(pair)) for pair in pairs])
    known = dataclasses.replace(sets.RAIN12, fingerprint=fingerprint)
    monkeypatch.setitem(sets.TEST_SETS, "Rain12", known)
    result = succeeds(inline("test_Rain12.py", "--logdir", "my_logs", "--no-page"))
    assert result.stdout.splitlines()[-2].startswith("authors' released images")
    means = json.loads(Path("results/Rain12/results.json").read_text())["means"]
    assert [*means["authors' released images"].values()] == [36.822, 0.9618, None]


@pytest.mark.slow
@pytest.mark.parametrize("script", TEST_SCRIPTS)
def test_without_data_synthetic_rain_is_used(inline: Command, script: str) -> None:
    """A line says so first; no score passes for the set's."""
    result = succeeds(inline(script, "--logdir", "my_logs"))
    first = result.stderr.splitlines()[0]
    kind = "light" if script in ("test_Rain100L.py", "test_Rain12.py") else "heavy"
    assert f"synthetic {kind} rain" in first
    out = Path("results/synthetic_" + kind)
    if script == "test_real.py":
        out = Path("results/real")
    else:
        assert f"datasets/test/{script[5:-3]} is missing" in first
    row = rows_of(out)[0]
    assert row["data_set"].startswith(f"synthetic {kind} rain")
    assert row["image"] == "rain-001.png"
    assert "authors" not in result.stdout


def test_infinite_psnr_is_left_out_of_the_mean(inline: Command) -> None:
    folder = write_pairs(Path("pairs"), 3)
    command = ("test_Rain12.py", "--data_path", "pairs", *TO_OUT)
    succeeds(inline(*command))
    write(folder / "norain-002.png", read_rgb(Path("out/rain-002.png")))
    assert "PSNR is infinite for 1 images" in succeeds(inline(*command)).stdout
    finite = [float(row["psnr_y"]) for row in rows_of(Path("out")) if row["psnr_y"] != "inf"]
    assert len(finite) == 2
    means = json.loads(Path("out/results.json").read_text())["means"]
    assert [*means.values()][1]["psnr_y"] == pytest.approx(np.mean(finite))
    before = [float(row["input_psnr_y"]) for row in rows_of(Path("out"))]
    assert next(iter(means.values()))["psnr_y"] == pytest.approx((before[0] + before[2]) / 2)


def test_quantize_and_precision(inline: Command) -> None:
    write_pairs(Path("pairs"), 1, height=90, width=120)
    command = ("test_Rain12.py", "--data_path", "pairs", *TO_OUT)

    def derained(*arguments: str) -> np.ndarray:
        succeeds(inline(*command, *arguments))
        return read_rgb(Path("out/rain-001.png")).astype(int)

    whole = derained()
    assert set(np.unique(whole - derained("--quantize", "truncate"))) == {0, 1}
    assert 0 < np.abs(derained("--precision", "bf16") - whole).max() <= 8


def test_tiles_are_no_larger_than_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("in.png"), RGB)
    sizes = []

    class Network(torch.nn.Identity):
        receptive_field = 2

        def forward(self, rainy: torch.Tensor) -> torch.Tensor:
            sizes.append(max(rainy.shape))
            return rainy

    settings = EvalSettings(
        (Path("in.png"),), logdir=Path("my_logs"), save_path=Path("out"), tile=16
    )
    evaluate(settings, load=lambda _: Network())
    assert 16 < max(sizes) <= 16 + 2 * 2
    assert "Network runs as it is written, in float32" in capsys.readouterr().err
    assert np.array_equal(read_rgb(Path("out/in.png")), RGB)


# ---------------------------------------------------------------- own images


def test_images_keep_their_kind_and_a_bad_one_stops_nothing(inline: Command) -> None:
    photos, out = Path("photos"), Path("out")
    alpha = np.arange(2000, dtype=np.uint8).reshape(40, 50)
    write_image(photos / "alpha.png", DecodedImage(RGB, alpha))
    write_image(photos / "deep.png", DecodedImage(RGB.astype(np.uint16) * 257))
    write(photos / "été 雨.jpg", RGB)
    write(photos / "pixel.png", RGB[:1, :1])
    (photos / "broken.png").write_bytes(b"\x89PNG nothing")
    command = ("test_real.py", "--data_path", "photos", *TO_OUT)
    result = inline(*command)
    one_error(result, "1 of 5")
    assert "skipped: photos/broken.png" in result.stderr
    assert sorted(results_of(out)) == ["alpha.png", "deep.png", "pixel.png", "été 雨.png"]
    assert np.array_equal(read_image(out / "alpha.png").alpha, alpha)
    assert read_image(out / "deep.png").rgb.dtype == np.uint16
    assert len(rows_of(out)) == 4
    assert "broken.png" in json.loads((out / "results.json").read_text())["errors"][0]


def test_inputs_of_one_name(inline: Command) -> None:
    """In one call all get results; a later call replaces none of another input's."""
    for i, name in enumerate(("monday/DSC.jpg", "tuesday/DSC.jpg", "twin.png", "twin.bmp")):
        write(Path(name), scene(i)[0])
    command = ("test_real.py", "--logdir", "my_logs", "--no-page", "--data_path")
    for _ in range(2):
        succeeds(inline(*command, "monday", "tuesday", "--save_path", "days"))
        assert sorted(results_of(Path("days"))) == ["monday/DSC.jpg.png", "tuesday/DSC.jpg.png"]
        succeeds(inline(*command, "twin.png", "twin.bmp", "--save_path", "twins"))
        assert sorted(results_of(Path("twins"))) == ["twin.bmp.png", "twin.png.png"]
    succeeds(inline(*command, "monday", "--save_path", "one"))
    before = results_of(Path("one"))
    result = inline(*command, "tuesday", "--save_path", "one")
    one_error(result, Path("monday/DSC.jpg"), Path("tuesday/DSC.jpg"), "--save_path")
    succeeds(inline(*command, "twin.bmp", "--save_path", "one"))
    succeeds(inline(*command, "monday", "--save_path", "one"))
    assert results_of(Path("one")).items() > before.items()


def test_several_paths_and_patterns(inline: Command) -> None:
    """Also patterns that no shell has expanded, as on Windows, and those of subfolders."""
    names = ("a.png", "a[1].png", "a1.png", "b.jpg")
    for name in (*names, "more/c.png", "more/deep/d.bmp", "more/notes.txt"):
        write(Path(name).with_suffix(".png"), RGB).rename(name)
    command = ("test_real.py", "--logdir", "my_logs", "--no-page", "--data_path")
    flags = ("--format", "webp", "--save_path", "flat")
    twice = (Path("a.png").absolute(), "a.png")
    result = succeeds(inline(*command, *twice, "a[1].png", "*.jpg", "more", *flags))
    assert sorted(results_of(Path("flat"))) == ["a.webp", "a[1].webp", "b.webp", "c.webp"]
    assert "more: 2 other files and folders are left out" in result.stderr
    succeeds(inline(*command, "more/**/*.[pb]*", "--save_path", "deep"))
    assert sorted(results_of(Path("deep"))) == ["c.png", "d.png"]


def test_films_beside_images(inline: Command) -> None:
    """Each gets its result, and one that fails doesn't stop the next."""
    pytest.importorskip("av")
    write(Path("card/photo.jpg"), RGB)
    Path("card/bad.mp4").write_bytes(b"no video")
    shutil.copy(ROOT / "tests/data/cover_first.mp4", "card/clip.mp4")
    shutil.copy(ROOT / "tests/data/cover_first.mp4", "card/clip.mov")
    result = inline("test_real.py", "--data_path", "card", *TO_OUT)
    one_error(result, "1 of 4")
    assert "skipped: card/bad.mp4" in result.stderr
    videos = sorted(path.name for path in Path("out").glob("*.m*"))
    assert videos == ["clip.mov.mov", "clip.mp4.mp4"]
    assert [*results_of(Path("out"))] == ["photo.png"]


@pytest.mark.parametrize("flags", [("--crf", "52"), ("--quality", "0"), ("--codec", "mpeg4")])
def test_qualities_out_of_range(inline: Command, flags: tuple[str, str]) -> None:
    write(Path("in.png"), RGB)
    result = inline("test_real.py", "--data_path", "in.png", *TO_OUT, *flags)
    assert (result.returncode, flags[0] in result.stderr) == (2, True)


@pytest.mark.parametrize("name", ["out.png", "below/out.jpg", "out.webp"])
def test_a_single_file_goes_where_it_is_sent(inline: Command, name: str) -> None:
    """And nothing else is written."""
    write(Path("in.png"), RGB)
    before = {path for path in Path().rglob("*") if path.is_file()}
    flags = ("--data_path", "in.png", "--logdir", "my_logs", "--out", name, "--quality", "30")
    succeeds(inline("test_real.py", *flags))
    assert {path for path in Path().rglob("*") if path.is_file()} - before == {Path(name)}
    with Image.open(name) as image:
        assert image.format == {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[Path(name).suffix]
        if image.format == "JPEG":
            assert image.quantization[0][0] == 27  # libjpeg's for quality 30


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_file_name_that_is_no_text(inline: Command) -> None:
    Path("photos").mkdir()
    write(Path("x.jpg"), RGB).rename(os.fsdecode(b"photos/\xd3\xea.jpg"))
    for _ in range(2):
        succeeds(inline("test_real.py", "--data_path", "photos", *TO_OUT))
        assert len(rows_of(Path("out"))) == 1


# ---------------------------------------------------------------- processes


def shell(before: str, after: str) -> subprocess.CompletedProcess:
    """Run a test of two pairs in a line of bash."""
    write_pairs(Path("pairs"), 2, height=200, width=200)
    flags = "--data_path pairs --logdir my_logs --save_path out"
    line = f"{before} {sys.executable} {ROOT}/test_Rain12.py {flags} {after}"
    how = {"env": os.environ | ENVIRONMENT, "check": False}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, **how)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no shell of that kind there")
@pytest.mark.parametrize("ending", ["| head -n 1", "2> /dev/null | true", ">&- | cat", "2>&-"])
def test_a_reader_that_leaves_loses_nothing(ending: str) -> None:
    result = succeeds(shell("", ending))
    assert "Broken" not in result.stderr
    assert len(rows_of(Path("out"))) == 2
    assert Path("out/index.html").exists()


@pytest.mark.slow
def test_a_full_disk_is_one_line() -> None:
    """Here a limit of files' sizes; what was there stays."""
    pytest.importorskip("resource", reason="not on Windows")
    one_error(shell("ulimit -f 20; exec", ""), "out/rain-001.png")
    assert [path.name for path in Path("out").iterdir()] == ["sources.json"]
