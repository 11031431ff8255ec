"""Training: the published steps, resuming, minutes, validation, processes, bad input."""

import dataclasses
import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ENVIRONMENT, ROOT, Command, one_error, scene, start, write, write_pairs
from torch import Tensor, nn

import train_rain100H
import train_rain100L
from derain.cli import parse_settings
from derain.inference import derain_image, load_weights
from derain.optim import Muon
from derain.pairs import find_pairs, read_pair
from derain.train import RECIPES, Loss, TrainSettings, lr_factor, train
from networks import DARGNet, load_network
from SSIM import SSIM, psnr_y, ssim_y
from utils import InputError, set_seed

published_loss = train_rain100L.loss
BEST = RECIPES["best"] | {"recipe": "best", "stages": ("32:2:0.5", "40:1:0.5"), "precision": "fp32"}
MIXTURE = BEST | {"recombine": 0.5, "without_rain": 0.5}
TINY = ("--patch_size", "32", "--stride", "16", "--batch_size", "2", "--groups", "1")
TINY += ("--device", "cpu", "--max_steps", "3")


@pytest.fixture
def settings(tmp_path: Path) -> TrainSettings:
    """A short training of a small network: 18 patches of 2 pairs, 9 steps an epoch."""
    folders = (str(write_pairs(tmp_path / "pairs", 2)),)
    small = {"patch_size": 32, "stride": 16, "batch_size": 2, "groups": 1, "max_steps": 4}
    return TrainSettings(data_path=folders, save_path=tmp_path / "run", device="cpu", **small)


def run(
    settings: TrainSettings,
    loss: Loss = published_loss,
    build: Callable[[], nn.Module] = lambda: DARGNet(groups=1),
    **changes: object,
) -> dict[str, Tensor]:
    """Train as the scripts do, with some settings changed, and return net_latest.pth."""
    settings = dataclasses.replace(settings, **changes)
    set_seed(settings.seed)
    train(settings, build(), loss)
    return torch.load(settings.save_path / "net_latest.pth", weights_only=True)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def log(folder: Path, key: str) -> list[dict]:
    """Return the lines of log.jsonl that have a key."""
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if key in line]


def state(folder: Path) -> dict:
    return torch.load(folder / "state_latest.pth", weights_only=True)


def interrupting(step: int, loss: Loss = published_loss) -> Loss:
    """Return a loss that acts like Ctrl-C in a step counted from 0."""
    steps = itertools.count()

    def interrupting_loss(derained: Tensor, clean: Tensor) -> dict[str, Tensor]:
        if next(steps) == step:
            raise KeyboardInterrupt
        return loss(derained, clean)

    return interrupting_loss


# ---------------------------------------------------------------- the steps


def step_of(network: nn.Module, optimizer: torch.optim.Optimizer, patches: list) -> None:
    """Take a step on (rainy, clean) patches of (P, P, 3) uint8, with the published loss."""
    pixels = torch.from_numpy(np.stack(patches)).permute(1, 0, 4, 2, 3)
    rainy, clean = pixels / np.float32(255)
    derained = network(rainy)
    loss = 1 - SSIM()(derained, clean) + F.l1_loss(derained, clean)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_the_paper_in_a_plain_loop(settings: TrainSettings) -> None:
    """Torch's Adam, the grid and its mirrored patches in the published order: 12 steps."""
    options = {"flip": True, "batch_size": 8, "milestones": (1, 2), "epochs": 1, "max_steps": 12}
    found = run(settings, **options)
    patches = []
    for number in (1, 2):
        rainy, clean = scene(number)
        for top, left in itertools.product((0, 16, 32), (0, 16, 32)):
            place = slice(top, top + 32), slice(left, left + 32)
            patches.append((rainy[place], clean[place]))
    patches += [(rainy[:, ::-1], clean[:, ::-1]) for rainy, clean in patches]
    set_seed(0)
    network = DARGNet(groups=1).to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    for step in range(12):
        epoch, place = divmod(step, 5)  # 36 patches in batches of 8; the last one has 4
        order = np.random.RandomState([0, epoch]).permutation(36)
        optimizer.param_groups[0]["lr"] = 1e-3 * 0.2**epoch
        step_of(network, optimizer, [patches[i] for i in order[8 * place : 8 * place + 8]])
    assert same(found, network.state_dict())


