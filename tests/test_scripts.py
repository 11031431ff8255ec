"""The six scripts as a user runs them: real commands with tiny settings, on images that the tests make."""

from __future__ import annotations

import csv
import dataclasses
import json
import os
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, SCRIPTS, scene, write, write_pairs
from PIL import Image

from derain import inputs
from derain import sets
from derain.pairs import find_pairs, read_pair
from derain.synthesize import stand_in
from derain.evaluate import tile_progress
from derain.images import DecodedImage, read_image, read_rgb, write_image
from derain.inference import derain_image
from derain.results import METRICS, summary_lines, table
from derain.sets import RAIN12
from DerainDataset import DerainDataset
from networks import DARGNet, load_network
from SSIM import image_metrics, psnr_y
from utils import sha256_of

TINY_TRAINING = (
    *("--patch_size", "32", "--stride", "16", "--batch_size", "2", "--max_steps", "2"),
    *("--groups", "1", "--device", "cpu"),
)
TEST_SCRIPTS = [script for script in SCRIPTS if script.startswith("test_")]
Command = Callable[..., "object"]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a tiny DARGNet, in a folder as --logdir takes it."""
    torch.manual_seed(0)
    (tmp_path / "my_logs").mkdir()
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "my_logs/net_latest.pth")
    return tmp_path / "my_logs"


def refused(result: object, *texts: object) -> None:
    """The command ended with one clear line that has all of `texts`, a non-zero status and no traceback."""
    assert result.returncode == 2, result.stdout + result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for text in texts:
        assert str(text) in errors[0]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help(script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(str(ROOT / script), run_name="__main__")
    assert caught.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    flags = ["data_path", "save_path", "device", "precision"]
    if script.startswith("train_"):
        flags += ["epochs", "batch_size", "lr", "milestones", "patch_size", "stride", "stages"]
        flags += ["seed", "max_steps", "resume"]
    else:
        flags += ["logdir", "quantize", "tile"]
    for flag in flags:
        assert f"--{flag} " in shown
    assert shown.count("(default: ") >= len(flags) - 2  # --max_steps and --data_path may have none
    weights = "Rain100L" if script in ("test_Rain100L.py", "test_Rain12.py") else "Rain100H"
    expected = f"logs/{weights}" if script.startswith("test_") else f"logs/train_{script[6:-3].replace('rain', 'Rain')}"
    assert f"(default: {expected})" in shown  # Rain12 is tested with the light weights


# ---------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize(("script", "patches"), [("train_rain100H.py", 27), ("train_rain100L.py", 54)])
def test_each_train_script_trains(command: Command, tmp_path: Path, script: str, patches: int) -> None:
    write_pairs(tmp_path / "pairs", 3)
    result = command(script, "--data_path", "pairs", "--save_path", "run", *TINY_TRAINING)
    assert result.returncode == 0, result.stderr
    assert "3 pairs, step 0" in result.stdout
    data = DerainDataset(tmp_path / "pairs.h5", 32, 16, flip=script == "train_rain100L.py")
    assert len(data) == patches
    run = tmp_path / "run"
    network, fresh = load_network(run / "net_latest.pth"), DARGNet(groups=1)
    assert sum(p.numel() for p in network.parameters()) == sum(p.numel() for p in fresh.parameters())
    state = torch.load(run / "state_latest.pth", weights_only=True)
    assert state["step"] == 2
    assert {"state_dict", "optimizer", "settings"} <= set(state)
    begin, epoch = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    assert begin["settings"]["patch_size"] == 32
    assert begin["environment"]["torch"] == torch.__version__
    assert epoch["step"] == 2
    assert np.isfinite([epoch["loss"], epoch["psnr_rgb"], epoch["lr"]]).all()
    assert epoch["loss"] == pytest.approx(epoch["l1"] + epoch["ssim_loss"], abs=1e-5)
    events = b"".join(path.read_bytes() for path in (run / "tensorboard").glob("**/events*"))
    for tag in ("settings", "train/loss", "train/psnr_rgb", "lr", "batch/loss", "batch/psnr_rgb"):
        assert tag.encode() in events
    again = command("test_Rain12.py", "--data_path", "pairs", "--logdir", "run", "--save_path", "out")
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_training_without_data_says_what_to_do(inline: Command, tmp_path: Path, kind: str) -> None:
    script = f"train_rain100{kind[0].upper()}.py"
    result = inline(script)
    refused(result, "datasets/train/RainTrain", "datasets/README.md", f"--rain {kind}", "add --data_path")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_command_for_synthetic_training_works(inline: Command, tmp_path: Path) -> None:
    write(tmp_path / "photos/a.png", scene(1)[1])
    out = "datasets/train/synthetic_light"
    arguments = ("--rain", "light", "--photos", "photos", "--layers", "2", "--out", out)
    result = inline("derain.synthesize", *arguments)
    assert result.returncode == 0, result.stderr
    result = inline("train_rain100L.py", "--data_path", out, "--save_path", "run", *TINY_TRAINING)
    assert result.returncode == 0, result.stderr
    assert "2 pairs" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--lr", "0"), "--lr 0.0: must be a number above 0"),
        (("--lr", "nan"), "--lr nan: must be a number above 0"),
        (("--save_minutes", "nan"), "--save_minutes nan: must not be below 0"),
        (("--device", "cuda:77"), "--device cuda:77"),
        (("--patch_size", "500"), "smaller than a patch of 500"),
        (("--validation", "99"), "holding out 99 of 2 pairs"),
    ],
)
def test_training_refuses_senseless_settings(
    inline: Command, tmp_path: Path, arguments: tuple[str, ...], text: str
) -> None:
    write_pairs(tmp_path / "pairs", 2)
    refused(inline("train_rain100L.py", "--data_path", "pairs", "--save_path", "run", *TINY_TRAINING, *arguments), text)
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- testing


@pytest.mark.slow
@pytest.mark.parametrize("script", TEST_SCRIPTS[:3])
def test_each_test_script_measures(command: Command, tmp_path: Path, weights: Path, script: str) -> None:
    write_pairs(tmp_path / "pairs", 3)
    result = command(script, "--data_path", "pairs", "--logdir", weights, "--save_path", "out")
    assert result.returncode == 0, result.stderr
    out = tmp_path / "out"
    names = ["rain-001.png", "rain-002.png", "rain-003.png"]
    assert sorted(p.name for p in out.iterdir()) == [
        *("index.html", "made_with.json", *names, "results.csv", "results.json")
    ]
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert [row["image"] for row in rows] == names
    for row, number in zip(rows, (1, 2, 3), strict=True):
        rainy, clean = scene(number)
        for metric, value in image_metrics(read_rgb(out / row["image"]), clean).items():
            assert float(row[metric]) == pytest.approx(value, rel=1e-12)  # measured on the saved image
        assert float(row["input_psnr_y"]) == pytest.approx(image_metrics(rainy, clean)["psnr_y"])
        assert float(row["milliseconds"]) > 0
    summary = json.loads((out / "results.json").read_text())
    assert summary["weights"]["sha256"] == sha256_of(weights / "net_latest.pth")
    assert "PReNet" in summary["protocol"]
    assert summary["environment"]["torch"] == torch.__version__
    # Three pairs are no Rain100: the label says so everywhere, and no reference stands beside them.
    name = script.removeprefix("test_").removesuffix(".py")
    label = f"pairs (3 pairs of no known set), not {name}"
    assert summary["data_set"]["name"] == label
    assert {row["data_set"] for row in rows} == {label}
    mean = np.mean([float(row["psnr_y"]) for row in rows])
    assert f"this run ({label})" in result.stdout
    assert f"{mean:.3f}" in result.stdout
    assert summary["means"][f"this run ({label})"]["psnr_y"] == pytest.approx(mean)
    assert "authors" not in result.stdout


def test_a_set_of_as_many_other_pictures_is_not_the_data_set(inline: Command, tmp_path: Path, weights: Path) -> None:
    write_pairs(tmp_path / "datasets/test/Rain12", 12)
    result = inline("test_Rain12.py", "--logdir", weights)
    assert result.returncode == 0, result.stderr
    rows = list(csv.DictReader((tmp_path / "results/Rain12/results.csv").read_text().splitlines()))
    assert all("(12 pairs of no known set), not Rain12" in row["data_set"] for row in rows)
    assert "not Rain12)" in result.stdout
    assert "authors" not in result.stdout


@pytest.mark.slow
def test_synthetic_pictures_stay_synthetic_wherever_they_lie(inline: Command, tmp_path: Path, weights: Path) -> None:
    stand_in("light", tmp_path / "Rain12")  # 12 pairs, one folder further down
    for data in ("Rain12", "Rain12/synthetic_light"):
        result = inline("test_Rain12.py", "--data_path", data, "--logdir", weights, "--save_path", "out")
        assert "this run (synthetic light rain, not Rain12)" in result.stdout
        assert "authors" not in result.stdout
    inline("test_real.py", "--data_path", "Rain12/synthetic_light/rainy", "--logdir", weights, "--save_path", "real")
    assert json.loads((tmp_path / "real/results.json").read_text())["data_set"]["name"] == "synthetic light rain"


def test_the_whole_rain12_has_its_reference_and_its_unseen_images() -> None:
    rows = [{prefix + m: float(n) for m in METRICS for prefix in ("", "input_")} for n in range(1, 13)]
    lines = dict(summary_lines(RAIN12, "Rain12", rows, range(1, 13)))
    assert lines["this run"]["psnr_y"] == 6.5
    assert lines["this run, 4 images RainTrainL lacks"]["ssim_rgb"] == 10.5
    assert lines["authors' released images"] == {"psnr_y": 36.822, "ssim_y": 0.9618, "psnr_rgb": None}
    shown = table("Rain12", list(lines.items())).splitlines()[-1]
    assert shown.split()[-4:] == ["36.822", "0.9618", "-", "-"]


def test_foreign_files_are_never_overwritten(inline: Command, tmp_path: Path, weights: Path) -> None:
    """A folder with files of others' is rejected as --save_path; an empty one and one of ours are taken."""
    write_pairs(tmp_path / "pairs", 1)
    write(tmp_path / "theirs/rain-001.png", scene(9)[0])
    before = (tmp_path / "theirs/rain-001.png").read_bytes()
    for script, data in (("test_Rain12.py", "pairs"), ("test_real.py", "pairs/rainy")):
        arguments = ("--data_path", data, "--logdir", weights, "--save_path")
        refused(inline(script, *arguments, "theirs"), "theirs: holds files that are not results", "rain-001.png")
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert inline(script, *arguments, "empty").returncode == 0
    assert [p.read_bytes() for p in (tmp_path / "theirs").iterdir()] == [before]


