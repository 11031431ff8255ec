"""The train scripts as a user runs them: real commands with tiny settings."""

from __future__ import annotations

import csv
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import ROOT, TRAIN_SCRIPTS, Command, one_error, scene, write, write_pairs

from DerainDataset import DerainDataset
from networks import DARGNet, load_network
from SSIM import psnr_y

TINY_TRAINING = (
    *("--patch_size", "32", "--stride", "16", "--batch_size", "2", "--max_steps", "2"),
    *("--groups", "1", "--device", "cpu"),
)


@pytest.mark.parametrize("script", TRAIN_SCRIPTS)
def test_help(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
    expected = (
        f"logs/{weights}"
        if script.startswith("test_")
        else f"logs/train_{script[6:-3].replace('rain', 'Rain')}"
    )
    assert f"(default: {expected})" in shown  # Rain12 is tested with the light weights


# ---------------------------------------------------------------- training


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "patches"), [("train_rain100H.py", 27), ("train_rain100L.py", 54)]
)
def test_each_train_script_trains(
    command: Command, tmp_path: Path, script: str, patches: int
) -> None:
    write_pairs(tmp_path / "pairs", 3)
    result = command(script, "--data_path", "pairs", "--save_path", "run", *TINY_TRAINING)
    assert result.returncode == 0, result.stderr
    assert "3 pairs, step 0" in result.stdout
    data = DerainDataset(tmp_path / "pairs.h5", 32, 16, flip=script == "train_rain100L.py")
    assert len(data) == patches
    run = tmp_path / "run"
    network, fresh = load_network(run / "net_latest.pth"), DARGNet(groups=1)
    assert sum(p.numel() for p in network.parameters()) == sum(
        p.numel() for p in fresh.parameters()
    )
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
    again = command(
        "test_Rain12.py", "--data_path", "pairs", "--logdir", "run", "--save_path", "out"
    )
    assert again.returncode == 0, again.stderr


@pytest.mark.parametrize("kind", ["light", "heavy"])
def test_training_without_data_says_what_to_do(inline: Command, tmp_path: Path, kind: str) -> None:
    script = f"train_rain100{kind[0].upper()}.py"
    result = inline(script)
    one_error(
        result,
        "datasets/train/RainTrain",
        "datasets/README.md",
        f"--rain {kind}",
        "add --data_path",
    )
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
    one_error(
        inline(
            "train_rain100L.py",
            "--data_path",
            "pairs",
            "--save_path",
            "run",
            *TINY_TRAINING,
            *arguments,
        ),
        text,
    )
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- testing


@pytest.mark.parametrize("script", ["train_rain100L.py"])
def test_clean_images_in_a_folder_of_any_name(
    inline: Command, tmp_path: Path, weights: Path, script: str
) -> None:
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
        assert all(
            np.array_equal(image, known) for image, known in zip(found, scene(2), strict=True)
        )
        assert "packing" not in inline(*common).stdout  # packed once
    else:
        rows = list(csv.DictReader((tmp_path / "out/results.csv").read_text().splitlines()))
        assert float(rows[1]["input_psnr_y"]) == pytest.approx(psnr_y(*scene(2)))
    (tmp_path / "dry/2.png").unlink()
    one_error(inline(*common), "wet/2.png: its clean image", "2.png is missing")
    if script.startswith("test"):
        one_error(inline(script, "--clean_dir", "dry", "--logdir", weights), "add --data_path")
        one_error(inline("test_real.py", *common[1:]), "is for measuring")


# ---------------------------------------------------------------- bad input


def _spoil(folder: Path, how: str) -> tuple[str, ...]:
    """Spoil a data set; returns what the error has to name."""
    if how == "missing folder":
        return ("nowhere",)
    if how == "unpaired":
        (folder / "norain-002.png").unlink()
        return ("rain-002.png", "norain-002.png")
    if how == "tiny":
        for name in ("rainy/rain-002.png", "norain-002.png"):
            write(folder / name, scene(2, 10, 40)[1])
        return ("10",)
    if how == "size":
        write(folder / "norain-002.png", scene(2, 40, 40)[1])
        return ("rain-002.png", "norain-002.png", "40x40")
    path = folder / "rainy/rain-002.png"
    path.write_bytes(path.read_bytes()[:300] if how == "cut off" else b"words")
    return ("rain-002.png", "its partner is", "norain-002.png")


@pytest.mark.parametrize("how", ["missing folder", "unpaired", "size", "tiny", "cut off", "text"])
@pytest.mark.parametrize("script", ["train_rain100L.py"])
def test_bad_data_gets_one_line(
    inline: Command, tmp_path: Path, weights: Path, script: str, how: str
) -> None:
    texts = _spoil(write_pairs(tmp_path / "pairs", 2), how)
    data = "nowhere" if how == "missing folder" else "pairs"
    arguments = TINY_TRAINING if script.startswith("train") else ("--logdir", weights)
    one_error(inline(script, "--data_path", data, "--save_path", "out", *arguments), *texts)
    assert not (tmp_path / "out/results.csv").exists()
    assert how == "tiny" or not (tmp_path / "pairs.h5").exists()


@pytest.mark.parametrize("script", ["train_rain100L.py"])
@pytest.mark.parametrize("path", ["a_file", "a_file/below"])
def test_results_that_cannot_be_kept_are_refused_before_any_work(
    inline: Command, tmp_path: Path, weights: Path, script: str, path: str
) -> None:
    (tmp_path / "a_file").write_text("kept")
    write_pairs(tmp_path / "pairs", 2)
    arguments = TINY_TRAINING if script.startswith("train") else ("--logdir", weights)
    one_error(
        inline(script, "--data_path", "pairs", "--save_path", path, *arguments),
        path,
        "choose another --save_path",
    )
    assert (tmp_path / "a_file").read_text() == "kept"
    assert not (tmp_path / "pairs.h5").exists()


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
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").glob("rain-*.png"))) == 2
