"""Training: `train` reads top to bottom; the loss, the learning rate and the update are in `Training.take_step`.

Everything random is a function of the seed and the step, so an interrupted run resumes bit for bit.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import statistics
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from derain.checkpoint import RunFolder
from derain.cli import check_folder, interrupts_noted, setting
from derain.distributed import Processes
from derain.evaluation import DTYPES, derain_image, load_weights, weights_file
from derain.inference import fold
from derain.optim import Muon, learning_rate_factor, moving_average
from derain.training import speed_up
from DerainDataset import DerainDataset, GridPatches, RandomPatches, Stage, prepare, split_by_background
from SSIM import SSIM, psnr_y, ssim_y
from utils import InputError, choose_precision, environment, keep_freed_memory, to_tensor

# What --recipe changes. logs/README.md has the gain of each setting on held-out backgrounds.
RECIPES = {
    "paper": {},
    "best": {
        "optimizer": "muon",
        "start": "identity",
        "stages": ("64:4:0.5", "100:2:0.33", "160:1:0.17"),
        "schedule": "linear",
        "warmup": 100,
        "augment": True,
        "precision": "auto",
        "epochs": 32,
    },
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The published recipe. A train script overrides what its data set needs, the command line overrides that."""

    recipe: str = setting("paper", "paper: as published; best: for a CPU, see logs/README.md", RECIPES)
    data_path: Path = setting(Path(), "folder of training pairs")
    save_path: Path = setting(Path(), "folder for weights, training state and logs")
    channels: int = setting(32, "width of the network's hidden layers")
    groups: int = setting(5, "number of residual groups")
    epochs: int = setting(100, "passes over the patches; with --stages, units of 1,000 steps")
    minutes: float | None = setting(None, "train for this long: sets the number of steps after the first minute")
    max_steps: int | None = setting(None, "stop after this many steps in total, even within an epoch")
    batch_size: int = setting(8, "patches per step")
    patch_size: int = setting(100, "side of a training patch in pixels")
    stride: int = setting(80, "distance between patches in pixels")
    stages: tuple[str, ...] = setting((), "random crops in stages of growing size: SIDE:BATCH:SHARE of the run, ...")
    flip: bool = setting(False, "double the patches by left-right mirror images")
    augment: bool = setting(False, "mirror every patch left-right and upside down at random")
    recombine: float = setting(0.0, "with --stages: share of patches that get the rain of another pair")
    strict: bool = setting(False, "of RainTrainH use only the 1,254 images without test backgrounds")
    optimizer: str = setting("adam", "adam, or muon for the inner kernels and adam for the rest", ("adam", "muon"))
    lr: float = setting(1e-3, "highest learning rate of Adam")
    muon_lr: float = setting(0.01, "highest learning rate of Muon")
    weight_decay: float = setting(0.1, "decoupled weight decay of Muon's kernels")
    clip: float = setting(2.5, "with muon: clip the gradient at this multiple of its running norm; 0: never")
    schedule: str = setting(
        "multistep", "how the learning rate falls: at milestones, or to zero", ("multistep", "cosine", "linear")
    )
    milestones: tuple[float, ...] = setting((40, 60, 80), "epochs after which the learning rate falls to a fifth")
    warmup: int = setting(200, "steps of linear warm-up (cosine and linear)")
    ema: float = setting(0.0, "decay of the averaged weights that are saved; 0: save the last ones")
    start: str = setting("random", "initial weights: as built, or the network as an identity", ("random", "identity"))
    init: Path | None = setting(None, "weights to start from: a .pth file, or its folder")
    validation: int = setting(0, "pairs to hold out at least, by whole backgrounds; 0: train on all, as published")
    validation_path: Path | None = setting(None, "folder of pairs to validate on; their backgrounds are not trained on")
    validate_every: int = setting(0, "steps between validations; 0: at each epoch's end")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "fp32", "arithmetic of the network; auto: bf16 where it is native. The loss is fp32", ("auto", "fp32", "bf16")
    )
    compile: bool = setting(False, "speed up steps with torch.compile; takes a minute and a C++ compiler")
    deterministic: bool = setting(False, "use deterministic GPU kernels (slower); CPU kernels always are")
    seed: int = setting(0, "seed of everything random")
    resume: str = setting(
        "auto",
        "auto: continue save_path's training state, if any; never: refuse to; force: with changed settings",
        ("auto", "never", "force"),
    )
    save_minutes: float = setting(5.0, "minutes between training states, in addition to each epoch's end")

    rain: str = "heavy"  # the kind of synthetic rain nearest to the data set, for the message when it is missing

    # These may differ between the parts of an interrupted run; with a schedule that ends at 0 its length may not.
    FREE = ("save_path", "validate_every", "recipe", "device", "resume", "save_minutes")
    LENGTH = ("epochs", "max_steps", "minutes")

    def parsed_stages(self) -> list[Stage]:
        """Return the stages. Raises InputError if one is not SIDE:BATCH:SHARE."""
        try:
            stages = [Stage(int(a), int(b), float(c)) for a, b, c in (s.split(":") for s in self.stages)]
            if all(min(stage) > 0 for stage in stages):
                return stages
        except ValueError:
            pass
        raise InputError(f"--stages {' '.join(self.stages)}: each must be SIDE:BATCH:SHARE, such as 64:4:0.5")


