"""Training, read top to bottom: settings, then `train` and the functions it calls.

The loss is in `Training.loss_parts`, the learning rate in `Training.set_learning_rate`, the update of the weights in
`Training.take_step` (derain/steps.py).
Everything random is a function of the seed and the step, so an interrupted run resumes bit for bit.
"""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from derain.checkpoint import RunFolder
from derain.cli import Progress, check_folder, interrupts_noted, setting, text_to_paths
from derain.distributed import Processes
from derain.inference import DTYPES, derain_image, load_weights
from derain.optimized import optimize
from derain.patches import GridPatches, RandomPatches, Stage
from derain.steps import DivergenceGuard, Meter, Training
from DerainDataset import DerainDataset, prepare, split_by_background
from networks import load_network
from SSIM import SSIM, psnr_y, ssim_y
from utils import InputError, environment, keep_freed_memory, to_tensor

# What --recipe changes. logs/README.md has the measured gain of most settings.
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
    data_path: Path = setting(Path(), "folder of training pairs, or of the rainy images", alias="rainy_dir")
    clean_dir: Path | None = setting(None, "folder of the clean images, if they are not in --data_path")
    save_path: Path = setting(Path(), "folder for weights, training state and logs")
    channels: int = setting(32, "width of the network's hidden layers")
    groups: int = setting(5, "number of residual groups")
    epochs: int = setting(100, "passes over the patches; with --stages, units of 1,000 steps")
    minutes: float | None = setting(None, "train for this long: sets the number of steps after the first minute")
    max_steps: int | None = setting(None, "stop after this many steps in total, even within an epoch")
    batch_size: int = setting(8, "patches per step")
    patch_size: int = setting(100, "side of a training patch in pixels")
    stride: int = setting(80, "distance between patches in pixels")
    accumulate: int = setting(1, "compute each batch in so many parts, one after the other, which takes less memory")
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
    start: str = setting("random", "initial weights: as built, or the network as an identity", ("random", "identity"))
    init: Path | None = setting(None, "weights to start from: a .pth file, or its folder")
    validation: int = setting(0, "pairs to hold out at least, by whole backgrounds; 0: train on all, as published")
    validation_path: Path | None = setting(None, "folder of pairs to validate on; their backgrounds are not trained on")
    validate_every: int = setting(0, "steps between validations; 0: at each epoch's end")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "fp32", "arithmetic of the network; auto: bf16 where it is native. The loss is fp32", ("auto", "fp32", "bf16")
    )
    deterministic: bool = setting(False, "use deterministic GPU kernels (slower); CPU kernels always are")
    seed: int = setting(0, "seed of everything random")
    cache: Path | None = setting(
        None, "folder for the packed file (default: beside the data, or the user's cache if that place is read-only)"
    )
    resume: str = setting(
        "auto",
        "auto: continue save_path's training state, if any; never: refuse to; force: with changed settings",
        ("auto", "never", "force"),
    )
    save_minutes: float = setting(5.0, "minutes between training states, in addition to each epoch's end")

    rain: str = "heavy"  # the kind of synthetic rain nearest to the data set, for the message when it is missing

    # These may change when a run is resumed; its length may, too, but only under the multistep schedule.
    FREE = ("save_path", "validate_every", "recipe", "device", "resume", "save_minutes", "cache")
    LENGTH = ("epochs", "max_steps", "minutes")

    def __post_init__(self) -> None:
        text_to_paths(self)

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
    above_zero = ("epochs", "batch_size", "lr", "muon_lr", "patch_size", "stride", "max_steps", "minutes", "accumulate")
    for name in (*above_zero, "channels", "groups"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:  # nan is not, either
            raise InputError(f"--{name} {value}: must be a number above 0")
    for name in ("validation", "validate_every", "warmup", "save_minutes", "weight_decay", "clip"):
        if not getattr(settings, name) >= 0:
            raise InputError(f"--{name} {getattr(settings, name)}: must not be below 0")
    if not 0 <= settings.recombine <= 1:
        raise InputError(f"--recombine {settings.recombine}: must be between 0 and 1")
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
    a loss that is not finite. Interrupted, it saves and raises: KeyboardInterrupt after Ctrl-C, SystemExit with
    status 75 after SIGTERM, SIGHUP or SIGUSR1, for a cluster to requeue the job.
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
            done = f"already trained for {training.step} steps"
            processes.say(f"{settings.save_path}: {done}; raise --epochs to continue")
            return
        try:
            with contextlib.closing(folder):
                folder.begin(training.step, environment(device))
                processes.say(f"{len(data.pairs)} pairs, step {training.step}, {device} {training.precision}")
                run_steps(training, data, validation, folder)
        except OSError as error:
            error.filename = error.filename or str(settings.save_path)  # writing to an open file does not name it
            raise


def load_data(
    settings: TrainSettings, dataset: type[DerainDataset], processes: Processes
) -> tuple[DerainDataset, DerainDataset | None]:
    """Pack and read the pairs to train on, and those to validate on, if any."""
    if not settings.data_path.is_dir():
        synthetic = f"datasets/train/synthetic_{settings.rain}"
        raise InputError(
            f"{settings.data_path}: no such folder; see datasets/README.md for where to get the data sets, or make "
            f"synthetic rain (python -m derain.synthesize --rain {settings.rain} --out {synthetic}) and add "
            f"--data_path {synthetic}"
        )
    packed = processes.main_process_first(
        lambda: prepare(settings.data_path, settings.strict, clean_dir=settings.clean_dir, cache=settings.cache)
    )
    size = settings.parsed_stages()[0].size if settings.stages else settings.patch_size

    def read(pairs: Sequence[int] | None = None) -> DerainDataset:
        return dataset(packed, size, settings.stride, settings.flip, pairs)

    data = read()
    if settings.validation:
        chosen, held_out = split_by_background(data.backgrounds, settings.validation, settings.seed)
        return read(chosen), read(held_out)
    if settings.validation_path:
        path = settings.validation_path
        packed_too = processes.main_process_first(lambda: prepare(path, cache=settings.cache))
        validation = dataset(packed_too, 1, 2**31)
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
        load_weights(settings.init, lambda path: load_network(path, network))
    elif settings.start == "identity" and hasattr(network, "start_as_identity"):
        network.start_as_identity()
    elif settings.start == "identity":
        print(f"{type(network).__name__} has no start_as_identity(): training starts from its weights as built")
    return network.to(device, memory_format=torch.channels_last).train()


def open_folder(settings: TrainSettings, training: Training, processes: Processes) -> RunFolder:
    """Open the run's folder, and continue its training state if there is one."""
    free = {*settings.FREE, *(settings.LENGTH if settings.schedule == "multistep" else ())}
    folder = RunFolder(settings.save_path, dataclasses.asdict(settings), free, processes.is_main)
    state = processes.main_process_first(lambda: folder.restore(settings.resume))
    if state is not None:
        training.load_state_dict(state)
        processes.say(f"resuming {folder.state_file} at step {training.step}")
    return folder


def run_steps(training: Training, data: DerainDataset, validation: DerainDataset | None, folder: RunFolder) -> None:
    """Take steps until the last one or an interrupt; log, validate and save on the way."""
    settings, processes = training.settings, training.processes
    per_epoch = training.patches.steps_per_epoch
    validate_every = settings.validate_every or per_epoch
    meter, guard, saved = Meter(training.step), DivergenceGuard(training), time.monotonic()
    progress = Progress()
    with interrupts_noted() as interrupted:
        while training.step < training.last_step:
            values, stop = training.take_step(data, interrupted)
            if guard.diverged(values["loss"]):
                guard.go_back(folder)
                continue
            training.fix_length(meter)
            meter.add(values)
            step, last = training.step, training.step == training.last_step
            epoch, epoch_is_over = math.ceil(step / per_epoch), step % per_epoch == 0
            if meter.is_due() or last:
                if processes.is_main:
                    progress.show(meter.line(training))
                folder.show(step, {f"batch/{k}": v for k, v in values.items()} | {"lr": training.rate})
            if validation is not None and processes.is_main and (step % validate_every == 0 or last):
                scores, images = validate(training.network, validation, training.precision)
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
                raise KeyboardInterrupt if interrupted() == signal.SIGINT else SystemExit(75)  # os.EX_TEMPFAIL
    processes.say(f"done after {meter.minutes():.1f} minutes: {settings.save_path / 'net_latest.pth'}")


def validate(network: nn.Module, data: DerainDataset, precision: str) -> tuple[dict[str, float], list[Tensor]]:
    """Return mean psnr_y and ssim_y (PReNet protocol) over whole pairs, and crops of four of them to look at.

    The crops are rainy, derained and clean ones, each (N, 3, H, W) in [0, 1], at most 128 pixels high and wide.
    """
    network, scores = optimize(network, DTYPES[precision]), []
    crops: list[Tensor] = []
    for pair in data.pairs:
        rainy, clean = data.whole_pair(pair)
        derained = derain_image(network, rainy)
        scores.append((psnr_y(derained, clean), ssim_y(derained, clean)))
        if len(crops) < 4:
            crops.append(torch.cat([to_tensor(image) for image in (rainy, derained, clean)]))
    side = min(128, *(length for images in crops for length in images.shape[2:]))
    shown = torch.stack([images[..., :side, :side] for images in crops], dim=1)
    return dict(zip(("psnr_y", "ssim_y"), np.mean(scores, axis=0).tolist(), strict=True)), list(shown)