def test_an_image_without_rain_has_infinite_psnr(inline: Command, tmp_path: Path, weights: Path) -> None:
    """Averaging would make everything infinite: the mean is over the others, and the number of such is said."""
    folder = write_pairs(tmp_path / "pairs", 3)
    inline("test_Rain12.py", "--data_path", "pairs", "--logdir", weights, "--save_path", "out")
    write(folder / "norain-002.png", read_rgb(tmp_path / "out/rain-002.png"))
    result = inline("test_Rain12.py", "--data_path", "pairs", "--logdir", weights, "--save_path", "out")
    assert "1 derained images are identical to the clean ones" in result.stdout
    summary = json.loads((tmp_path / "out/results.json").read_text())
    assert summary["data_set"]["identical_to_clean"] == 1
    rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
    finite = [float(row["psnr_y"]) for row in rows if row["psnr_y"] != "inf"]
    assert len(finite) == 2
    (means,) = (scores for name, scores in summary["means"].items() if name.startswith("this run"))
    assert means["psnr_y"] == pytest.approx(np.mean(finite))


@pytest.mark.parametrize("how", ["exact", "cropped"])
def test_a_set_is_identified_by_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    pairs = find_pairs(write_pairs(tmp_path / "pairs", 12))
    fingerprint = sets.fingerprint([sets.pair_hash(*read_pair(pair)) for pair in pairs])
    monkeypatch.setitem(sets.TEST_SETS, "Rain12", dataclasses.replace(RAIN12, fingerprint=fingerprint))
    for file in (file for pair in pairs for file in (pair.rainy, pair.clean) if how == "cropped"):
        write(file, read_rgb(file)[:-1])
    labels = {"exact": ("Rain12", 12), "cropped": ("pairs (12 pairs of no known set), not Rain12", 0)}
    assert inputs.label_of(RAIN12, tmp_path / "pairs", pairs) == labels[how]