def check_settings(settings: TrainSettings) -> None:
    """Raise InputError for a number that makes no sense, before anything long begins."""
    above_zero = ("epochs", "batch_size", "lr", "muon_lr", "patch_size", "stride", "max_steps", "minutes")
    for name in (*above_zero, "channels", "groups"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:  # nan is not, either
            raise InputError(f"--{name} {value}: must be a number above 0")
    for name in ("validation", "validate_every", "warmup", "save_minutes", "weight_decay", "clip"):
        if not getattr(settings, name) >= 0:
            raise InputError(f"--{name} {getattr(settings, name)}: must not be below 0")
    for name in ("ema", "recombine"):
        if not 0 <= getattr(settings, name) <= 1 or settings.ema == 1:
            raise InputError(f"--{name} {getattr(settings, name)}: must be between 0 and 1")
    if settings.validation and settings.validation_path:
        raise InputError(f"--validation {settings.validation} and --validation_path: give only one of them")
    if settings.recombine and not settings.stages:
        raise InputError(f"--recombine {settings.recombine}: needs random crops; add --recipe best or --stages")
    if settings.minutes and settings.max_steps:
        raise InputError(f"--minutes {settings.minutes:g} and --max_steps {settings.max_steps}: give only one of them")
    settings.parsed_stages()


def train(
    settings: TrainSettings,
    network: nn.Module,
    dataset: type[DerainDataset] = DerainDataset,
    ssim: nn.Module | None = None,
) -> None:
    """Train a network: data, network, optimizer, and the loop over steps.

    network: (N, 3, H, W) RGB in [0, 1] -> the same shape; training starts from its weights. dataset: reads the
    packed file. ssim: the loss's SSIM of two batches, 1 for equal ones.

    Writes to settings.save_path: net_latest.pth and net_epochN.pth (bare state dicts), state_latest.pth (to
    resume from), log.jsonl (settings and environment, then one line per epoch and per validation) and
    TensorBoard's files.

    Raises InputError for invalid settings, for anything wrong with the images or the run's folder, and for
    a loss that is not finite.
    """
    check_settings(settings)
    check_folder(settings.save_path)
    keep_freed_memory()
    processes = Processes()
    device = processes.device(settings.device)
    with processes.connected(device):
        data, validation = load_data(settings, dataset, processes)
        patches = order_of_patches(settings, data)
        training = Training(settings, prepare_network(settings, network, device), patches, ssim or SSIM(), processes)
        folder = open_folder(settings, training, processes)
        if training.step >= training.last_step:
            processes.say(f"{settings.save_path}: already trained for {training.step} steps; raise --epochs to go on")
            return
        folder.begin(training.step, environment(device))
        processes.say(f"{len(data.pairs)} pairs, step {training.step}, {device} {training.precision}")
        run_steps(settings, training, data, validation, folder, processes)


def load_data(
    settings: TrainSettings, dataset: type[DerainDataset], processes: Processes
) -> tuple[DerainDataset, DerainDataset | None]:
    """Pack and read the pairs to train on, and those to validate on, if any."""
    if not settings.data_path.is_dir():
        synthetic = f"datasets/train/synthetic_{settings.rain}"
        raise InputError(
            f"{settings.data_path}: no such folder; see datasets/README.md for where to get the data sets, or make "
            f"synthetic rain (python -m derain.data.synthesize --rain {settings.rain} --out {synthetic}) and add "
            f"--data_path {synthetic}"
        )
    packed = processes.main_process_first(lambda: prepare(settings.data_path, strict=settings.strict))
    size = settings.parsed_stages()[0].size if settings.stages else settings.patch_size

    def read(pairs: Sequence[int] | None = None) -> DerainDataset:
        return dataset(packed, size, settings.stride, settings.flip, pairs)

    data = read()
    if settings.validation:
        chosen, held_out = split_by_background(data.backgrounds, settings.validation, settings.seed)
        return read(chosen), read(held_out)
    if settings.validation_path:
        path = settings.validation_path
        validation = dataset(processes.main_process_first(lambda: prepare(path)), 1, 2**31)
        chosen = data.unshared_pairs(validation)
        if left_out := len(data.pairs) - len(chosen):
            processes.say(f"{left_out} of {len(data.pairs)} pairs left out: {path} shows their backgrounds")
        return read(chosen), validation
    return data, None


def order_of_patches(settings: TrainSettings, data: DerainDataset) -> GridPatches | RandomPatches:
    """Return which patches each step takes."""
    if settings.stages:
        return RandomPatches(data, settings.parsed_stages(), settings.seed, settings.augment, settings.recombine)
    return GridPatches(data, settings.batch_size, settings.seed, settings.augment)


def prepare_network(settings: TrainSettings, network: nn.Module, device: torch.device) -> nn.Module:
    """Give the network its initial weights, and move it to the device in its fastest form."""
    if settings.init is not None:
        network.load_state_dict(load_weights(weights_file(settings.init)).state_dict())
    elif settings.start == "identity" and hasattr(network, "start_as_identity"):
        network.start_as_identity()
    elif settings.start == "identity":
        print(f"{type(network).__name__} has no start_as_identity(): training starts from its weights as built")
    network = network.to(device, memory_format=torch.channels_last).train()
    # Elsewhere than on the CPU, reading the PReLUs' slopes would wait for all work before.
    speed_up(network, prelus=device.type == "cpu" and not settings.compile)
    return network


def open_folder(settings: TrainSettings, training: Training, processes: Processes) -> RunFolder:
    """Open the run's folder, and continue its training state if there is one."""
    free = {*settings.FREE, *(settings.LENGTH if settings.schedule == "multistep" else ())}
    folder = RunFolder(settings.save_path, dataclasses.asdict(settings), free, processes.is_main)
    state = processes.main_process_first(lambda: folder.restore(settings.resume))
    if state is not None:
        training.load_state_dict(state)
        processes.say(f"resuming {folder.state_file} at step {training.step}")
    return folder


def run_steps(
    settings: TrainSettings,
    training: Training,
    data: DerainDataset,
    validation: DerainDataset | None,
    folder: RunFolder,
    processes: Processes,
) -> None:
    """Take steps until the last one or an interrupt; log, validate and save on the way."""
    per_epoch = training.patches.steps_per_epoch
    validate_every = settings.validate_every or per_epoch
    meter, guard, saved = Meter(training.step), DivergenceGuard(training), time.monotonic()
    with interrupts_noted() as interrupted:
        while training.step < training.last_step:
            values, stop = training.take_step(data, interrupted())
            if guard.diverged(values["loss"]):
                guard.go_back(folder)
                continue
            training.fix_length(meter)
            meter.add(values)
            step, last = training.step, training.step == training.last_step
            epoch, epoch_is_over = math.ceil(step / per_epoch), step % per_epoch == 0
            if meter.is_due() or last:
                processes.say(meter.line(training, settings.epochs))
                folder.show(step, {f"batch/{k}": v for k, v in values.items()} | {"lr": training.rate})
            if validation is not None and processes.is_main and (step % validate_every == 0 or last):
                scores, images = validate(training.network_to_save(), validation, training.precision)
                folder.log({"validation": len(validation.pairs), "step": step, "minutes": meter.minutes(), **scores})
                folder.show(step, {f"validation/{k}": v for k, v in scores.items()}, "rainy_derained_clean", images)
                processes.say(f"validation at step {step}: {scores['psnr_y']:.3f} dB (Y), {scores['ssim_y']:.4f}")
            if epoch_is_over or last or stop:
                folder.log({"epoch": epoch, "step": step, "lr": training.rate, **meter.means()})
                folder.show(step, {f"train/{k}": v for k, v in meter.means().items()})
                meter.restart()
            if epoch_is_over or last or stop or time.monotonic() - saved > 60 * settings.save_minutes:
                folder.save(training.state_dict(), epoch if epoch_is_over else None)
                saved = time.monotonic()
            if stop and not last:
                processes.say(f"interrupted at step {step}; the same command resumes here")
                return
    folder.close()
    processes.say(f"done after {meter.minutes():.1f} minutes: {settings.save_path / 'net_latest.pth'}")


class Training:
    """Network, optimizer and everything else that changes with the steps."""

    def __init__(
        self,
        settings: TrainSettings,
        network: nn.Module,
        patches: GridPatches | RandomPatches,
        ssim: nn.Module,
        processes: Processes,
    ) -> None:
        self.settings, self.network, self.patches, self.processes = settings, network, patches, processes
        self.device = next(network.parameters()).device
        self.precision = choose_precision(settings.precision, self.device)
        self.ssim = ssim.to(self.device)
        self.average = AveragedModel(network, multi_avg_fn=moving_average(settings.ema)) if settings.ema else None
        if settings.optimizer == "muon":
            self.optimizer: torch.optim.Optimizer = Muon(
                network, settings.muon_lr, settings.lr, weight_decay=settings.weight_decay, clip=settings.clip
            )
        else:
            self.optimizer = torch.optim.Adam(network.parameters(), settings.lr)
            for group in self.optimizer.param_groups:
                group["initial_lr"] = settings.lr
        if settings.compile:  # each batch size by itself, so that results don't depend on which came first
            network.compile(dynamic=False)
        self.parallel = processes.wrap(network)
        self.step, self.lr_scale, self.rollbacks = 0, 1.0, 0
        steps = settings.epochs * patches.steps_per_epoch
        self.last_step = math.inf if settings.minutes else min(steps, settings.max_steps or math.inf)

    def take_step(self, data: DerainDataset, stop: bool = False) -> tuple[dict[str, float], bool]:
        """Train on one batch.

        Returns the loss, its parts and the training PSNR, and whether any process wants to stop.
        Raises InputError if the loss is not finite.
        """
        batch = self.patches.at(self.step, self.progress)
        part, weight = self.processes.share(batch)
        rainy, clean = (x.to(self.device) for x in data.batch(part))
        self.set_learning_rate()

        derained, ssim_loss, l1_loss = self.loss_parts(self.parallel, rainy, clean)
        loss = ssim_loss + l1_loss
        self.optimizer.zero_grad(set_to_none=True)
        (weight * loss).backward()
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.step += 1

        mse = F.mse_loss(derained.detach().clamp(0, 1), clean)  # of this pass: another one would cost a quarter
        values = torch.stack([loss, l1_loss, ssim_loss, mse]).detach() * weight / self.processes.size
        *values, stops = self.processes.sum(torch.cat([values.cpu(), torch.tensor([float(stop)])])).tolist()
        if not math.isfinite(values[0]):
            names = ", ".join(sorted({data.names[patch.pair] for patch in batch}))
            raise InputError(
                f"step {self.step}: the loss is {values[0]} on patches of {names}; {self.settings.save_path} keeps "
                f"the last training state. Try a lower learning rate, or --precision fp32"
            )
        psnr = -10 * math.log10(max(values.pop(), 1e-10))
        return dict(zip(("loss", "l1", "ssim_loss", "psnr_rgb"), (*values, psnr), strict=True)), bool(stops)

    def loss_parts(self, network: nn.Module, rainy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derained batch and the loss's two parts, 1 - SSIM and L1."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            derained = network(rainy)
        derained = derained.float()
        return derained, 1 - self.ssim(derained, clean), F.l1_loss(derained, clean)

    @property
    def progress(self) -> float:
        """Share of the run's steps that are done; 0 while its length is not known."""
        return self.step / self.last_step

    @property
    def rate(self) -> float:
        """The present learning rate of the first group of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self) -> None:
        settings, per_epoch = self.settings, self.patches.steps_per_epoch
        if settings.minutes and math.isfinite(self.last_step):  # milestones keep their share of the run
            per_epoch = self.last_step / settings.epochs
        milestones = [milestone * per_epoch for milestone in settings.milestones]
        factor = learning_rate_factor(settings.schedule, self.step, self.last_step, settings.warmup, milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor * self.lr_scale

    def fix_length(self, meter: Meter) -> None:
        """With --minutes, set the number of steps once the pace of the first minute is known."""
        minutes = self.settings.minutes
        if minutes is None or math.isfinite(self.last_step):
            return
        enough = meter.steps > 5 and 60 * meter.minutes() >= min(60, 6 * minutes)
        if not self.processes.sum(torch.tensor([float(enough)])).item():
            return
        costs = self.stage_costs()
        seconds = meter.seconds_per_step() * costs
        wanted = (60 * minutes - meter.startup) / seconds
        steps = self.processes.sum(torch.tensor([wanted], dtype=torch.float64)) / self.processes.size
        self.last_step = max(self.step + 1, round(steps.item()))
        self.processes.say(
            f"{meter.seconds_per_step():.3f} s a step at first, {seconds:.3f} s on average: "
            f"{self.last_step} steps in {minutes:g} minutes"
        )

    def stage_costs(self) -> float:
        """Return the mean time of a step over the run, in units of a step of its first stage."""
        if not isinstance(self.patches, RandomPatches):
            return 1.0
        network, stages = copy.deepcopy(self.network), self.patches.stages
        times = []
        for stage in stages:
            batch = torch.rand(stage.batch_size, 3, stage.size, stage.size, device=self.device)
            batch = batch.to(memory_format=torch.channels_last)
            elapsed = []
            for _ in range(4):
                began = time.perf_counter()
                _, ssim_loss, l1_loss = self.loss_parts(network, batch, batch)
                (ssim_loss + l1_loss).backward()
                float(l1_loss)  # waits for a GPU
                elapsed.append(time.perf_counter() - began)
            times.append(min(elapsed))
        total = sum(stage.share for stage in stages)
        return sum(s.share / total * t for s, t in zip(stages, times, strict=True)) / times[0]

    def network_to_save(self) -> nn.Module:
        """Return the averaged network if there is one, else the trained one."""
        return self.network if self.average is None else self.average.module

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs, and under `state_dict` the weights to use."""
        return {
            "state_dict": self.network_to_save().state_dict(),
            "network": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "last_step": self.last_step,
            "lr_scale": self.lr_scale,
            "rollbacks": self.rollbacks,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what state_dict returned."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        self.step, self.lr_scale, self.rollbacks = (state[k] for k in ("step", "lr_scale", "rollbacks"))
        if self.settings.minutes:
            self.last_step = state["last_step"]


class Meter:
    """Means of the values since the last epoch, the pace, and when the next line of progress is due."""

    def __init__(self, step: int) -> None:
        self.began, self.steps, self.shown, self.startup = time.monotonic(), 0, 0.0, 0.0
        self.recent: deque[float] = deque(maxlen=500)  # times at which steps ended
        self.restart()

    def restart(self) -> None:
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, values: dict[str, float]) -> None:
        self.recent.append(time.monotonic())
        self.startup = self.startup or time.monotonic() - self.began  # until the end of the first step
        self.steps += 1
        self.count += 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}

    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def seconds_per_step(self) -> float:
        if len(self.recent) < 2:
            return math.nan
        return (self.recent[-1] - self.recent[0]) / (len(self.recent) - 1)

    def is_due(self) -> bool:
        if time.monotonic() - self.shown < 10:
            return False
        self.shown = time.monotonic()
        return True

    def line(self, training: Training, epochs: int) -> str:
        means, last = self.means(), training.last_step
        left = "?" if math.isinf(last) else f"{(last - training.step) * self.seconds_per_step() / 60:.0f}"
        total = "?" if math.isinf(last) else last
        return (
            f"step {training.step}/{total} loss {means['loss']:.4f} psnr {means['psnr_rgb']:.2f} dB "
            f"lr {training.rate:.1e} {self.seconds_per_step():.3f} s a step, {left} min left"
        )


class DivergenceGuard:
    """Notices a diverging run, and returns it to its last good state at half the learning rate.

    A run has diverged when the median loss of its last 50 steps is above four times that of the last 500. States
    are kept in memory every 500 steps; the one before the last is good, because divergence shows sooner.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.losses: deque[float] = deque(maxlen=500)
        self.states = [copy.deepcopy(training.state_dict())]

    def diverged(self, loss: float) -> bool:
        self.losses.append(loss)
        if self.training.step % 500 == 0:
            self.states = [self.states[-1], copy.deepcopy(self.training.state_dict())]
        recent = list(self.losses)[-50:]
        return len(self.losses) >= 200 and statistics.median(recent) > 4 * statistics.median(self.losses)

    def go_back(self, folder: RunFolder) -> None:
        """Restore the last good state. Raises InputError at the fourth time."""
        training, found_at = self.training, self.training.step
        rollbacks, scale = training.rollbacks + 1, training.lr_scale / 2
        if rollbacks > 3:
            raise InputError(
                f"step {found_at}: training diverged four times, at ever lower learning rates; {folder.folder} keeps "
                "the last training state. Train with lower --lr and --muon_lr, or higher --weight_decay"
            )
        last_step = training.last_step
        training.load_state_dict(copy.deepcopy(self.states[0]))
        training.rollbacks, training.lr_scale, training.last_step = rollbacks, scale, last_step
        self.losses.clear()
        self.states = self.states[:1]
        training.processes.say(
            f"step {found_at}: diverged; back to step {training.step} at {scale:g} of the learning rate"
        )
        folder.log({"diverged": found_at, "back_to": training.step, "lr_scale": scale})


def validate(network: nn.Module, data: DerainDataset, precision: str) -> tuple[dict[str, float], list[Tensor]]:
    """Return mean psnr_y and ssim_y (PReNet protocol) over whole pairs, and crops of four of them to look at.

    The crops are rainy, derained and clean ones, each (N, 3, H, W) in [0, 1], at most 128 pixels high and wide.
    """
    network, scores, crops = fold(network, DTYPES[precision]), [], []
    for pair in data.pairs:
        rainy, clean = data.whole_pair(pair)
        derained = derain_image(network, rainy)
        scores.append((psnr_y(derained, clean), ssim_y(derained, clean)))
        if len(crops) < 4:
            crops.append(torch.cat([to_tensor(image) for image in (rainy, derained, clean)]))
    side = min(128, *(length for images in crops for length in images.shape[2:]))
    shown = torch.stack([images[..., :side, :side] for images in crops], dim=1)
    return dict(zip(("psnr_y", "ssim_y"), np.mean(scores, axis=0).tolist(), strict=True)), list(shown)
