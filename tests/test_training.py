"""The training loop: it learns, repeats itself bit for bit, resumes after interrupts, recovers from divergence."""

from __future__ import annotations

import dataclasses
import errno
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, scene, start, write, write_pairs
from tensorboardX.event_file_writer import EventsWriter
from torch import nn

import train_rain100H
import train_rain100L
from derain import checkpoint, steps
from derain import train as training
from derain.cli import parse_settings
from derain.distributed import Processes
from derain.inference import derain_image
from derain.optimized import fold
from derain.pairs import find_pairs, read_pair
from derain.patches import GridPatches, RandomPatches
from derain.steps import Training
from derain.train import RECIPES, TrainSettings, validate
from DerainDataset import DerainDataset, Patch, prepare, split_by_background
from networks import DARGNet, load_network
from SSIM import SSIM, psnr_y, ssim_y
from utils import InputError, set_seed, to_tensor

State = dict[str, torch.Tensor]
BEST = {**RECIPES["best"], "recipe": "best", "stages": ("32:2:0.5", "40:1:0.5"), "precision": "fp32"}


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    """Short training of a small network: 18 patches, 9 steps an epoch."""
    return TrainSettings(
        data_path=write_pairs(tmp_path / "pairs", 2),
        save_path=tmp_path / "run",
        patch_size=32,
        stride=16,
        batch_size=2,
        device="cpu",
        groups=1,
        max_steps=4,
    )


def train(settings: TrainSettings, network: nn.Module | None = None, **changes: object) -> State:
    """Train with some settings changed, as the scripts do; returns net_latest.pth."""
    settings = dataclasses.replace(settings, **changes)
    set_seed(settings.seed)
    training.train(settings, network or DARGNet(settings.channels, settings.groups))
    return torch.load(settings.save_path / "net_latest.pth", weights_only=True)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def log(settings: TrainSettings) -> list[dict]:
    return [json.loads(line) for line in (settings.save_path / "log.jsonl").read_text().splitlines()]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, step: int, number: int = signal.SIGINT) -> None:
    """Send this process a signal while it takes a step (counted from 0)."""
    original = Training.set_learning_rate

    def set_learning_rate(self: Training) -> None:
        if self.step == step:
            os.kill(os.getpid(), number)
        original(self)

    monkeypatch.setattr(Training, "set_learning_rate", set_learning_rate)


@pytest.mark.slow
def test_the_loss_falls(settings: TrainSettings) -> None:
    train(settings, epochs=3, max_steps=None)
    losses = [line["loss"] for line in log(settings) if "loss" in line]
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]
    assert sorted(p.name for p in settings.save_path.glob("net_epoch*")) == [f"net_epoch{n}.pth" for n in (1, 2, 3)]


def test_the_loss_is_the_published_one(settings: TrainSettings) -> None:
    """1 - SSIM + L1 of the first batch, from its parts, and the training PSNR of the same pass."""
    weights = train(settings, max_steps=1, lr=1e-20)  # too small a step to change a weight
    line = next(line for line in log(settings) if "loss" in line)
    data = DerainDataset(settings.data_path.with_name("pairs.h5"), 32, 16)
    rainy, clean = data.batch(GridPatches(data, 2, 0).at(0, 0))
    network = DARGNet(groups=1)
    network.load_state_dict(weights)
    with torch.no_grad():
        derained = network(rainy)
    assert line["l1"] == pytest.approx((derained - clean).abs().mean().item(), abs=1e-6)
    assert line["ssim_loss"] == pytest.approx(1 - SSIM()(derained, clean).item(), abs=1e-6)
    assert line["loss"] == pytest.approx(line["l1"] + line["ssim_loss"], abs=1e-6)
    error = (derained.clamp(0, 1) - clean).pow(2).mean().item()
    assert line["psnr_rgb"] == pytest.approx(-10 * math.log10(error), abs=1e-4)


@pytest.mark.parametrize("options", [{}, BEST], ids=["paper", "best"])
def test_the_same_seed_gives_the_same_weights_bit_for_bit(
    settings: TrainSettings, tmp_path: Path, options: dict
) -> None:
    options = options | {"max_steps": 6}
    first = train(settings, **options)
    assert same(first, train(settings, **options, save_path=tmp_path / "again"))
    assert not same(first, train(settings, **options, save_path=tmp_path / "other", seed=1))