@pytest.mark.slow
@pytest.mark.parametrize("script", TEST_SCRIPTS)
def test_without_data_the_labelled_stand_in_is_used(
    inline: Command, tmp_path: Path, weights: Path, script: str
) -> None:
    result = inline(script, "--logdir", weights)
    assert result.returncode == 0, result.stderr
    name = script.removeprefix("test_").removesuffix(".py")
    first = result.stdout.splitlines()[0]
    for text in (f"datasets/test/{name} is missing", "datasets/README.md", "stand-in of synthetic"):
        assert text in first
    kind = "light" if name in ("Rain100L", "Rain12") else "heavy"
    out = tmp_path / ("results/real" if name == "real" else f"results/synthetic_{kind}")
    rows = list(csv.DictReader((out / "results.csv").read_text().splitlines()))
    assert len(rows) == 12
    assert all(row["data_set"].startswith(f"synthetic {kind} rain") for row in rows)
    summary = json.loads((out / "results.json").read_text())
    assert summary["data_set"]["name"].startswith(f"synthetic {kind} rain")
    for line in result.stdout.splitlines():
        if line.startswith(("this run", "rainy input")):
            assert f"(synthetic {kind} rain, not {name})" in line
    assert "authors" not in result.stdout


def test_quantize_precision_and_tile(inline: Command, tmp_path: Path, weights: Path) -> None:
    write_pairs(tmp_path / "pairs", 1, height=90, width=120)

    common = ("--data_path", "pairs", "--logdir", weights)

    def derained(*arguments: str) -> np.ndarray:
        result = inline("test_Rain12.py", "--data_path", "pairs", "--logdir", weights, "--save_path", "out", *arguments)
        assert result.returncode == 0, result.stderr
        return read_rgb(tmp_path / "out/rain-001.png").astype(int)

    whole = derained("--tile", "off")
    assert np.abs(derained("--tile", "32") - whole).max() <= 1
    truncated = derained("--quantize", "truncate")
    assert set(np.unique(whole - truncated)) == {0, 1}
    half = derained("--precision", "bf16")
    assert 0 < np.abs(half - whole).max() <= 8
    refused(inline("test_Rain12.py", *common, "--tile", "big"), "--tile big")


