"""Training, read top to bottom: settings, then `train` and its loop over steps.

The loss is in the train scripts, random crops are in derain/crops.py, Muon is in derain/optim.py,
the files of a run and its processes in derain/run.py. Batches are a function of the seed and the
step, so an interrupted run resumes bit for bit, except with --minutes, which follows the clock.
"""

import dataclasses
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from tqdm import tqdm

from derain.cli import check_folder, setting
from derain.crops import RandomCrops, folder_and_share, parsed_stage
from derain.inference import check_output, derain_image, load_weights, optimize
from derain.optim import Muon
from derain.run import IS_MAIN, WORLD_SIZE, RunFolder, averaged, connect, resume, say, share_of
from DerainDataset import DerainDataset, prepare
from networks import load_network
from SSIM import WINDOW, psnr_y, ssim_y
from utils import InputError, choose_precision, environment

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]  # derained, clean -> named parts of the loss
Batch = tuple[Tensor, Tensor]  # rainy and clean, (N, 3, P, P) in [0, 1]
BatchSource = Callable[[int, float], Batch]  # step, progress (0 to 1) -> batch
SAVE_SECONDS = 60  # between training states, besides those at epoch ends
VARIATIONS = ("augment", "recombine", "without_rain")  # of random crops
POSITIVE = ("epochs", "minutes", "max_steps", "batch_size", "patch_size", "stride")
PROGRESS = "{percentage:5.1f}%|{bar:20}| {desc}, {remaining} left"

# Settings that each --recipe implies. logs/README.md has their measured gains.
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
    """The published recipe. Each train script changes what its data set needs."""

    recipe: str = setting("paper", "paper: as published; best: for a CPU", RECIPES)
    data_path: tuple[str, ...] = setting((), "folders of pairs; FOLDER=0.6 sets its share")
    clean_dir: Path | None = setting(None, "folder of the clean images, if not in --data_path")
    save_path: Path = setting(Path(), "folder for weights, training state and logs")
    channels: int = setting(32, "width of the network's hidden layers")
    groups: int = setting(5, "number of residual groups")
    epochs: int = setting(100, "passes over the patches; with random crops, units of 1,000 steps")
    minutes: float | None = setting(None, "train for this long instead; not repeatable bit for bit")
    max_steps: int | None = setting(None, "train for this many steps instead")
    batch_size: int = setting(8, "patches per step, without --stages")
    patch_size: int = setting(100, "side of a patch in pixels, without --stages")
    stride: int = setting(80, "distance between patches in pixels, without --stages")
    stages: tuple[str, ...] = setting((), "random crops instead: SIDE:BATCH:SHARE of the run, ...")
    flip: bool = setting(False, "double the patches by mirror images, without --stages")
    augment: bool = setting(False, "random crops: mirror them at random in both directions")
    recombine: float = setting(0.0, "random crops: share that gets the rain of another pair")
    without_rain: float = setting(0.0, "random crops: share of the others to use without rain")
    strict: bool = setting(False, "use only RainTrainH's 1,254 pairs without test backgrounds")
    optimizer: str = setting("adam", "muon: for the inner kernels", ("adam", "muon"))
    lr: float = setting(1e-3, "highest learning rate of Adam")
    muon_lr: float = setting(0.01, "highest learning rate of Muon")
    weight_decay: float = setting(0.02, "decoupled weight decay of Muon's kernels")
    schedule: str = setting("multistep", "learning rate's decay", ("multistep", "cosine", "linear"))
    milestones: tuple[float, ...] = setting((40, 60, 80), "epochs that cut the rate to a fifth")
    warmup: int = setting(200, "steps of linear warm-up (cosine and linear)")
    start: str = setting("random", "initial weights without --init", ("random", "identity"))
    init: Path | None = setting(None, "weights to start from: a .pth file, or its folder")
    # Pairs that share a background with a validation pair are left out of training.
    validation: int = setting(0, "pairs of each folder to hold out, by whole backgrounds")
    validation_path: tuple[Path, ...] = setting((), "folders of other pairs to validate on")
    validate_every: int = setting(0, "steps between validations; 0: at each epoch's end")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "auto: bf16 where it is native", ("auto", "fp32", "bf16"))
    deterministic: bool = setting(False, "deterministic GPU kernels (slower)")
    seed: int = setting(0, "seed of weights, patches and held-out pairs")