@pytest.mark.parametrize("best", [False, True], ids=["paper", "best"])
def test_an_interrupted_run_resumes_bit_for_bit(
    settings: TrainSettings, tmp_path: Path, best: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted within the second epoch; the learning rate and the patches change later on."""
    options: dict = {"epochs": 3, "milestones": (1, 2), "augment": True}
    if best:
        options = BEST | {"warmup": 3, "recombine": 0.5}
    whole = train(settings, max_steps=14, save_path=tmp_path / "whole", **options)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10)
        with pytest.raises(KeyboardInterrupt):
            train(settings, max_steps=14, **options)
    assert torch.load(settings.save_path / "state_latest.pth", weights_only=True)["step"] == 11
    assert same(train(settings, max_steps=14, **options), whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGUSR1"])
def test_a_run_that_a_cluster_ends_asks_to_be_queued_again(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """It saves and ends with 75, for `scontrol requeue`; the run then resumes bit for bit."""
    whole = train(settings, save_path=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 1, getattr(signal, name))
        with pytest.raises(SystemExit) as caught:
            train(settings)
    assert caught.value.code == 75
    assert torch.load(settings.save_path / "state_latest.pth", weights_only=True)["step"] == 2
    assert same(train(settings), whole)


def test_a_signal_that_is_ignored_stays_so(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """As SIGHUP is under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt_at(monkeypatch, 1, signal.SIGHUP)
        train(settings, max_steps=3)
        assert torch.load(settings.save_path / "state_latest.pth", weights_only=True)["step"] == 3
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_under_tensorboards_file(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in the training itself, not in a thread for whose end it would wait for ever."""
    flush, count, threads = EventsWriter.flush, 0, threading.active_count()

    def full(writer: EventsWriter) -> bool:
        nonlocal count
        count += 1
        if count == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return flush(writer)

    monkeypatch.setattr(EventsWriter, "flush", full)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)) as caught:
        train(settings, epochs=3, max_steps=None)
    assert caught.value.filename == str(settings.save_path)
    assert threading.active_count() == threads


@pytest.mark.parametrize(
    "error", [PermissionError(errno.EACCES, "denied"), MemoryError(), RuntimeError("can't allocate memory")]
)
def test_a_state_that_cannot_be_read_now_is_not_called_damaged(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    train(settings, max_steps=1)

    def load(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(type(error)):
        train(settings, max_steps=2)


@pytest.mark.slow
def test_tensorboard_shows_both_parts_of_a_run(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """After an interrupt, with what was written at the step from which it resumed, and once."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="an extra requirement"
    )
    options = {"validation": 1, "validate_every": 2, "max_steps": 6}
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3)
        with pytest.raises(KeyboardInterrupt):
            train(settings, **options)
    time.sleep(1.1)  # files are named by the second
    train(settings, **options)
    events = reader.EventAccumulator(str(settings.save_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("validation/psnr_y")] == [2, 4, 6]
    assert [event.step for event in events.Images("rainy_derained_clean")] == [2, 4, 6]
    assert "patch_size" in str(events.Tensors("settings/text_summary")[0].tensor_proto)


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_a_batch_in_parts_is_the_batch(settings: TrainSettings, tmp_path: Path, optimizer: str) -> None:
    """--accumulate: the same gradient, but for the order of sums; the parts of a batch of 5 are of unequal size."""
    options = {"optimizer": optimizer, "batch_size": 5, "max_steps": 3}
    whole = train(settings, **options, save_path=tmp_path / "whole")
    for parts in (2, 5, 9):
        found = train(settings, **options, accumulate=parts, save_path=tmp_path / f"in_{parts}")
        for name, value in whole.items():
            assert torch.allclose(found[name], value, atol=1e-4), name
    lines = [json.loads((tmp_path / f"{n}/log.jsonl").read_text().splitlines()[-1]) for n in ("whole", "in_2")]
    assert lines[1] == pytest.approx(lines[0], abs=1e-4)


def test_a_run_in_a_thread_and_twice(settings: TrainSettings, tmp_path: Path) -> None:
    """As in a notebook: no signals there, paths as text, and nothing left over for the second run."""
    found = []
    for name in ("first", "second"):
        changed = dataclasses.replace(settings, save_path=str(tmp_path / name), data_path=str(settings.data_path))
        thread = threading.Thread(target=lambda run=changed: found.append(train(run)))
        thread.start()
        thread.join()
    assert same(*found)


@pytest.mark.slow
@pytest.mark.parametrize("loaded", [True, False])
def test_in_a_program_with_modules_of_the_same_names(tmp_path: Path, loaded: bool) -> None:
    """Ours are used here and theirs there, whichever were imported first; `datasets` is a package that many have."""
    write_pairs(tmp_path / "pairs", 2)
    for name in ("networks", "utils", "SSIM", "datasets"):
        (tmp_path / f"{name}.py").write_text(f"name = 'their {name}'\n")
    theirs = "import networks, utils, SSIM, datasets\n"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "derain.score", "--clean_dir", "pairs", "a=pairs/rainy"]
    assert subprocess.run(command, cwd=tmp_path, env=environment).returncode == 0
    (tmp_path / "main.py").write_text(
        f"import sys\nsys.path.append({str(ROOT)!r})\n{theirs * loaded}"
        "import torch\n"
        "from derain.evaluate import EvalSettings, evaluate\n"
        "from derain.train import TrainSettings, train\n"
        "settings = TrainSettings(data_path='pairs', save_path='run', patch_size=32, max_steps=1, device='cpu')\n"
        "train(settings, torch.nn.Conv2d(3, 3, 3, padding=1))\n"
        "evaluate(EvalSettings(data_path='pairs/rainy', save_path='out', device='cpu'))\n"
        f"{theirs}print(networks.name, utils.name, SSIM.name, datasets.name, sep=', ')\n"
    )
    result = subprocess.run([sys.executable, "main.py"], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("their networks, their utils, their SSIM, their datasets\n")
    assert (tmp_path / "run/net_latest.pth").exists() and (tmp_path / "out/rain-001.png").exists()


def test_an_interrupt_at_an_epochs_end_loses_nothing(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_at(monkeypatch, 8)  # the ninth and last step of the first epoch
    with pytest.raises(KeyboardInterrupt):
        train(settings, epochs=2, max_steps=None)
    assert (settings.save_path / "net_epoch1.pth").exists()
    assert [line["epoch"] for line in log(settings) if "loss" in line] == [1]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_real_run_saves_when_interrupted(tmp_path: Path, number: int, status: int) -> None:
    """The real command, a signal after its first lines, and the same command again."""
    write_pairs(tmp_path / "pairs", 2)
    arguments = ("--data_path", "pairs", "--save_path", "run", "--patch_size", "32", "--stride", "16", "--groups", "1")
    arguments += ("--batch_size", "2", "--device", "cpu", "--max_steps")
    command = [sys.executable, "-u", str(ROOT / "train_rain100L.py"), *arguments]
    process = subprocess.Popen(
        [*command, "100000"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    for line in process.stdout:
        if line.startswith("step 1/"):
            os.killpg(process.pid, number)
            break
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == status
    assert "the same command resumes here" in rest
    step = torch.load(tmp_path / "run/state_latest.pth", weights_only=True)["step"]
    assert 1 <= step < 1000
    again = subprocess.run(
        [*command, str(step + 1)], cwd=tmp_path, capture_output=True, text=True, timeout=100, check=True
    )
    assert f"step {step}" in again.stdout
    assert torch.load(tmp_path / "run/state_latest.pth", weights_only=True)["step"] == step + 1


def test_a_finished_run_is_left_alone(settings: TrainSettings, capsys: pytest.CaptureFixture[str]) -> None:
    weights = train(settings)
    before = (settings.save_path / "state_latest.pth").stat().st_mtime_ns
    assert same(train(settings), weights)
    assert "already trained for 4 steps" in capsys.readouterr().out
    assert (settings.save_path / "state_latest.pth").stat().st_mtime_ns == before
    assert not same(train(settings, max_steps=5), weights)  # more steps continue it


def test_changed_settings_are_rejected_with_the_differences(settings: TrainSettings, tmp_path: Path) -> None:
    weights = train(settings)
    with pytest.raises(InputError, match=r"lr 0\.001 -> 0\.01, seed 0 -> 7.*--resume force"):
        train(settings, lr=0.01, seed=7, max_steps=6)
    with pytest.raises(InputError, match="holds a training run already"):
        train(settings, resume="never")
    assert same(torch.load(settings.save_path / "net_latest.pth", weights_only=True), weights)
    train(settings, lr=0.01, resume="force", max_steps=5)
    assert log(settings)[-1]["lr"] == 0.01
    train(settings, **BEST, save_path=tmp_path / "best")
    with pytest.raises(InputError, match="max_steps 4 -> 6"):  # its learning rate has already fallen to 0
        train(settings, **BEST, save_path=tmp_path / "best", max_steps=6)


@pytest.mark.parametrize("content", [b"", b"damaged", None])
def test_a_damaged_state_is_rejected_and_kept(settings: TrainSettings, content: bytes | None) -> None:
    train(settings)
    latest = settings.save_path / "state_latest.pth"
    damaged = latest.read_bytes()[:10000] if content is None else content
    latest.write_bytes(damaged)
    with pytest.raises(InputError, match=r"state_latest\.pth: damaged.*remove it.*--init .*net_latest\.pth"):
        train(settings, max_steps=6)
    assert latest.read_bytes() == damaged


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is full")
def test_a_full_disk_while_saving(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    train(settings)
    before = (settings.save_path / "state_latest.pth").read_bytes()

    def full(self: Path, data: bytes) -> None:
        with open("/dev/full", "wb") as file:  # the system's own error
            file.write(data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        train(settings, max_steps=6)
    assert (settings.save_path / "state_latest.pth").read_bytes() == before


@pytest.mark.parametrize("name", ["net_latest.pth", "net_epoch1.pth", "state_latest.pth"])
def test_a_run_that_ends_between_its_last_files_writes_them_again(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At the last step, which is an epoch's, one file cannot be written: the same command repairs all of them."""
    options = {"max_steps": 9, "save_minutes": 0.0}
    whole = train(settings, **options, save_path=tmp_path / "whole")
    save = checkpoint.save_torch
    steps = []

    def stop(path: Path, content: Any) -> None:
        if path.name == name and (steps.append(path) or len(steps) == (1 if "epoch" in name else 9)):
            raise KeyboardInterrupt
        save(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_torch", stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings, **options)
    train(settings, **options)
    for file in ("net_latest.pth", "net_epoch1.pth"):
        assert same(torch.load(settings.save_path / file, weights_only=True), whole), file
    assert torch.load(settings.save_path / "state_latest.pth", weights_only=True)["step"] == 9


def test_a_loss_that_is_not_finite_ends_the_run(settings: TrainSettings) -> None:
    train(settings, max_steps=2)
    before = (settings.save_path / "state_latest.pth").read_bytes()
    with pytest.raises(InputError, match=r"step \d+: the loss is (nan|inf) on patches of rainy/rain-.*last training s"):
        train(settings, max_steps=60, lr=1e12, resume="force")
    assert (settings.save_path / "state_latest.pth").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be a number above 0"),
        ({"lr": math.nan}, "--lr nan"),
        ({"minutes": -1}, "--minutes -1"),
        ({"stages": ("64:4",)}, "--stages 64:4: each must be SIDE:BATCH:SHARE"),
        ({"stages": ("64:4:-1",)}, "--stages"),
        ({"recombine": 0.5}, "--recombine 0.5: needs random crops"),
        ({"minutes": 1, "max_steps": 5}, "only one of them"),
        ({"validation": 1, "validation_path": Path()}, "only one of them"),
        ({"data_path": Path("nowhere")}, r"nowhere: no such folder.*derain\.data\.synthesize"),
    ],
)
def test_settings_that_make_no_sense(settings: TrainSettings, change: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train(settings, **change)
    assert not settings.save_path.exists()


def test_stages_larger_than_an_image_name_it(settings: TrainSettings) -> None:
    with pytest.raises(InputError, match=r"rainy/rain-001\.png is 72x64, smaller than a patch of 65"):
        train(settings, **BEST | {"stages": ("32:1:0.9", "65:1:0.1")})


# ---------------------------------------------------------------- precision, averaging, the recipes


def test_precision_is_what_the_network_computes_in(settings: TrainSettings, tmp_path: Path) -> None:
    seen = []

    class Spy(DARGNet):
        def forward(self, rainy: torch.Tensor) -> torch.Tensor:
            result = super().forward(rainy)
            seen.append(result.dtype)
            return result

    for precision in ("fp32", "bf16"):
        train(settings, Spy(groups=1), precision=precision, max_steps=1, save_path=tmp_path / precision)
    assert torch.float32 in seen
    assert torch.bfloat16 in seen


@pytest.mark.parametrize("script", [train_rain100H, train_rain100L])
def test_recipes(script: ModuleType) -> None:
    """A recipe changes its settings and nothing else, and a flag of the command line wins over it."""
    paper, best, own = (
        dataclasses.asdict(parse_settings(script.SETTINGS, "", arguments))
        for arguments in ([], ["--recipe", "best"], ["--schedule", "multistep", "--no-augment", "--recipe", "best"])
    )
    published = {
        "batch_size": 8,
        "patch_size": 100,
        "stride": 80,
        "lr": 1e-3,
        "epochs": 100,
        "milestones": (40, 60, 80),
    }
    published |= {
        "milestones": (40, 60, 80),
        "schedule": "multistep",
        "optimizer": "adam",
        "start": "random",
        "stages": (),
    }
    published |= {"augment": False, "precision": "fp32", "recombine": 0, "validation": 0, "init": None}
    assert paper.items() >= published.items()
    assert (paper["flip"], paper["strict"]) == ((False, True) if script is train_rain100H else (True, False))
    changed = {"optimizer": "muon", "start": "identity", "schedule": "linear", "warmup": 100, "augment": True}
    changed |= {"precision": "auto", "stages": ("64:4:0.5", "100:2:0.33", "160:1:0.17")}
    assert best.items() >= changed.items()
    assert {name for name in best if best[name] != paper[name]} == set(changed) | {"epochs", "recipe"}
    assert own == best | {"schedule": "multistep", "augment": False}


@pytest.mark.slow
def test_strict_training_leaves_the_test_backgrounds_out(
    settings: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """1,800 numbered pairs, hard links to a few files: 1,254 are packed."""
    pairs = find_pairs(settings.data_path)
    folder = tmp_path / "RainTrainH"
    folder.mkdir()
    for number in range(1, 1801):
        pair = pairs[number % 2]
        (folder / f"rain-{number}.png").hardlink_to(pair.rainy)
        (folder / f"norain-{number}.png").hardlink_to(pair.clean)
    train(settings, data_path=folder, strict=True, max_steps=1)
    assert "1254 pairs, step 0" in capsys.readouterr().out
    assert len(DerainDataset(tmp_path / "RainTrainH.strict.h5", 32, 16).pairs) == 1254


# ---------------------------------------------------------------- identity, minutes, divergence


@pytest.mark.parametrize("seed", range(3))
def test_the_identity_start(seed: int) -> None:
    """The output is within 0.1 of the image on average, in each channel a copy of it up to brightness and contrast."""
    torch.manual_seed(seed)
    network = DARGNet()
    x = to_tensor(scene(seed)[0])
    before = (network(x) - x).abs().mean().item()
    network.start_as_identity()
    y = network(x)
    assert (y - x).abs().mean().item() < 0.1 < before
    for first, second in zip(x[0], y[0].detach(), strict=True):
        assert np.corrcoef(first.flatten(), second.flatten())[0, 1] > 0.95
    F.mse_loss(y, x * 0.5).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name


def test_a_run_starts_as_the_identity_if_asked(settings: TrainSettings, tmp_path: Path) -> None:
    started = train(settings, start="identity", lr=1e-20, max_steps=1)
    set_seed(0)
    network = DARGNet(groups=1)
    network.start_as_identity()
    assert all(torch.allclose(started[name], value, atol=1e-6) for name, value in network.state_dict().items())


class Clock:
    """Stands in for the time module: every step takes `pace` seconds, by the side of its patches."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, pace: Callable[[int], float]) -> None:
        self.now = 0.0
        original = Training.loss_parts

        def loss_parts(training: Training, network: nn.Module, rainy: torch.Tensor, clean: torch.Tensor) -> object:
            self.now += pace(rainy.shape[-1])
            return original(training, network, rainy, clean)

        monkeypatch.setattr(Training, "loss_parts", loss_parts)
        monkeypatch.setattr(steps, "time", self)

    def monotonic(self) -> float:
        return self.now

    perf_counter = monotonic


@pytest.mark.slow
def test_minutes_fix_the_number_of_steps(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of 10 and, in the second half, of 20 seconds: 30 minutes are about 120 of them, 60 and 60."""
    clock = Clock(monkeypatch, lambda side: 10.0 if side == 32 else 20.0)
    options = BEST | {"minutes": 30.0, "max_steps": None}
    train(settings, **options)
    state = torch.load(settings.save_path / "state_latest.pth", weights_only=True)
    assert state["step"] == state["last_step"]
    assert 100 <= state["step"] <= 130
    assert 0.9 < (clock.now - 4 * 30) / (60 * 30) < 1.1  # but for the steps that measured the stages
    assert f"{state['step']} steps in 30 minutes" in capsys.readouterr().out
    assert log(settings)[-1]["lr"] < 2e-4  # fully decayed, from 0.01

    with monkeypatch.context() as patch:
        interrupt_at(patch, 40)
        with pytest.raises(KeyboardInterrupt):
            train(settings, **options, save_path=tmp_path / "interrupted")
    state = torch.load(tmp_path / "interrupted/state_latest.pth", weights_only=True)
    Clock(monkeypatch, lambda side: 1.0)  # the machine is faster afterwards: the number of steps stays
    train(settings, **options, save_path=tmp_path / "interrupted")
    assert torch.load(tmp_path / "interrupted/state_latest.pth", weights_only=True)["step"] == state["last_step"]


@pytest.mark.slow
def test_paper_in_minutes_keeps_its_schedule(settings: TrainSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    Clock(monkeypatch, lambda side: 10.0)
    train(settings, minutes=15.0, max_steps=None)
    lines = [line for line in log(settings) if "loss" in line]
    assert lines[-1]["step"] == pytest.approx(90, abs=2)
    rates = {line["step"]: line["lr"] for line in lines}
    assert rates[36] == pytest.approx(1e-3)
    assert rates[45] == pytest.approx(2e-4)  # after 40 % of the run
    assert rates[72] == pytest.approx(4e-5)
    assert rates[81] == pytest.approx(8e-6)


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 4])
def test_a_diverging_run_goes_back_and_lowers_its_learning_rate(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    """From step 700 on the weights are spoilt until the run has gone back `times` times."""
    original = Training.take_step

    def take_step(self: Training, *arguments: object) -> object:
        values, stop = original(self, *arguments)
        if self.rollbacks < times and self.step > 700:
            values["loss"] = 100.0
        return values, stop

    class Tiny(nn.Conv2d):
        def __init__(self) -> None:
            super().__init__(3, 3, 3, padding=1)

    monkeypatch.setattr(Training, "take_step", take_step)
    options = {"epochs": 200, "max_steps": 1000, "schedule": "linear"}
    if times == 4:
        with pytest.raises(InputError, match=r"diverged four times.*keeps the last training state.*lower --lr"):
            train(settings, Tiny(), **options)
        return
    train(settings, Tiny(), **options)
    (line,) = [line for line in log(settings) if "diverged" in line]
    assert line["back_to"] == 0  # the state of step 500 may be spoilt already
    assert 700 < line["diverged"] < 760
    assert line["lr_scale"] == 0.5
    assert "diverged; back to step" in capsys.readouterr().out
    state = torch.load(settings.save_path / "state_latest.pth", weights_only=True)
    assert (state["step"], state["rollbacks"], state["lr_scale"]) == (1000, 1, 0.5)
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.5 * 0.001 * settings.lr)  # of the last step


# ---------------------------------------------------------------- validation, initial weights, own networks


def test_validation_measures_the_saved_weights_on_whole_pairs(settings: TrainSettings, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 4)
    train(settings, validation=2, max_steps=3, validate_every=2)
    lines = [line for line in log(settings) if "validation" in line]
    assert [(line["validation"], line["step"]) for line in lines] == [(2, 2), (2, 3)]
    data = DerainDataset(tmp_path / "pairs.h5", 32, 16)
    _, held_out = split_by_background(data.backgrounds, 2, settings.seed)
    network = load_network(settings.save_path / "net_latest.pth")
    scores = []
    for rainy, clean in (data.whole_pair(pair) for pair in held_out):
        with torch.no_grad():  # the plain network, rounded here
            derained = network(to_tensor(rainy))[0].clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
        scores.append((psnr_y(derained, clean), ssim_y(derained, clean)))
    assert (lines[-1]["psnr_y"], lines[-1]["ssim_y"]) == pytest.approx(tuple(np.mean(scores, axis=0)), abs=1e-3)
    events = b"".join(path.read_bytes() for path in (settings.save_path / "tensorboard").glob("events*"))
    assert b"validation/psnr_y" in events
    assert b"rainy_derained_clean" in events


@pytest.mark.slow
def test_validation_shows_crops_of_the_first_pairs(network: DARGNet, tmp_path: Path) -> None:
    data = DerainDataset(prepare(write_pairs(tmp_path / "pairs", 5), log=lambda _: None), 32, 16)
    _, (rainy, derained, clean) = validate(network, data, "fp32")
    assert rainy.shape == derained.shape == clean.shape == (4, 3, 64, 64)
    for pair in range(4):
        images = data.whole_pair(pair)
        for shown, image in zip((rainy, clean), images, strict=True):
            assert torch.equal(shown[pair], to_tensor(image[:, :64])[0])
        expected = derain_image(fold(network), images[0])
        assert torch.equal(derained[pair], to_tensor(expected[:, :64])[0])


def test_validation_on_a_folder_of_its_own(settings: TrainSettings, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "others", 3, first=3)
    weights = train(settings, validation_path=folder)
    (line,) = [line for line in log(settings) if "validation" in line]
    assert (line["validation"], line["step"]) == (3, 4)
    network = DARGNet(groups=1)
    network.load_state_dict(weights)
    scores = []
    for pair in find_pairs(folder):
        rainy, clean = read_pair(pair)
        scores.append(psnr_y(derain_image(fold(network), rainy), clean))
    assert line["psnr_y"] == pytest.approx(np.mean(scores), abs=1e-3)


def test_training_leaves_out_the_backgrounds_of_the_validation_folder(
    settings: TrainSettings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the rain differs and the validation image is a crop of the training image."""
    pairs = find_pairs(settings.data_path)
    folder = tmp_path / "others"
    folder.mkdir()
    clean = cv2.imread(str(pairs[1].clean))[:, 3:]
    cv2.imwrite(str(folder / "norain-1.png"), clean)
    cv2.imwrite(str(folder / "rain-1.png"), cv2.add(clean, 30))
    train(settings, validation_path=folder)
    assert f"1 of 2 pairs left out: {folder} shows their backgrounds" in capsys.readouterr().out
    data = DerainDataset(prepare(settings.data_path), 32, 16)
    assert data.unshared_pairs(DerainDataset(prepare(folder), 32, 16)) == [i for i in data.pairs if i != 1]
    with pytest.raises(InputError, match=r"every pair shows a background of .*validate on other pairs"):
        train(settings, validation_path=settings.data_path, resume="never")


def test_training_can_start_from_given_weights(settings: TrainSettings, tmp_path: Path) -> None:
    first = train(settings)
    second = train(settings, init=settings.save_path, save_path=tmp_path / "second", lr=1e-20)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    (tmp_path / "foreign.pth").write_bytes(b"not weights")
    with pytest.raises(InputError, match="foreign"):
        train(settings, init=tmp_path / "foreign.pth", save_path=tmp_path / "third")


class OwnNetwork(nn.Module):
    """A network of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.PReLU(32))
        self.last = nn.Conv2d(32, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.last(self.layers(x))


@pytest.mark.parametrize("options", [{}, BEST], ids=["paper", "best"])
def test_a_network_of_ones_own_trains_validates_and_resumes(
    settings: TrainSettings, tmp_path: Path, options: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = options | {"validation": 1, "max_steps": 12}

    def build() -> OwnNetwork:
        torch.manual_seed(0)
        return OwnNetwork()

    whole = train(settings, build(), **options, save_path=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 5)
        with pytest.raises(KeyboardInterrupt):
            train(settings, build(), **options)
    assert same(train(settings, build(), **options), whole)
    OwnNetwork().load_state_dict(whole)


def test_an_own_loss_is_used(settings: TrainSettings) -> None:
    class Half(nn.Module):
        def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
            return first.mean() * 0 + 0.5

    set_seed(0)
    training.train(dataclasses.replace(settings, max_steps=1), DARGNet(groups=1), ssim=Half())
    assert log(settings)[-1]["ssim_loss"] == 0.5


# ---------------------------------------------------------------- several processes


def losses(folder: Path) -> list[float]:
    """The mean losses of the epochs of folder/run."""
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_two_processes_train_as_one(tmp_path: Path, recipe: str) -> None:
    """Under torchrun, with an odd batch and an odd rest: the same losses as one process, epoch by epoch."""
    flags = ("--stride", "16", "--batch_size", "5", "--epochs", "2", "--no-flip", "--groups", "1")
    if recipe == "best":
        flags = ("--recipe", "best", "--stages", "32:3:0.6", "40:1:0.4", "--max_steps", "8", "--groups", "1")
        flags += ("--precision", "fp32")
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        write_pairs(folder / "pairs", 2)  # 18 patches: batches of 5, 5, 5 and 3
        process = start("train_rain100L.py", folder, *flags, processes=processes)
        assert process.wait(timeout=200) == 0, (folder / "output.txt").read_text()
        found.append(losses(folder))
        weights = load_network(folder / "run/net_latest.pth")
        assert all(torch.isfinite(p).all() for p in weights.parameters())
    assert found[1] == pytest.approx(found[0], abs=1e-4)


def test_the_parts_of_a_batch_weigh_what_they_hold() -> None:
    processes = [Processes() for _ in range(3)]
    for rank, process in enumerate(processes):
        process.rank, process.size = rank, 3
    for size in (1, 2, 4, 6):
        batch = list(range(size))
        parts, weights = zip(*(process.share(batch) for process in processes), strict=True)
        assert sum(weights) == pytest.approx(3)
        assert sorted(i for part, weight in zip(parts, weights, strict=True) if weight for i in part) == batch
        # A mean over the batch is the mean over the processes of weight times the part's mean.
        mean = sum(w * sum(part) / len(part) for part, w in zip(parts, weights, strict=True)) / 3
        assert mean == pytest.approx(sum(batch) / size)


def test_random_patches_do_not_depend_on_the_number_of_processes(tmp_path: Path) -> None:
    data = DerainDataset(prepare(write_pairs(tmp_path / "pairs", 3), log=lambda _: None), 16, 16)
    patches = RandomPatches(data, settings_stages(), seed=5)
    assert patches.at(7, 0.1) == RandomPatches(data, settings_stages(), seed=5).at(7, 0.1)
    assert patches.at(7, 0.1) != patches.at(8, 0.1)
    assert patches.at(7, 0.1) != RandomPatches(data, settings_stages(), seed=6).at(7, 0.1)
    assert [len(patches.at(0, progress)) for progress in (0, 0.49, 0.5, 0.99, 1)] == [3, 3, 2, 2, 2]
    assert {patch.size for patch in patches.at(0, 0.6)} == {24}


def test_the_published_order_is_a_function_of_seed_and_epoch(tmp_path: Path) -> None:
    data = DerainDataset(prepare(write_pairs(tmp_path / "pairs", 2), log=lambda _: None), 32, 16)
    for seed in (0, 5):
        patches = GridPatches(data, 4, seed)
        assert patches.steps_per_epoch == 5  # 18 patches; the last batch is smaller
        for epoch in (0, 1):
            found = [patch for step in range(5) for patch in patches.at(5 * epoch + step, 0)]
            order = np.random.RandomState([seed, epoch]).permutation(18)
            assert found == [data.grid[i] for i in order]
    mirrored = GridPatches(data, 4, 0, mirror=True)
    seen = {(p.mirrored, p.upside_down) for step in range(5) for p in mirrored.at(step, 0)}
    assert len(seen) == 4
    places = [(p.pair, p.top, p.left) for step in range(5) for p in mirrored.at(step, 0)]
    assert len(set(places)) == 18


def test_other_rain_on_the_same_background(tmp_path: Path) -> None:
    """The clean patch stays, the rain is that of another place: grey, at least 0, up to a fifth stronger or fainter."""
    data = DerainDataset(prepare(write_pairs(tmp_path / "pairs", 3), log=lambda _: None), 16, 16)
    own, seen = Patch(0, 8, 8, 24), set()
    _, clean = data.batch([own])
    for seed in range(8):
        rainy, same = data.batch([own._replace(rain=seed)])
        assert torch.equal(same, clean)
        again, _ = data.batch([own._replace(rain=seed)])
        assert torch.equal(again, rainy)
        layer = ((rainy - clean) * 255).round()
        assert (layer >= 0).all()
        unclipped = (rainy < 1).all(dim=1, keepdim=True).expand_as(rainy)
        grey = layer.amax(dim=1, keepdim=True).expand_as(layer)
        assert torch.equal(layer[unclipped], grey[unclipped])
        assert 0.1 < (layer > 0).float().mean() < 0.3  # the scenes have rain on a fifth of their pixels
        seen.add(float(layer.sum()))
    assert len(seen) > 5


def test_other_rain_is_varied_and_filled(tmp_path: Path) -> None:
    """Even rain, lost in one white row: that row is filled, and the layer is up to a fifth stronger or fainter."""
    clean = np.full((64, 64, 3), 100, np.uint8)
    clean[20] = 255
    write(tmp_path / "pairs/norain-1.png", clean)
    write(tmp_path / "pairs/rain-1.png", np.minimum(255, clean.astype(int) + 50).astype(np.uint8))
    data = DerainDataset(prepare(tmp_path / "pairs", log=lambda _: None), 24, 24)
    strengths = set()
    for seed in range(20):
        rainy, clean_patch = data.batch([Patch(0, 30, 8, 24, rain=seed)])
        (strength,) = set(((rainy - clean_patch) * 255).round().flatten().tolist())
        strengths.add(strength)
    assert 40 <= min(strengths) < 46
    assert 54 < max(strengths) <= 60


def settings_stages() -> list:
    return TrainSettings(stages=("16:3:1", "24:2:1")).parsed_stages()