def test_real_pictures_keep_their_kind_and_one_bad_one_stops_nothing(
    inline: Command, tmp_path: Path, weights: Path
) -> None:
    rgb = scene(1, 40, 50)[0]
    deep, alpha = rgb.astype(np.uint16) * 257, np.arange(2000, dtype=np.uint8).reshape(40, 50)
    photos = tmp_path / "photos"
    write_image(photos / "grey.png", DecodedImage(np.repeat(rgb[..., :1], 3, axis=2), grey=True))
    write_image(photos / "alpha.png", DecodedImage(rgb, alpha))
    write_image(photos / "deep.png", DecodedImage(deep))
    write(photos / "été 雨.jpg", rgb)
    write(photos / "twice.png", rgb)
    write(photos / "twice.bmp", rgb)
    write(photos / "pixel.png", rgb[:1, :1])
    (photos / "broken.png").write_bytes(b"\x89PNG nothing")
    result = inline("test_real.py", "--data_path", "photos", "--logdir", weights, "--save_path", "out")
    refused(result, "1 of 8 images could not be derained")
    assert "broken.png: the image is cut off" in result.stderr
    out = tmp_path / "out"
    expected = {"grey", "alpha", "deep", "été 雨", "twice.png", "twice.bmp", "pixel"}
    assert {p.stem for p in out.glob("*.png")} == expected
    assert read_image(out / "grey.png").grey
    assert np.array_equal(read_image(out / "alpha.png").alpha, alpha)
    assert read_image(out / "deep.png").rgb.dtype == np.uint16
    assert len(list(csv.DictReader((out / "results.csv").read_text().splitlines()))) == 7
    assert "broken.png" in json.loads((out / "results.json").read_text())["errors"][0]