def train(settings: TrainSettings, network: nn.Module, loss: Loss) -> None:
    """Train a network, (N, 3, H, W) RGB in [0, 1] -> the same shape.

    loss: derained and clean, (N, 3, H, W) each -> the loss's named parts. Their sum is minimised,
    each is logged. Training starts from the network's own weights, or from those of --init.

    Writes to settings.save_path: net_latest.pth and net_epochN.pth (bare state dicts),
    state_latest.pth (to resume from), log.jsonl and TensorBoard's files.

    Raises InputError for anything wrong with settings, images, the folder, or what network and loss
    return. However a run ends, the same settings resume it from its last saved state.
    """
    check_settings(settings)
    device = connect(settings.device)
    precision = choose_precision(settings.precision, device)
    sets, validation_sets = load_sets(settings)
    steps_per_epoch, batch_at = batch_source(settings, sets)
    validate_every = settings.validate_every or steps_per_epoch
    last_step = settings.max_steps or math.inf
    last_minute = settings.minutes or math.inf  # whichever comes first ends the run
    if not (settings.minutes or settings.max_steps):
        last_step = settings.epochs * steps_per_epoch
    network, optimizer = network_and_optimizer(settings, network, device)
    parallel = DistributedDataParallel(network) if WORLD_SIZE > 1 else network

    pairs = sum(len(data.pairs) for data in sets)
    checksums = [f"{data.path.stem} {data.checksum}" for data in (*sets, *validation_sets)]
    conditions = {"pairs": pairs, "images": checksums, "precision": precision}
    conditions = dataclasses.asdict(settings) | conditions
    first_step, first_minute = resume(settings.save_path, conditions, network, optimizer)
    step, progress = first_step, min(1, max(first_step / last_step, first_minute / last_minute))
    sums, logged_step = Counter[str](), step
    folder = RunFolder(settings.save_path, conditions, step, environment(device))
    say(f"training on {pairs} pairs; weights go to {settings.save_path}")
    bar = tqdm(total=1, initial=progress, bar_format=PROGRESS, mininterval=3, disable=not IS_MAIN)
    with bar:
        began = saved = time.monotonic()
        while progress < 1:
            epoch = step / steps_per_epoch
            if settings.minutes:  # milestones scale with the time
                epoch = progress * settings.epochs
            factor = lr_factor(settings, step, epoch, progress)
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * factor
            losses = take_step(parallel, optimizer, loss, batch_at(step, progress), precision)
            step += 1
            minutes = first_minute + (time.monotonic() - began) / 60
            (minutes,) = averaged([minutes], device)
            progress = max(step / last_step, minutes / last_minute)
            if not math.isfinite(losses["loss"]):
                fix = "lower --lr or --muon_lr, and choose another --save_path"
                raise InputError(f"step {step}: the loss is {losses['loss']}; {fix}")
            sums.update(losses)  # a Counter's update adds
            bar.set_description_str(f"step {step}, loss {losses['loss']:.4f}", refresh=False)
            bar.update(min(progress, 1) - bar.n)
            is_last, epoch_is_over = progress >= 1, step % steps_per_epoch == 0
            if validation_sets and (is_last or step % validate_every == 0):
                scores = validate(network, validation_sets, precision)
                folder.log({"step": step, "minutes": minutes, "validation": scores})
                say(f"step {step}: validation {scores['mean']['psnr_y']:.3f} dB")
            if is_last or epoch_is_over or time.monotonic() - saved > SAVE_SECONDS:
                means = {name: sums[name] / (step - logged_step) for name in losses}
                adam_lr = optimizer.param_groups[-1]["lr"]
                folder.log({"step": step, "minutes": minutes, "lr": adam_lr, "train": means})
                folder.save(network, optimizer, step, minutes, step / steps_per_epoch)
                sums.clear()
                logged_step = step
                saved = time.monotonic()
    say(f"{settings.save_path / 'net_latest.pth'}: trained for {step} steps")


def lr_factor(settings: TrainSettings, step: int, epoch: float, progress: float) -> float:
    """Return the factor on the highest learning rate; progress goes from 0 to 1."""
    if settings.schedule == "multistep":
        return 0.2 ** sum(epoch >= milestone for milestone in settings.milestones)
    warm = min(1, (step + 1) / max(1, settings.warmup))
    if settings.schedule == "linear":
        return warm * (1 - progress)
    return warm * 0.5 * (1 + math.cos(math.pi * progress))


def take_step(
    network: nn.Module, optimizer: Optimizer, loss: Loss, batch: Batch, precision: str
) -> dict[str, float]:
    """Take a step on this process's share of a batch, and return the parts of the whole loss."""
    device = next(network.parameters()).device
    rainy, clean, weight = share_of(*batch)
    rainy, clean = rainy.to(device), clean.to(device)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        derained = network(rainy)
    check_output(derained, clean)
    parts = loss(derained.float(), clean)  # in float32
    is_named = isinstance(parts, dict) and len(parts) > 0 and "loss" not in parts
    if not is_named or any(getattr(part, "shape", None) != () for part in parts.values()):
        raise InputError("loss: must return a dict of scalar tensors, none named loss")
    total: Tensor = sum(parts.values())
    optimizer.zero_grad(set_to_none=True)
    (weight * total).backward()
    optimizer.step()
    parts = {**parts, "loss": total}
    numbers = weight * torch.stack(list(parts.values())).detach()
    return dict(zip(parts, averaged(numbers.tolist(), device), strict=True))


