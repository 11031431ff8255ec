"""The training loop: it learns, it repeats itself bit for bit, it survives being stopped."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, start, write_pairs

import train_rain100H
import train_rain100L
from derain import engine
from derain.cli import parse_settings
from derain.evaluation import validate
from derain.inference import fold
from derain.settings import RECIPES, TrainSettings
from derain.training import (
    EpochBatches,
    LeanDualAttention,
    SingleSlopePReLU,
    augmented,
    learning_rate,
    loss_parts,
    moving_average,
    speed_up,
    workers_watched,
)
from DerainDataset import DerainDataset, find_pairs, prepare, read_pair, split_by_background
from networks import DARGNet, load_network
from SSIM import SSIM, psnr_y
from utils import InputError, to_tensor

State = dict[str, torch.Tensor]


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    """Short training of the real network: 18 patches, 9 steps an epoch."""
    return TrainSettings(
        data_path=write_pairs(tmp_path / "pairs", 2),
        save_path=tmp_path / "run",
        patch_size=32,
        stride=16,
        batch_size=2,
        workers=0,
        device="cpu",
        max_steps=4,
    )


def train(settings: TrainSettings, **changes: object) -> State:
    """Train with some settings changed; returns net_latest.pth."""
    settings = dataclasses.replace(settings, **changes)
    engine.train(settings)
    return torch.load(settings.save_path / "net_latest.pth", weights_only=True)


def same(first: State, second: State) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def log(settings: TrainSettings) -> list[dict]:
    return [json.loads(line) for line in (settings.save_path / "log.jsonl").read_text().splitlines()]


def test_the_loss_falls(settings: TrainSettings) -> None:
    train(settings, epochs=3, max_steps=None)
    losses = [line["loss"] for line in log(settings) if "loss" in line]
    assert len(losses) == 3
    assert losses[2] < 0.8 * losses[0]
    assert sorted(p.name for p in settings.save_path.glob("net_epoch*")) == [f"net_epoch{n}.pth" for n in (1, 2, 3)]


def test_the_same_seed_gives_the_same_weights_bit_for_bit(settings: TrainSettings, tmp_path: Path) -> None:
    first = train(settings, max_steps=20, epochs=3)
    second = train(settings, max_steps=20, epochs=3, save_path=tmp_path / "again", workers=2)
    other = train(settings, max_steps=1, save_path=tmp_path / "other", seed=1)
    assert same(first, second)
    assert not same(first, other)


@pytest.mark.parametrize("best", [False, True], ids=["published recipe", "every option"])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(settings: TrainSettings, tmp_path: Path, best: bool) -> None:
    """Stopped within the second epoch; the learning rate changes in it too."""
    options: dict = {"epochs": 3, "milestones": (1, 2)}
    if best:
        options = {"epochs": 2, "schedule": "cosine", "warmup": 3, "ema": 0.9, "precision": "bf16"}
        options |= {"augment": True, "recombine": True, "gain": 0.3}
    steps = 14
    whole = train(settings, max_steps=steps, save_path=tmp_path / "whole", **options)

    stop_at, count = 11, 0
    original = engine.learning_rate

    def stop(*arguments: object) -> float:
        nonlocal count
        count += 1
        if count == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    engine.learning_rate = stop
    try:
        train(settings, max_steps=steps, **options)
    finally:
        engine.learning_rate = original
    state = torch.load(settings.save_path / "state_latest.pth", weights_only=True)
    assert state["step"] == stop_at
    assert same(train(settings, max_steps=steps, **options), whole)


def test_stopping_at_an_epochs_end_loses_nothing_of_it(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = engine.augmented

    def stop(*arguments: object) -> object:
        if arguments[3] == 8:  # the ninth and last step of the first epoch
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    monkeypatch.setattr(engine, "augmented", stop)
    train(settings, epochs=2, max_steps=None, augment=True)
    assert (settings.save_path / "net_epoch1.pth").exists()
    assert [line["epoch"] for line in log(settings) if "loss" in line] == [1]


def test_a_real_run_saves_when_told_to_stop(tmp_path: Path) -> None:
    """The real command, SIGTERM after its first lines, and the same command again."""
    write_pairs(tmp_path / "pairs", 2)
    arguments = ("--data_path", "pairs", "--save_path", "run", "--patch_size", "32", "--stride", "16")
    arguments += ("--batch_size", "2", "--device", "cpu", "--workers", "1", "--max_steps")
    command = [sys.executable, "-u", str(ROOT / "train_rain100L.py"), *arguments]
    process = subprocess.Popen(
        [*command, "100000"], cwd=tmp_path, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch 1/"):
            os.killpg(process.pid, signal.SIGTERM)  # to its workers too, as schedulers do
            break
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "the same command goes on" in rest
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
    assert not same(train(settings, max_steps=5), weights)  # more steps go on


def test_changed_settings_are_refused_with_the_differences(settings: TrainSettings) -> None:
    weights = train(settings)
    with pytest.raises(InputError, match=r"lr 0\.001 -> 0\.01, seed 0 -> 7.*--resume force"):
        train(settings, lr=0.01, seed=7, max_steps=6)
    with pytest.raises(InputError, match="holds a training run already"):
        train(settings, resume="never")
    assert same(torch.load(settings.save_path / "net_latest.pth", weights_only=True), weights)
    train(settings, lr=0.01, resume="force", max_steps=5)
    assert log(settings)[-1]["lr"] == 0.01


def test_a_damaged_state_falls_back_to_the_one_before(
    settings: TrainSettings, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = train(settings, epochs=2, max_steps=None)  # saved at steps 9 and 18
    latest = settings.save_path / "state_latest.pth"
    latest.write_bytes(latest.read_bytes()[:10000])
    assert same(train(settings, epochs=2, max_steps=None), whole)
    shown = capsys.readouterr().out
    assert "state_latest.pth: damaged" in shown
    assert (settings.save_path / "state_latest.pth.damaged").exists()  # and not in the place of the good one
    assert "step 9" in shown
    for path in (latest, settings.save_path / "state_previous.pth"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="no training state is whole"):
        train(settings, epochs=2, max_steps=None)


def test_a_loss_that_is_no_number_stops_the_run(settings: TrainSettings) -> None:
    train(settings, max_steps=2)
    before = (settings.save_path / "state_latest.pth").read_bytes()
    with pytest.raises(InputError, match=r"step \d+: the loss is (nan|inf) on patches of rainy/rain-.*last good state"):
        train(settings, max_steps=60, lr=1e12, resume="force")
    assert (settings.save_path / "state_latest.pth").read_bytes() == before


def test_validation_measures_the_saved_weights_on_whole_pairs(settings: TrainSettings, tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 4)
    train(settings, validation=2, max_steps=3, ema=0.9)
    line = next(line for line in log(settings) if "validation" in line)
    data = DerainDataset(tmp_path / "pairs.h5", 32, 16)
    _, held_out = split_by_background(data.backgrounds, 2, settings.seed)
    network = fold(load_network(settings.save_path / "net_latest.pth"))
    figures = []
    for pair in held_out:
        rainy, clean = data.whole_pair(pair)
        figures.append(psnr_y(engine.derain_image(network, rainy), clean))
    assert (line["validation"], line["step"]) == (2, 3)
    assert line["psnr_y"] == pytest.approx(np.mean(figures), abs=1e-6)
    events = b"".join(path.read_bytes() for path in (settings.save_path / "tensorboard").glob("events*"))
    assert b"validation/psnr_y" in events
    assert b"validation/rainy_derained_clean" in events


def test_validation_shows_the_same_middles_each_time(network: DARGNet, tmp_path: Path) -> None:
    data = DerainDataset(prepare(write_pairs(tmp_path / "pairs", 5), log=lambda _: None), 32, 16)
    _, (rainy, derained, clean) = validate(network, data, range(5), "fp32")
    assert rainy.shape == derained.shape == clean.shape == (4, 3, 64, 64)
    for pair in range(4):
        images = data.whole_pair(pair)
        for shown, image in zip((rainy, clean), images, strict=True):
            assert torch.equal(shown[pair], to_tensor(image[:, 4:68])[0])
        expected = engine.derain_image(fold(network), images[0])
        assert torch.equal(derained[pair], to_tensor(expected[:, 4:68])[0])


# ---------------------------------------------------------------- the parts


def test_every_patch_once_an_epoch_in_an_order_of_its_own() -> None:
    batches = EpochBatches(21, 8, seed=5)
    assert batches.per_epoch == 3  # the last one is smaller
    epochs = []
    for epoch in (0, 1):
        batches.start(epoch)
        epochs.append([i for batch in batches for i in batch])
        assert sorted(epochs[-1]) == list(range(21))
    assert epochs[0] != epochs[1]
    batches.start(1, first=2)
    assert len(batches) == 1
    assert list(batches) == [epochs[1][16:]]


def test_the_published_learning_rate() -> None:
    settings = TrainSettings()
    rates = {epoch: learning_rate(settings, 10 * epoch + 9, 10, 1000) for epoch in (0, 39, 40, 59, 60, 79, 80, 99)}
    expected = {0: 1e-3, 39: 1e-3, 40: 2e-4, 59: 2e-4, 60: 4e-5, 79: 4e-5, 80: 8e-6, 99: 8e-6}
    assert rates == pytest.approx(expected)
    assert learning_rate(dataclasses.replace(settings, milestones=(0.5,)), 5, 10, 1000) == pytest.approx(2e-4)


def test_the_cosine_learning_rate() -> None:
    settings = TrainSettings(schedule="cosine", warmup=10, lr=0.1)
    rates = [learning_rate(settings, step, 1, 110) for step in range(110)]
    assert rates[0] == pytest.approx(0.01)
    assert rates[9] == rates[10] == pytest.approx(0.1)
    assert rates[60] == pytest.approx(0.05)
    assert rates[109] < 0.0001
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))


def test_flips_keep_pairs_together_and_rain_upright() -> None:
    rainy = torch.arange(64 * 3 * 4 * 4, dtype=torch.float32).reshape(64, 3, 4, 4)
    settings = TrainSettings(augment=True)
    flipped, clean = augmented(rainy, rainy + 1, settings, step=7)
    assert torch.equal(flipped + 1, clean)
    seen = set()
    for before, after in zip(rainy, flipped, strict=True):
        forms = [before, before.flip(-1), before.flip(-2), before.flip(-1, -2)]
        seen |= {i for i, form in enumerate(forms) if torch.equal(form, after)}
    assert seen == {0, 1, 2, 3}
    again, _ = augmented(rainy, rainy, settings, step=7)
    assert torch.equal(again, flipped)
    assert not torch.equal(augmented(rainy, rainy, settings, step=8)[0], flipped)
    assert augmented(rainy, clean, TrainSettings(), step=7) == (rainy, clean)


def test_rain_of_other_patches_stronger_or_fainter() -> None:
    """Each layer is constant, so that it can be told whose it was and what became of it."""
    clean = torch.linspace(0, 0.5, 8).view(8, 1, 1, 1).expand(8, 3, 4, 4)
    layers = torch.arange(1, 9).view(8, 1, 1, 1) / 20
    rainy = (clean + layers).clamp(max=1)
    for gain in (0.0, 0.2):
        settings = TrainSettings(recombine=True, gain=gain)
        found, same_clean = augmented(rainy, clean, settings, step=3)
        assert torch.equal(clean, same_clean)
        added = (found - clean)[:, 0, 0, 0]
        if gain == 0:
            assert added.tolist() != pytest.approx(layers.flatten().tolist())
            assert sorted(added.tolist()) == pytest.approx(layers.flatten().tolist())
    stronger = (augmented(rainy, clean, TrainSettings(gain=0.2), step=3)[0] - clean)[:, 0, 0, 0] / layers.flatten()
    assert ((stronger > 0.79) & (stronger < 1.21)).all()
    assert stronger.std() > 0.05
    white = torch.ones(2, 3, 4, 4)
    assert torch.equal(augmented(white, white, TrainSettings(recombine=True, gain=0.5), step=0)[0], white)


@pytest.mark.parametrize(
    "error", [RuntimeError("DataLoader worker (pid 7) is killed"), EOFError(), ConnectionResetError("by peer")]
)
def test_the_death_of_a_worker_is_told_however_it_shows(error: Exception) -> None:
    with pytest.raises(InputError, match="a process that reads patches died"), workers_watched():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), OSError("no space left")])
def test_other_errors_stay_what_they_are(error: Exception) -> None:
    with pytest.raises(type(error), match=str(error)), workers_watched():
        raise error


@pytest.mark.parametrize("script", [train_rain100H, train_rain100L])
def test_recipes(script: ModuleType) -> None:
    """A recipe changes its settings and nothing else, and a flag of the command line wins over it."""
    paper, best, own = (
        dataclasses.asdict(parse_settings(script.Settings, "", arguments))
        for arguments in ([], ["--recipe", "best"], ["--schedule", "multistep", "--no-augment", "--recipe", "best"])
    )
    assert paper == dataclasses.asdict(script.Settings())
    published = {"batch_size": 8, "lr": 1e-3, "milestones": (40, 60, 80), "epochs": 100, "ema": 0, "augment": False}
    assert paper.items() >= published.items()
    assert best == paper | RECIPES["best"] | {"recipe": "best"}
    assert own == best | {"schedule": "multistep", "augment": False}


def test_validation_on_a_folder_of_its_own(settings: TrainSettings, tmp_path: Path) -> None:
    folder = write_pairs(tmp_path / "others", 3, first=3)
    weights = train(settings, validation_path=folder)
    (line,) = [line for line in log(settings) if "validation" in line]
    assert (line["validation"], line["step"]) == (3, 4)
    network = DARGNet()
    network.load_state_dict(weights)
    figures = []
    for pair in find_pairs(folder):
        rainy, clean = read_pair(pair)
        figures.append(psnr_y(engine.derain_image(fold(network), rainy), clean))
    assert line["psnr_y"] == pytest.approx(np.mean(figures), abs=1e-3)
    with pytest.raises(InputError, match="only one"):
        train(settings, validation_path=folder, validation=1)


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
    assert f"pairs left out of training because {folder} shows their background: 1 of 2" in capsys.readouterr().out
    data = DerainDataset(prepare(settings.data_path), 32, 16)
    assert data.unshared_pairs(DerainDataset(prepare(folder), 32, 16)) == [i for i in data.pairs if i != 1]
    with pytest.raises(InputError, match=r"every pair shows a background of .*validate on other pairs"):
        train(settings, validation_path=settings.data_path, resume="never")


def test_training_can_begin_with_given_weights(settings: TrainSettings, tmp_path: Path) -> None:
    first = train(settings)
    second = train(settings, init=settings.save_path, save_path=tmp_path / "second", lr=1e-20)
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)
    (tmp_path / "foreign.pth").write_bytes(b"not weights")
    with pytest.raises(InputError, match="foreign"):
        train(settings, init=tmp_path / "foreign.pth", save_path=tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_the_moving_average_forgets_its_beginning() -> None:
    update, average = moving_average(0.99), torch.zeros(1)
    for count in range(2000):
        update([average], [torch.ones(1) if count > 5 else torch.full((1,), 100.0)], count)
    assert average.item() == pytest.approx(1, abs=1e-3)
    fixed = torch.zeros(1)
    update([fixed], [torch.ones(1)], 10**6)
    assert fixed.item() == pytest.approx(0.01)


def test_the_training_psnr_is_of_the_batches(settings: TrainSettings) -> None:
    weights = train(settings, max_steps=1, lr=1e-20)  # too small a step to change a weight
    line = next(line for line in log(settings) if "loss" in line)
    data, batches = DerainDataset(settings.data_path.with_name("pairs.h5"), 32, 16), EpochBatches(18, 2, 0)
    rainy, clean = (torch.stack(side) for side in zip(*(data[i] for i in next(iter(batches))), strict=True))
    network = DARGNet()
    network.load_state_dict(weights)
    with torch.no_grad():
        error = (network(rainy).clamp(0, 1) - clean).pow(2).mean().item()
    assert line["psnr_rgb"] == pytest.approx(-10 * math.log10(error), abs=1e-4)


@pytest.mark.parametrize("slope", [0.25, -0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_faster_prelu_is_a_prelu(slope: float, dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)).to(dtype)
    network = torch.nn.Sequential(torch.nn.PReLU(init=slope))
    results = []
    for faster in (False, True):
        if faster:
            speed_up(network)
        network.zero_grad()
        x = x.detach().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            y = network(x)
        y.backward(torch.linspace(-1, 1, y.numel()).view_as(y).to(y.dtype))
        results.append((y.detach(), x.grad, network[0].weight.grad))
    assert list(network.state_dict()) == ["0.weight"]
    for plain, faster in zip(*results, strict=True):
        assert plain.dtype == faster.dtype
        assert torch.allclose(plain, faster, rtol=1e-5 if dtype == torch.float32 else 1e-2)


def steps(network: DARGNet, half: bool, compiled: bool = False) -> tuple[list[float], State]:
    """The losses of three steps of plain gradient descent on a fixed batch, and the weights after them."""
    generator = torch.Generator().manual_seed(0)
    rainy, clean = (torch.rand(2, 3, 24, 32, generator=generator) for _ in range(2))
    optimizer, similarity, found = torch.optim.SGD(network.parameters(), lr=0.01), SSIM(), []
    if compiled:
        network.compile(dynamic=False)
    for _ in range(3):
        _, dissimilarity, difference = loss_parts(network, similarity, rainy, clean, half)
        optimizer.zero_grad()
        (dissimilarity + difference).backward()
        optimizer.step()
        found.append((dissimilarity + difference).item())
    return found, network.state_dict()


@pytest.mark.parametrize("half", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("prelus", [False, True], ids=["PReLUs as they are", "faster PReLUs"])
def test_the_faster_network_takes_the_same_steps(network: DARGNet, half: bool, prelus: bool) -> None:
    plain, faster = copy.deepcopy(network), copy.deepcopy(network)
    speed_up(faster, prelus)
    classes = {type(module) for module in faster.modules()}
    assert LeanDualAttention in classes
    assert (SingleSlopePReLU in classes) == prelus
    (losses_plain, state_plain), (losses_faster, state_faster) = steps(plain, half), steps(faster, half)
    assert losses_faster == pytest.approx(losses_plain, abs=5e-3 if half else 1e-5)
    assert losses_plain[2] < losses_plain[0] - 1e-3  # so there were steps to compare
    assert list(state_plain) == list(state_faster)
    if not half:
        for name, value in state_plain.items():
            assert torch.allclose(value, state_faster[name], atol=2e-5), name


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "c++")) is None, reason="torch.compile needs a C++ compiler")
def test_the_compiled_network_takes_the_same_steps() -> None:
    """A small one: compiling the whole network takes a minute. Compiled again it repeats itself bit for bit."""
    networks = [DARGNet(channels=8, groups=1) for _ in range(3)]
    for network in networks[1:]:
        network.load_state_dict(networks[0].state_dict())
        speed_up(network, prelus=False)
    losses_plain, _ = steps(networks[0], half=False)
    losses_compiled, state = steps(networks[1], half=False, compiled=True)
    assert losses_compiled == pytest.approx(losses_plain, abs=1e-5)
    torch.compiler.reset()
    assert same(state, steps(networks[2], half=False, compiled=True)[1])


def test_compile_without_a_compiler_is_refused_in_one_line(
    settings: TrainSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, str(settings.save_path / "no-compiler")))
    with pytest.raises(InputError, match=r"--compile: .*no-compiler.*leave --compile out") as told:
        train(settings, compile=True)
    assert "\n" not in str(told.value)


# ---------------------------------------------------------------- several processes


def losses(folder: Path) -> list[float]:
    """The mean losses of the epochs of folder/run."""
    lines = [json.loads(line) for line in (folder / "run/log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """Under torchrun, with an odd batch and an odd rest: the same losses as one process, epoch by epoch."""
    flags = ("--stride", "16", "--batch_size", "5", "--epochs", "3", "--workers", "0", "--no-flip")
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        write_pairs(folder / "pairs", 2)  # 18 patches: batches of 5, 5, 5 and 3
        process = start("train_rain100L.py", folder, *flags, processes=processes)
        assert process.wait(timeout=200) == 0, (folder / "output.txt").read_text()
        found.append(losses(folder))
        weights = load_network(folder / "run/net_latest.pth")
        assert all(torch.isfinite(p).all() for p in weights.parameters())
    assert len(found[0]) == 3
    assert found[1] == pytest.approx(found[0], abs=1e-4)
    assert "2 processes" in (tmp_path / "2/output.txt").read_text()


def test_the_parts_of_a_batch_weigh_what_they_hold() -> None:
    whole = EpochBatches(11, 4, seed=0)
    parts = [EpochBatches(11, 4, seed=0, rank=rank, size=3) for rank in range(3)]
    for step, batch in enumerate(whole):
        given = [list(part)[step] for part in parts]
        weights = [part.weight(step) for part in parts]
        assert sum(weights) == pytest.approx(3)
        assert [w * len(batch) / 3 for w in weights] == pytest.approx([len(batch[rank::3]) for rank in range(3)])
        assert sorted(i for g, w in zip(given, weights, strict=True) if w for i in g) == sorted(batch)
    assert EpochBatches(11, 4, seed=0).weight(2) == 1