@pytest.mark.slow
def test_one_real_picture(command: Command, tmp_path: Path, weights: Path) -> None:
    write(tmp_path / "holiday.jpg", scene(1)[0])
    result = command("test_real.py", "--data_path", "holiday.jpg", "--logdir", weights)
    assert result.returncode == 0, result.stderr
    assert read_rgb(tmp_path / "results/real/holiday.png").shape == (64, 72, 3)


def test_several_files_and_folders_in_one_call(inline: Command, tmp_path: Path, weights: Path) -> None:
    for name in ("a.png", "b.jpg", "more/c.png", "more/d.bmp"):
        write(tmp_path / name, scene(1)[0])
    common = ("--logdir", weights, "--suffix", "_dry", "--format", "webp", "--data_path", "a.png", "b.jpg", "more")
    result = inline("test_real.py", *common)
    assert result.returncode == 0, result.stderr
    assert "own images: 4 images of a.png and 2 others" in result.stdout
    assert re.search(r"\[3/4\] c_dry.webp [\d.]+ s, \d+ s left\n\[4/4\] d_dry.webp [\d.]+ s\n", result.stdout)
    found = {p.name for p in (tmp_path / "results/real").glob("*.webp")}
    assert found == {f"{name}_dry.webp" for name in "abcd"}
    assert (tmp_path / "results/real/a_dry.webp").read_bytes()[8:12] == b"WEBP"
    write(tmp_path / "more/a.png", scene(2)[0])
    texts = ("a.png and more/a.png: would both become a.png_dry.webp",)
    refused(inline("test_real.py", *common), *texts)