def check_settings(settings: TrainSettings) -> None:
    """Fail early on settings that are out of range or contradict each other."""
    for name, value in dataclasses.asdict(settings).items():
        if isinstance(value, int | float):
            most = 1 if name in VARIATIONS else sys.float_info.max
            if not 0 <= value <= most or (name in POSITIVE and value == 0):
                raise InputError(f"--{name} {value}: out of range")
        if name in VARIATIONS and value and not settings.stages:
            raise InputError(f"--{name}: needs random crops; add --recipe best or --stages")
    for stage in settings.stages:
        parsed_stage(stage)
    unused = ("batch_size", "patch_size", "stride") if settings.stages else ()
    if settings.optimizer == "adam":
        unused += ("muon_lr", "weight_decay")
    if not (settings.validation or settings.validation_path):
        unused += ("validate_every",)
    for name in unused:
        if getattr(settings, name) != getattr(TrainSettings, name):
            say(f"--{name} has no effect with the other settings")
    count = len(settings.data_path)
    if count == 0 or (count > 1 and (settings.clean_dir or not settings.stages)):
        advice = "name one folder, or several without --clean_dir with --recipe best or --stages"
        raise InputError(f"--data_path: {advice}")
    check_folder(settings.save_path)


def load_sets(settings: TrainSettings) -> tuple[list[DerainDataset], list[DerainDataset]]:
    """Pack and read the sets to train on, and those to validate on, if any."""
    sets, validation_sets = [], []
    for text in settings.data_path:
        packed = prepare(folder_and_share(text)[0], settings.strict, settings.clean_dir)
        sets.append(DerainDataset(packed, settings.patch_size, settings.stride, settings.flip))
    for folder in settings.validation_path:
        validation_sets.append(DerainDataset(prepare(folder)))
    if settings.validation:
        for data in sets:
            validation_sets.append(data.held_out(settings.validation, settings.seed))
    for data in validation_sets:
        data.check_size(WINDOW)
    names = ["mean", *(data.path.stem for data in validation_sets)]
    if len(set(names)) < len(names):
        raise InputError(f"validation folders need different names: {', '.join(names)}; rename one")
    if validation_sets:
        for i, data in enumerate(sets):
            sets[i] = data.without_backgrounds(validation_sets)
            count = f"{len(sets[i].pairs)} of {len(data.pairs)} pairs"
            say(f"{data.path.stem}: {count} share no background with the validation pairs")
    return sets, validation_sets


def batch_source(settings: TrainSettings, sets: Sequence[DerainDataset]) -> tuple[int, BatchSource]:
    """Return the steps per epoch, and a function from step and progress to a batch."""
    if settings.stages:
        shares = [folder_and_share(text)[1] for text in settings.data_path]
        stages = [parsed_stage(text) for text in settings.stages]
        variations = {name: getattr(settings, name) for name in VARIATIONS}
        return 1000, RandomCrops(sets, shares, stages, settings.seed, **variations).batch

    data, size = sets[0], settings.batch_size
    data.check_size(settings.patch_size)
    steps_per_epoch = math.ceil(len(data) / size)

    def published_order(step: int, _progress: float) -> Batch:
        epoch, i = divmod(step, steps_per_epoch)
        order = np.random.RandomState([settings.seed % 2**32, epoch]).permutation(len(data))
        return data.batch(order[i * size : (i + 1) * size])

    return steps_per_epoch, published_order


def network_and_optimizer(
    settings: TrainSettings, network: nn.Module, device: torch.device
) -> tuple[nn.Module, Optimizer]:
    """Initialise the network on the device; return it with its optimizer."""
    if settings.init is not None:
        network = load_weights(settings.init, lambda path: load_network(path, network))
    elif settings.start == "identity":
        if hasattr(network, "start_as_identity"):
            network.start_as_identity()
        else:
            say(f"{type(network).__name__} has no start_as_identity: its weights stay random")
    network = network.to(device, memory_format=torch.channels_last).train()
    if settings.optimizer == "muon":
        muon = Muon(network, settings.muon_lr, settings.lr, weight_decay=settings.weight_decay)
        if not muon.param_groups[0]["params"]:
            say("no convolution has more than 3 inputs and outputs: Adam trains all")
        return network, muon
    groups = [{"params": network.parameters(), "initial_lr": settings.lr}]
    return network, torch.optim.Adam(groups, settings.lr)


def validate(
    network: nn.Module, sets: Sequence[DerainDataset], precision: str
) -> dict[str, dict[str, float]]:
    """Return the mean psnr_y and ssim_y (PReNet protocol) of each set, and the mean over sets."""
    network = optimize(network, precision)  # its fastest form
    scores = {}
    for data in sets:
        results = []
        for rainy, clean in map(data.whole_pair, data.pairs):
            derained = derain_image(network, rainy)
            results.append((psnr_y(derained, clean), ssim_y(derained, clean)))
        scores[data.path.stem] = np.mean(results, axis=0).tolist()
    scores["mean"] = np.mean(list(scores.values()), axis=0).tolist()
    return {name: {"psnr_y": psnr, "ssim_y": ssim} for name, (psnr, ssim) in scores.items()}