def test_the_best_recipe_in_a_plain_loop(settings: TrainSettings) -> None:
    """Muon from the identity, growing crops, mirrored at random: 12 steps."""
    found = run(settings, **BEST | {"warmup": 4}, max_steps=12)
    set_seed(0)
    network = DARGNet(groups=1).to(memory_format=torch.channels_last)
    network.start_as_identity()
    optimizer = Muon(network, 0.01, 1e-3, weight_decay=0.02)
    for step in range(12):
        size, count = (32, 2) if step < 6 else (40, 1)
        random = np.random.RandomState([0, step])
        patches = []
        for _ in range(count):
            pair = scene(1 + random.randint(2))
            top, left = random.randint(64 - size + 1), random.randint(72 - size + 1)
            left_right, upside_down = random.randint(2, size=2)
            random.rand()  # would choose another pair's rain
            crops = [image[top : top + size, left : left + size] for image in pair]
            patches.append([crop[:: (-1) ** upside_down, :: (-1) ** left_right] for crop in crops])
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * min(1, (step + 1) / 4) * (1 - step / 12)
        step_of(network, optimizer, patches)
    assert same(found, network.state_dict())


@pytest.mark.parametrize("script", [train_rain100H, train_rain100L])
def test_recipes(script: ModuleType) -> None:
    """The defaults are as published. A recipe changes its settings; the command line wins."""
    paper = dataclasses.asdict(script.SETTINGS)
    published = {"batch_size": 8, "patch_size": 100, "stride": 80, "lr": 1e-3, "epochs": 100}
    published |= {"milestones": (40, 60, 80), "schedule": "multistep", "optimizer": "adam"}
    published |= {"start": "random", "stages": (), "precision": "fp32", "init": None}
    heavy = script is train_rain100H
    assert paper.items() >= (published | {"flip": not heavy, "strict": heavy}).items()
    own = parse_settings(script.SETTINGS, "", ["--no-augment", "--recipe", "best"])
    changed = RECIPES["best"] | {"recipe": "best", "augment": False}
    assert dataclasses.asdict(own) == paper | changed


def test_the_cosine_schedule() -> None:
    settings = TrainSettings(schedule="cosine", warmup=10)
    quarter = 0.5 + math.sqrt(0.5) / 2
    for step, progress, factor in ((0, 0, 0.1), (9, 0, 1), (99, 0.25, quarter), (99, 1, 0)):
        assert lr_factor(settings, step, 0, progress) == pytest.approx(factor)


# ---------------------------------------------------------------- resuming


@pytest.fixture
def saved_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("derain.train.SAVE_SECONDS", 0)