def test_subfolders_that_cannot_be_read_are_counted(
    inline: Command, tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as lost+found; a set beside one is found, too."""
    write_pairs(tmp_path / "disk/set", 2)
    (tmp_path / "disk/lost+found").mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "lost+found" and access(path, mode))
    result = inline("test_real.py", "--data_path", "disk", "--recursive", "--logdir", weights, "--save_path", "out")
    assert result.returncode == 0
    assert "disk: left out: 1 subfolders that cannot be read" in result.stdout
    assert len(find_pairs(tmp_path / "disk")) == 2


@pytest.mark.parametrize("name", ["out.png", "below/out.jpg", "out.webp"])
def test_a_single_file_goes_where_it_is_sent(inline: Command, tmp_path: Path, weights: Path, name: str) -> None:
    """And nothing else is written, or replaced."""
    before = write(tmp_path / "in.png", scene(1)[0]).read_bytes()
    common = ("test_real.py", "--logdir", weights, "--data_path", "in.png")
    files = {p for p in tmp_path.rglob("*") if p.is_file()}
    assert inline(*common, "--out", name, "--quality", "90").stdout.endswith(f"{name}: written\n")
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p not in files]
    assert written == [tmp_path / name]
    with Image.open(written[0]) as image:
        assert image.format == {"png": "PNG", "jpg": "JPEG", "ebp": "WEBP"}[name[-3:]]
        shown = np.asarray(image.convert("RGB")).astype(int)
    inline("test_real.py", "--data_path", "in.png", "--logdir", weights, "--save_path", "whole")
    error = np.abs(shown - read_rgb(tmp_path / "whole/in.png"))
    assert error.max() == 0 if name == "out.png" else 0 < error.mean() < 12
    if name != "out.png":
        worse = inline(*common, "--out", f"w-{Path(name).name}", "--quality", "10")
        assert worse.returncode == 0
        assert (tmp_path / f"w-{Path(name).name}").stat().st_size < written[0].stat().st_size
    refused(inline(*common, "--out", "in.png"), "in.png: would replace an input")
    refused(inline(*common, "in.png", "--out", "x.png"), "--out takes a single file")
    refused(inline(*common, "--out", "x.tif"), "saved as .png, .jpg or .webp")
    assert (tmp_path / "in.png").read_bytes() == before


def test_formats_that_would_lose_something_are_refused(inline: Command, tmp_path: Path, weights: Path) -> None:
    rgb = scene(1)[0]
    write_image(tmp_path / "in/alpha.png", DecodedImage(rgb, rgb[..., 0]))
    write_image(tmp_path / "in/deep.png", DecodedImage(rgb.astype(np.uint16) * 257))
    write_image(tmp_path / "in/plain.png", DecodedImage(rgb))
    for kind, lost in (("jpg", 2), ("webp", 1)):
        common = ("--logdir", weights, "--data_path", "in", "--format", kind, "--save_path", kind)
        result = inline("test_real.py", *common)
        refused(result, f"{lost} of 3 images could not be derained")
        assert "deep.webp: .webp cannot keep the input's 16 bits; write it as PNG" in result.stderr or kind == "jpg"
        assert len(list((tmp_path / kind).glob(f"*.{kind}"))) == 3 - lost


@pytest.mark.parametrize("quality", ["0", "101", "-5"])
def test_a_quality_out_of_range(inline: Command, tmp_path: Path, weights: Path, quality: str) -> None:
    write(tmp_path / "a.png", scene(1)[0])
    common = ("--data_path", "a.png", "--logdir", weights, "--quality", quality)
    refused(inline("test_real.py", *common, "--format", "webp"), f"--quality {quality}: must be from 1 to 100")
    refused(inline("test_real.py", *common, "--out", "b.jpg"), f"--quality {quality}: must be from 1 to 100")


def test_tiles_of_a_large_image_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    times = iter([0.0, 3.0, 6.0, 9.0, 12.0])
    monkeypatch.setattr("derain.evaluate.time.monotonic", lambda: next(times))
    network = torch.nn.Conv2d(3, 3, 1)
    image = scene(1, 64, 64)[0]
    derain_image(network, image, 32, progress=tile_progress(Path("large.png")))
    assert capsys.readouterr().out == "  large.png: tile 2 of 4, 6 s left\n"


@pytest.mark.parametrize("script", ["test_Rain100L.py", "train_rain100L.py"])
def test_clean_images_in_a_folder_of_any_name(inline: Command, tmp_path: Path, weights: Path, script: str) -> None:
    write_pairs(tmp_path / "set", 3, "MPRNet")
    (tmp_path / "set/input").rename(tmp_path / "wet")
    (tmp_path / "set/target").rename(tmp_path / "dry")
    arguments = TINY_TRAINING if script.startswith("train") else ("--logdir", weights)
    common = (script, "--rainy_dir", "wet", "--clean_dir", "dry", "--save_path", "out", *arguments)
    result = inline(*common)
    assert result.returncode == 0, result.stderr
    if script.startswith("train"):
        with h5py.File(tmp_path / "wet.h5") as file:
            found = [file[f"images/{number}"][()] for number in file["pairs"][1]]
        assert all(np.array_equal(image, known) for image, known in zip(found, scene(2), strict=True))
        assert "packing" not in inline(*common).stdout  # packed once
    else:
        rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
        assert float(rows[1]["input_psnr_y"]) == pytest.approx(psnr_y(*scene(2)))
    (tmp_path / "dry/2.png").unlink()
    refused(inline(*common), "wet/2.png")
    if script.startswith("test"):
        refused(inline(script, "--clean_dir", "dry", "--logdir", weights), "add --data_path")
        refused(inline("test_real.py", *common[1:]), "is for measuring")


# ---------------------------------------------------------------- bad input


def _spoil(folder: Path, how: str) -> tuple[str, ...]:
    """Spoil a data set; returns what the error has to name."""
    if how == "missing folder":
        return ("nowhere",)
    if how == "unpaired":
        (folder / "norain-002.png").unlink()
        return ("rain-002.png",)
    if how == "tiny":
        for name in ("rainy/rain-002.png", "norain-002.png"):
            write(folder / name, scene(2, 10, 40)[1])
        return ("10",)
    if how == "size":
        write(folder / "norain-002.png", scene(2, 40, 40)[1])
        return ("rain-002.png", "norain-002.png", "40x40")
    path = folder / "rainy/rain-002.png"
    path.write_bytes(path.read_bytes()[:300] if how == "cut off" else b"words")
    return ("rain-002.png",)


@pytest.mark.parametrize("how", ["missing folder", "unpaired", "size", "tiny", "cut off", "text"])
@pytest.mark.parametrize("script", ["test_Rain100L.py", "train_rain100L.py"])
def test_bad_data_gets_one_line(inline: Command, tmp_path: Path, weights: Path, script: str, how: str) -> None:
    texts = _spoil(write_pairs(tmp_path / "pairs", 2), how)
    data = "nowhere" if how == "missing folder" else "pairs"
    arguments = TINY_TRAINING if script.startswith("train") else ("--logdir", weights)
    refused(inline(script, "--data_path", data, "--save_path", "out", *arguments), *texts)
    assert not (tmp_path / "out/results.csv").exists()
    assert how == "tiny" or not (tmp_path / "pairs.h5").exists()


@pytest.mark.parametrize("script", ["test_real.py", "train_rain100L.py"])
@pytest.mark.parametrize("path", ["a_file", "a_file/below"])
def test_results_that_cannot_be_kept_are_refused_before_any_work(
    inline: Command, tmp_path: Path, weights: Path, script: str, path: str
) -> None:
    (tmp_path / "a_file").write_text("kept")
    write_pairs(tmp_path / "pairs", 2)
    arguments = TINY_TRAINING if script.startswith("train") else ("--logdir", weights)
    refused(inline(script, "--data_path", "pairs", "--save_path", path, *arguments), path, "choose another --save_path")
    assert (tmp_path / "a_file").read_text() == "kept"
    assert not (tmp_path / "pairs.h5").exists()


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (("--data_path", "one.png", "--crop", "1", "1", "8"), ("--crop", "add --figure")),
    ],
)
def test_flags_that_would_do_nothing_are_refused(
    inline: Command, tmp_path: Path, weights: Path, arguments: tuple[str, ...], texts: tuple[str, ...]
) -> None:
    (tmp_path / "one.png").write_bytes(b"never read")
    refused(inline("test_real.py", "--logdir", weights, *arguments), *texts)


@pytest.mark.slow
def test_the_weights_that_come_with_the_scripts_are_found_from_anywhere(command: Command, tmp_path: Path) -> None:
    write(tmp_path / "photos/a.png", scene(1, 20, 24)[0])
    result = command("test_real.py", "--data_path", "photos", "--save_path", "out")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "out/results.json").read_text())["weights"]["sha256"] == sha256_of(
        ROOT / "logs/Rain100H/net_latest.pth"
    )


@pytest.mark.parametrize("how", ["missing", "folder without", "text", "foreign", "cut off"])
def test_bad_weights_get_one_line(inline: Command, tmp_path: Path, weights: Path, how: str) -> None:
    write_pairs(tmp_path / "pairs", 1)
    file = weights / "net_latest.pth"
    path: Path = file
    if how in ("missing", "folder without"):
        file.unlink()
        path = file if how == "missing" else weights
    elif how == "foreign":
        torch.save({"layer.weight": torch.zeros(2)}, file)
    else:
        file.write_bytes(file.read_bytes()[:1000] if how == "cut off" else b"words")
    refused(inline("test_Rain12.py", "--data_path", "pairs", "--logdir", path, "--save_path", "out"), "net_latest.pth")
    assert not (tmp_path / "out").exists()


def test_results_never_replace_their_inputs(inline: Command, tmp_path: Path, weights: Path) -> None:
    folder = write_pairs(tmp_path / "pairs", 2)
    before = {path: path.read_bytes() for pair in find_pairs(folder) for path in (pair.rainy, pair.clean)}
    for script, data, out in (
        ("test_Rain12.py", "pairs", "pairs/rainy"),
        ("test_real.py", "pairs/rainy", "pairs/rainy"),
    ):
        refused(
            inline(script, "--data_path", data, "--logdir", weights, "--save_path", out), "rain-001.png", "--save_path"
        )
    write(tmp_path / "photos/IMG.PNG", scene(1)[0])  # the same file as IMG.png on many systems
    refused(
        inline("test_real.py", "--data_path", "photos", "--logdir", weights, "--save_path", "photos"), "--save_path"
    )
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.slow
def test_nothing_needs_more_than_windows_has(tmp_path: Path, weights: Path) -> None:
    """Training and testing without POSIX's modules, functions and signals, and with processes started by spawn."""
    write_pairs(tmp_path / "pairs", 2)
    code = f"""
import multiprocessing, os, runpy, signal, sys
import cv2, h5py, scipy.cluster.hierarchy, tensorboardX, tifffile, torch, torchvision
for name in ("fcntl", "grp", "posix", "pwd", "resource", "termios"):
    sys.modules[name] = None
for owner, names in (
    (os, "EX_TEMPFAIL chown fchmod fork geteuid getpgid getuid killpg mkfifo sched_getaffinity statvfs sync"),
    (signal, "SIGHUP SIGKILL SIGPIPE SIGUSR1 SIGXFSZ"),
):
    for name in names.split():
        if hasattr(owner, name):
            delattr(owner, name)
multiprocessing.set_start_method("spawn")
sys.path.insert(0, {str(ROOT)!r})
for script, *arguments in (
    ("train_rain100L.py", "--data_path", "pairs", "--save_path", "run", *{TINY_TRAINING!r}),
    ("test_Rain12.py", "--data_path", "pairs", "--logdir", "run", "--save_path", "out", "--figure", "--show_rain"),
):
    sys.argv = [script, *arguments]
    runpy.run_path(os.path.join({str(ROOT)!r}, script), run_name="__main__")
"""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("rain-*.png"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such a name")
def test_a_file_name_that_is_no_text(inline: Command, tmp_path: Path, weights: Path) -> None:
    """As unpacked from archives of other encodings."""
    (tmp_path / "photos").mkdir()
    os.link(write(tmp_path / "x.jpg", scene(1)[0]), os.fsencode(tmp_path / "photos") + b"/\xd3\xea1.jpg")
    result = inline("test_real.py", "--data_path", "photos", "--logdir", weights, "--save_path", "out")
    assert result.returncode == 0, result.stderr
    assert len((tmp_path / "out/results.csv").read_text().splitlines()) == 2
