"""Training and testing, once for all six scripts.

`train` and `test` are the two stories, each read top to bottom; the settings that the scripts
fill in come first, the steps of training last. What a test prints and writes is in report.py.

Everything random in training is a function of the seed and the step: first weights, order of
the patches, flips. So a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tensorboardX import SummaryWriter
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader
from torchvision.utils import make_grid

from DerainDataset import DerainDataset, prepare, split_by_background
from networks import DARGNet, derain
from SSIM import SSIM, psnr_y, ssim_y
from training import (
    EpochBatches,
    Run,
    ignore_interrupts,
    interrupts_noted,
    learning_rate,
    moving_average,
    random_flips,
)
from utils import (
    InputError,
    choose_device,
    environment,
    quantize,
    set_seed,
    setting,
    to_image,
    to_tensor,
)

BYTES_PER_PIXEL = 1200  # of float32 activations at the network's widest point, measured; halved in bf16
LARGEST_TILE = 1024  # pixels; larger ones gain nothing: the halo then costs less than a quarter


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The published recipe; a train script overrides what its data set needs."""

    data_path: Path = setting(Path(), "folder of training pairs")
    save_path: Path = setting(Path(), "folder for weights, training state and logs")
    epochs: int = setting(100, "passes over the patches")
    batch_size: int = setting(8, "patches per step")
    lr: float = setting(1e-3, "learning rate of Adam (highest)")
    milestones: tuple[int, ...] = setting((40, 60, 80), "epochs after which the rate is multiplied by 0.2")
    patch_size: int = setting(100, "side of a training patch in pixels")
    stride: int = setting(80, "distance between patches in pixels")
    flip: bool = setting(False, "double the patches by left-right mirror images")
    strict: bool = setting(False, "of RainTrainH use only the 1,254 images without test backgrounds")
    schedule: str = setting("multistep", "rate falls at milestones, or in one cosine", ("multistep", "cosine"))
    warmup: int = setting(200, "steps of linear warm-up (cosine only)")
    ema: float = setting(0.0, "decay of the averaged weights that are saved; 0: save the last ones")
    augment: bool = setting(False, "mirror every patch left-right and upside down at random")
    validation: int = setting(0, "pairs to hold out, by background; 0: train on all, as published")
    validate_every: int = setting(0, "steps between validations; 0: at each epoch's end")
    workers: int = setting(2, "processes that read patches")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the network; the loss is always fp32", ("fp32", "bf16"))
    seed: int = setting(0, "seed of everything random")
    max_steps: int | None = setting(None, "stop after this many steps in all, even within an epoch")
    resume: str = setting(
        "auto",
        "auto: go on from save_path's training state, if any; never: refuse to; force: go on with changed settings",
        ("auto", "never", "force"),
    )
    save_minutes: float = setting(5.0, "minutes between training states, beside each epoch's end")

    # These may differ between the parts of a run that was stopped and resumed.
    FREE = (
        *("data_path", "save_path", "epochs", "max_steps"),
        *("validate_every", "workers", "device", "resume", "save_minutes"),
    )