@pytest.mark.usefixtures("saved_in_each_step")
@pytest.mark.parametrize("recipe", ["paper", "mixture"])
def test_an_interrupted_run_resumes_bit_for_bit(settings: TrainSettings, recipe: str) -> None:
    folder, options = settings.save_path, {"max_steps": 22}
    if recipe == "mixture":
        others = write_pairs(folder.parent / "others", 2, first=5)
        options |= MIXTURE | {"data_path": (*settings.data_path, f"{others}=0.5")}
    whole = run(settings, save_path=folder / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        run(settings, interrupting(10), **options)
    assert state(folder)["step"] == 10
    assert same(run(settings, **options), whole)
    assert same(run(settings, **options | {"recipe": "", "validate_every": 3}), whole)
    with pytest.raises(InputError, match=r"lr 0\.001 -> 0\.01.*seed 0 -> 7"):
        run(settings, **options, lr=0.01, seed=7)
    write_pairs(Path(settings.data_path[0]), 1, first=2, height=80)
    with pytest.raises(InputError, match="images"):  # as many pairs, but others
        run(settings, **options)
    assert state(folder)["step"] == 22
    assert not same(run(settings, **options, seed=7, save_path=folder / "other"), whole)


def test_tensorboard_shows_each_step_once(settings: TrainSettings) -> None:
    """Also the steps of a run that was killed and took them again."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for _ in range(2):
        run(settings, max_steps=20)
        (settings.save_path / "state_latest.pth").unlink()
        with pytest.raises(InputError, match="has weights"):
            run(settings, max_steps=20)
        (settings.save_path / "net_latest.pth").unlink()
    events = reader.EventAccumulator(str(settings.save_path / "tensorboard")).Reload()
    for name in ("train/loss", "train/ssim_loss", "train/l1_loss", "lr"):
        assert [event.step for event in events.Scalars(name)] == [9, 18, 20]


# ---------------------------------------------------------------- minutes, validation


@pytest.mark.usefixtures("saved_in_each_step")
def test_minutes(settings: TrainSettings) -> None:
    """The learning rate has fallen to 0 when time is up; a resumed run has the minutes left."""
    options = BEST | {"warmup": 1, "max_steps": None, "minutes": 1.0}
    with pytest.raises(KeyboardInterrupt):
        run(settings, interrupting(6), **options)
    saved = state(settings.save_path)
    assert 0 < saved["minutes"] < 1
    torch.save(saved | {"minutes": 0.99999}, settings.save_path / "state_latest.pth")
    run(settings, **options)
    last = log(settings.save_path, "train")[-1]
    assert last["step"] == 7
    assert 1 <= last["minutes"] < 1.5
    assert last["lr"] < 0.001 * 0.01


def marked_pairs(folder: Path, *numbers: int) -> str:
    """Write pairs whose clean images have their number as blue; return the folder."""
    for number in numbers:
        rainy, clean = scene(number)
        rainy[..., 2] = clean[..., 2] = number
        write(folder / f"rain-{number}.png", rainy)
        write(folder / f"norain-{number}.png", clean)
    return str(folder)


@pytest.mark.parametrize("how", ["validation", "validation_path"])
def test_validation(settings: TrainSettings, tmp_path: Path, how: str) -> None:
    """Scores of each folder and their mean, on backgrounds that training sees in no folder."""
    folders = [marked_pairs(tmp_path / "a", 1, 2, 3), marked_pairs(tmp_path / "b", 1, 2, 3, 4)]
    value, names = 1, ("a", "b")  # seed 3 holds out 2 of a, 4 of b
    if how == "validation_path":
        value = Path(marked_pairs(tmp_path / "c", 2)), Path(marked_pairs(tmp_path / "d", 4, 7))
        names = ("c", "d")
    seen = set()

    def loss(derained: Tensor, clean: Tensor) -> dict[str, Tensor]:
        seen.update((clean[:, 2].mean(dim=(1, 2)) * 255).round().int().tolist())
        return published_loss(derained, clean)

    options = BEST | {"data_path": folders, how: value, "max_steps": 40, "validate_every": 30}
    run(settings, loss, **options, seed=3)
    assert seen == {1, 3}
    lines = log(settings.save_path, "validation")
    assert [line["step"] for line in lines] == [30, 40]
    first, second, mean = (lines[-1]["validation"][name] for name in (*names, "mean"))
    assert mean["psnr_y"] == pytest.approx((first["psnr_y"] + second["psnr_y"]) / 2)
    if how == "validation_path":
        rainy, clean = read_pair(*find_pairs(tmp_path / "c"))
        derained = derain_image(load_network(settings.save_path / "net_latest.pth"), rainy)
        assert first["psnr_y"] == pytest.approx(psnr_y(derained, clean), 1e-4)
        assert first["ssim_y"] == pytest.approx(ssim_y(derained, clean), 1e-4)


# ---------------------------------------------------------------- own networks and losses


def own_network() -> nn.Module:
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.Conv2d(32, 3, 3, padding=1)
    return nn.Sequential(*layers)


def own_loss(derained: Tensor, clean: Tensor) -> dict[str, Tensor]:
    assert derained.dtype == clean.dtype == torch.float32
    return {"squares": F.mse_loss(derained, clean), "bright": derained.clamp(min=1).mean() - 1}


@pytest.mark.usefixtures("saved_in_each_step")
@pytest.mark.parametrize("options", [{"precision": "bf16"}, BEST], ids=["paper", "best"])
def test_a_network_and_a_loss_of_ones_own(settings: TrainSettings, options: dict) -> None:
    """They train, validate, resume and test; the loss's parts are in the log."""
    folder, options = settings.save_path, options | {"validation": 1, "max_steps": 12}
    whole = run(settings, own_loss, own_network, **options, save_path=folder / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, interrupting(5, own_loss), own_network, **options)
    assert same(run(settings, own_loss, own_network, **options), whole)
    fp32 = options | {"precision": "fp32", "save_path": folder / "fp32"}
    exact = run(settings, own_loss, own_network, **fp32)
    assert same(exact, whole) == (options["precision"] == "fp32")
    means = log(folder, "train")[-1]["train"]
    assert means.keys() == {"loss", "squares", "bright"}
    assert means["loss"] == pytest.approx(means["squares"] + means["bright"], abs=1e-6)
    tested = load_weights(folder, lambda path: load_network(path, own_network()))
    assert derain_image(tested, scene(1)[0]).shape == (64, 72, 3)
    with pytest.raises(InputError, match="another network"):
        run(settings, **options)
    other = run(settings, own_loss, own_network, init=folder, save_path=folder / "2", lr=1e-20)
    assert torch.allclose(other["0.weight"], whole["0.weight"])  # it started from these weights


def test_what_a_loss_and_a_network_must_return(settings: TrainSettings) -> None:
    with pytest.raises(InputError, match="loss: must return"):
        run(settings, F.l1_loss, own_network)
    shrinking = nn.Conv2d(3, 3, 3)
    with pytest.raises(InputError, match="network must return"):
        run(settings, own_loss, lambda: shrinking)
    with pytest.raises(InputError, match="network must return"):
        derain_image(shrinking, scene(1)[0])


# ---------------------------------------------------------------- real commands


@pytest.mark.slow
@pytest.mark.parametrize("script", ["train_rain100H.py", "train_rain100L.py"])
def test_each_train_script_trains(command: Command, tmp_path: Path, script: str) -> None:
    write_pairs(tmp_path / "pairs", 4)
    flags = (*TINY, "--precision", "auto", "--muon_lr", "0.5")
    result = command(script, "--data_path", "pairs", "--save_path", "run", *flags)
    assert (result.returncode, result.stdout.count("has no effect")) == (0, 1), result.stderr
    assert "training on 4 pairs; weights go to run\n" in result.stdout
    load_network(tmp_path / "run/net_latest.pth", DARGNet(groups=1))
    (begin,), (epoch,) = (log(tmp_path / "run", key) for key in ("begin", "train"))
    assert begin["settings"]["precision"] != "auto" and "torch" in begin["environment"]
    assert (epoch["step"], epoch["lr"]) == (3, 1e-3)
    assert epoch["train"].keys() == {"loss", "ssim_loss", "l1_loss"}
    assert "step 3, loss" in result.stderr  # the progress bar


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["paper", "best"])
def test_two_processes_train_as_one(tmp_path: Path, recipe: str) -> None:
    """Under torchrun, with batches of 5, 5, 5 and 1 patch, or of 3 crops: the same weights."""
    flags = ["--stride", "40", "--batch_size", "5", "--max_steps", "12", "--groups", "1", "--flip"]
    if recipe == "best":
        flags += ["--recipe", "best", "--stages", "32:3:0.6", "40:1:0.4", "--precision", "fp32"]
    weights = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        write_pairs(folder / "pairs", 4)
        process = start("train_rain100L.py", folder, *flags, processes=processes)
        assert process.wait(timeout=200) == 0, (folder / "output.txt").read_text()
        weights.append(torch.load(folder / "run/net_latest.pth", weights_only=True))
    for name, value in weights[0].items():
        assert torch.allclose(weights[1][name], value, atol=1e-5), name


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "culprit"),
    [
        ("--data_path pairs pairs", "--stages"),
        ("--data_path pairs pairs --clean_dir pairs --stages 32:2:1", "--clean_dir"),
        ("--validation_path a/v b/v", "v, v"),
        ("--validation_path mean", "mean, mean"),
        ("--validation 99", "pairs.h5"),
        ("--epochs 0", "--epochs"),
        ("--warmup -1", "--warmup"),
        ("--recombine 0.5", "--recombine"),
        ("--recombine 65 --stages 32:2:1", "--recombine"),
        ("--stages 65:2:1", "rain-001.png"),
        ("--lr 1e30", "step 2"),  # where the loss is not finite
    ],
)
def test_bad_settings(inline: Command, tmp_path: Path, flags: str, culprit: str) -> None:
    for name in ("pairs", "a/v", "b/v", "mean"):
        write_pairs(tmp_path / name, 2)
    common = ("--data_path", "pairs", "--save_path", "run", *TINY)
    one_error(inline("train_rain100L.py", *common, *flags.split()), culprit)
    assert not (tmp_path / "run/net_latest.pth").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("saved_in_each_step")
@pytest.mark.parametrize(
    ("file", "kilobytes"),
    [("run/log.jsonl", 1), ("run/state_latest.pth", 500), ("pairs.h5", 20)],
)
def test_a_full_disk(settings: TrainSettings, tmp_path: Path, file: str, kilobytes: int) -> None:
    """One line names the file that can't be written, and the old one stays."""
    with pytest.raises(KeyboardInterrupt):
        run(settings, interrupting(3), max_steps=20)
    before = (tmp_path / file).read_bytes()
    if file == "pairs.h5":
        (tmp_path / "pairs/norain-001.png").touch()  # so that the pairs are packed again
    flags = ("--data_path", *settings.data_path, "--save_path", str(settings.save_path), *TINY)
    script = (str(ROOT / "train_rain100L.py"), *flags, "--no-flip", "--max_steps", "20")
    limited = ("bash", "-c", f'ulimit -f {kilobytes}; exec "$@"', "bash", sys.executable, *script)
    environment = os.environ | ENVIRONMENT
    result = subprocess.run(limited, capture_output=True, text=True, timeout=100, env=environment)
    one_error(result, tmp_path / file)
    assert (tmp_path / file).read_bytes() == before