@dataclasses.dataclass(frozen=True)
class TestSettings:
    """What a test script measures, with which weights; `reference` holds what others got on the same set."""

    __test__ = False  # not a test class of pytest

    data_path: Path = setting(Path(), "folder of rainy (and clean) images")
    logdir: Path = setting(Path(), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path = setting(Path(), "folder for derained images and results")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the network", ("fp32", "bf16"))
    quantize: str = setting("round", "how values become 8-bit; the authors truncated", ("round", "truncate"))
    tile: str = setting("auto", "auto, off, or the side of exact tiles in pixels")

    name: str = ""  # of the data set
    rain: str = "heavy"  # of the stand-in where the data set is missing
    paired: bool = True  # with clean images to measure against
    pairs_expected: int = 0
    unseen: tuple[int, ...] = ()  # numbers of the images whose backgrounds RainTrainL does not show
    reference: tuple[tuple[str, float, float, float], ...] = ()  # name, psnr_y, ssim_y, psnr_rgb


# ---------------------------------------------------------------- training


def train(settings: TrainSettings) -> None:
    """Train a DARGNet: patches, network, loss, optimizer, and the loop over steps.

    Writes to settings.save_path: net_latest.pth and net_epochN.pth (bare state dicts),
    state_latest.pth and the state before it (everything needed to go on), log.jsonl (one line
    per epoch and per validation), settings.json, environment.json and TensorBoard's files.
    """
    check_settings(settings)
    device = choose_device(settings.device)
    set_seed(settings.seed)
    packed = prepare(settings.data_path, strict=settings.strict)
    chosen, held_out = None, []
    if settings.validation:
        backgrounds = DerainDataset(packed, settings.patch_size, settings.stride).backgrounds
        chosen, held_out = split_by_background(backgrounds, settings.validation, settings.seed)
    data = DerainDataset(packed, settings.patch_size, settings.stride, settings.flip, chosen)
    batches = EpochBatches(len(data), settings.batch_size, settings.seed)
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=settings.workers,
        persistent_workers=settings.workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )
    last_step = min(settings.epochs * batches.per_epoch, settings.max_steps or math.inf)

    network = DARGNet().to(device, memory_format=torch.channels_last)
    average = AveragedModel(network, multi_avg_fn=moving_average(settings.ema)) if settings.ema else None
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    similarity = SSIM().to(device)
    run = Run(settings, network, average, optimizer)
    step = run.restore(device)
    if step >= last_step:
        print(f"{settings.save_path}: already trained for {step} steps; more --epochs (or --max_steps) would go on")
        return
    run.begin(step, environment(device))
    writer = SummaryWriter(str(settings.save_path / "tensorboard"), purge_step=step)
    writer.add_text("settings", f"```\n{json.dumps(run.settings, indent=1)}\n```", step)
    print(f"{len(data)} patches of {len(data.pairs)} pairs, steps {step} to {last_step}, {device} {settings.precision}")

    network.train()
    validate_every = settings.validate_every or batches.per_epoch
    sums, counted, shown, saved = torch.zeros(4), 0, time.monotonic(), time.monotonic()
    with interrupts_noted() as interrupted:
        for epoch in range(step // batches.per_epoch, settings.epochs):
            batches.start(epoch, first=step - epoch * batches.per_epoch)
            began, first_step = time.monotonic(), step
            for rainy, clean in loader:
                rainy, clean = (x.to(device, non_blocking=True) for x in (rainy, clean))
                if settings.augment:
                    rainy, clean = random_flips(rainy, clean, seed=(settings.seed, step))
                rainy = rainy.to(memory_format=torch.channels_last)
                rate = learning_rate(settings, step, epoch, last_step)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bf16"):
                    derained = network(rainy)
                derained = derained.float()
                dissimilarity = 1 - similarity(derained, clean)
                difference = nn.functional.l1_loss(derained, clean)
                loss = dissimilarity + difference
                if not torch.isfinite(loss):
                    raise InputError(
                        f"step {step + 1}: the loss is {loss.item()}; {settings.save_path} keeps the last good state. "
                        f"A lower --lr, or --precision fp32, may help"
                    )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if average is not None:
                    average.update_parameters(network)
                step += 1

                # The training PSNR comes from the output at hand: a second pass for it would cost a quarter of the run.
                error = nn.functional.mse_loss(derained.detach().clamp(0, 1), clean)
                sums += torch.stack([loss, difference, dissimilarity, error]).detach().cpu()
                counted += 1
                now = time.monotonic()
                if now - shown > 10 or step == last_step or counted == 1:
                    shown, pace = now, (step - first_step) / (now - began)
                    remaining = (last_step - step) / pace / 60
                    print(
                        f"epoch {epoch + 1}/{settings.epochs} step {step}/{last_step} loss {sums[0] / counted:.4f} "
                        f"rate {rate:.1e} {pace:.2f} steps/s, {remaining:.0f} min left",
                        flush=True,
                    )
                if held_out and (step % validate_every == 0 or step == last_step):
                    figures = validate(run.best_network(), data, held_out, device, settings.precision)
                    run.log({"validation": len(held_out), "step": step, **figures})
                    for name, value in figures.items():
                        writer.add_scalar(f"validation/{name}", value, step)
                    print(f"validation at step {step}: {figures['psnr_y']:.3f} dB (Y) on {len(held_out)} pairs")
                if interrupted():
                    run.save(step)
                    print(f"stopped at step {step}; the same command goes on from here")
                    return
                if now - saved > 60 * settings.save_minutes:
                    run.save(step)
                    saved = now
                if step == last_step:
                    break

            means = dict(zip(("loss", "l1", "ssim_loss", "mse"), (sums / counted).tolist(), strict=True))
            means["psnr_rgb"] = -10 * math.log10(max(means.pop("mse"), 1e-10))
            pace = (step - first_step) / (time.monotonic() - began)
            run.log({"epoch": epoch + 1, "step": step, **means, "lr": rate, "steps_per_second": pace})
            for name, value in means.items():
                writer.add_scalar(f"train/{name}", value, step)
            writer.add_scalar("optimizer/lr", rate, step)
            writer.add_scalar("speed/steps_per_second", pace, step)
            rows = [images[:4].detach().float().clamp(0, 1).cpu() for images in (rainy, derained, clean)]
            writer.add_image("train/rainy_derained_clean", make_grid(torch.cat(rows), nrow=len(rows[0])), step)
            sums, counted = torch.zeros(4), 0
            run.save(step, epoch + 1 if step == (epoch + 1) * batches.per_epoch else None)
            if step == last_step:
                break
    writer.close()
    print(f"done: {settings.save_path / 'net_latest.pth'}")


def check_settings(settings: TrainSettings) -> None:
    """Raise InputError for a number that makes no sense, before anything long begins."""
    for name in ("epochs", "batch_size", "lr", "patch_size", "stride", "max_steps"):
        value = getattr(settings, name)
        if value is not None and value <= 0:
            raise InputError(f"--{name} {value}: must be above 0")
    for name in ("workers", "validation", "validate_every", "warmup", "save_minutes"):
        if getattr(settings, name) < 0:
            raise InputError(f"--{name} {getattr(settings, name)}: must not be below 0")
    if not 0 <= settings.ema < 1:
        raise InputError(f"--ema {settings.ema}: must be at least 0 and below 1")


def validate(
    network: nn.Module, data: DerainDataset, pairs: Sequence[int], device: torch.device, precision: str
) -> dict[str, float]:
    """Mean psnr_y and ssim_y (PReNet protocol) over whole pairs of the packed set."""
    figures = []
    for pair in pairs:
        rainy, clean = data.whole_pair(pair)
        derained = quantize(derain_image(network, rainy, device, precision))
        figures.append((psnr_y(derained, clean), ssim_y(derained, clean)))
    return dict(zip(("psnr_y", "ssim_y"), np.mean(figures, axis=0).tolist(), strict=True))


# ---------------------------------------------------------------- testing


def derain_image(
    network: DARGNet, rgb: np.ndarray, device: torch.device, precision: str = "fp32", tile: int = 0
) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 RGB -> (H, W, 3) float32, about [0, 1], not clipped. tile: see networks.derain."""
    rainy = to_tensor(rgb).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return to_image(derain(network, rainy, tile))
