"""Training and testing, once for all six scripts.

`train` and `evaluate` are the two stories, each read top to bottom. Their settings are in
settings.py, the parts of training in training.py, what an evaluation writes in report.py.

Everything random in training is a function of the seed and the step: first weights, order of
the patches, flips. So a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
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

import report
from datasets.synthesize import stand_in, synthetic_label
from DerainDataset import DerainDataset, Pair, find_pairs, find_rainy, prepare, read_pair, split_by_background
from networks import DARGNet, derain, fold, load_network
from settings import EvalSettings, TrainSettings, check_settings, parse_tile
from SSIM import PROTOCOL, SSIM, image_metrics, psnr_y, ssim_y
from training import (
    EpochBatches,
    Run,
    augmented,
    ignore_interrupts,
    interrupts_noted,
    learning_rate,
    moving_average,
    speed_up_prelus,
)
from utils import (
    InputError,
    Picture,
    choose_device,
    environment,
    free_memory,
    quantize,
    read_picture,
    set_seed,
    sha256_of,
    to_image,
    to_tensor,
    write_picture,
)

BYTES_PER_PIXEL = 1300  # of activations in float32 at the widest point, measured on the CPU; half in bfloat16
WHOLE_PIXELS = 4_000_000  # images up to here are computed whole if memory allows
LARGEST_TILE = 1024  # pixels; its halo adds a quarter to the work, a larger tile's hardly less


# ---------------------------------------------------------------- training


def train(settings: TrainSettings) -> None:
    """Train a DARGNet: patches, network, loss, optimizer, and the loop over steps.

    Writes to settings.save_path: net_latest.pth and net_epochN.pth (bare state dicts),
    state_latest.pth and the state before it (everything needed to go on), log.jsonl (settings and
    environment, then one line per epoch and per validation) and TensorBoard's files.

    Raises InputError for senseless settings, for anything wrong with the images or the run's
    folder, and for a loss that is not finite.
    """
    check_settings(settings)
    if not settings.data_path.is_dir():
        synthetic = f"datasets/train/synthetic_{settings.rain}"
        raise InputError(
            f"{settings.data_path}: no such folder; datasets/README.md says how to get the data sets. To train on "
            f"synthetic rain: python datasets/synthesize.py --rain {settings.rain} --out {synthetic} "
            f"&& python {settings.script} --data_path {synthetic}"
        )
    device = choose_device(settings.device)
    set_seed(settings.seed)
    packed = prepare(settings.data_path, strict=settings.strict)
    chosen, held_out = None, []
    if settings.validation:
        backgrounds = DerainDataset(packed, settings.patch_size, settings.stride).backgrounds
        chosen, held_out = split_by_background(backgrounds, settings.validation, settings.seed)
    data = DerainDataset(packed, settings.patch_size, settings.stride, settings.flip, chosen)
    validation = data
    if settings.validation_path:
        validation = DerainDataset(prepare(settings.validation_path), patch_size=1, stride=2**31)  # for whole images
        held_out = validation.pairs
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

    network = DARGNet() if settings.init is None else load_weights(weights_file(settings.init))
    network = network.to(device, memory_format=torch.channels_last)
    if device.type == "cpu":  # on others reading the slopes would wait for all work before
        speed_up_prelus(network)
    average = AveragedModel(network, multi_avg_fn=moving_average(settings.ema)) if settings.ema else None
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    similarity = SSIM().to(device)
    run = Run(settings, network, average, optimizer)
    step = run.restore()
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
                rainy, clean = augmented(rainy, clean, settings, step)
                rainy = rainy.to(memory_format=torch.channels_last)
                rate = learning_rate(settings, step, batches.per_epoch, last_step)
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
                    figures = validate(run.best_network(), validation, held_out, device, settings.precision)
                    run.log({"validation": len(held_out), "step": step, **figures})
                    for name, value in figures.items():
                        writer.add_scalar(f"validation/{name}", value, step)
                    print(
                        f"validation at step {step}: {figures['psnr_y']:.3f} dB (Y) on {len(held_out)} pairs",
                        flush=True,
                    )
                if step == last_step or interrupted():
                    break
                if now - saved > 60 * settings.save_minutes:
                    run.save(step)
                    saved = now

            epoch_is_over = step == (epoch + 1) * batches.per_epoch
            if interrupted() and not epoch_is_over:
                run.save(step)
                print(f"stopped at step {step}; the same command goes on from here")
                return
            means = dict(zip(("loss", "l1", "ssim_loss", "mse"), (sums / counted).tolist(), strict=True))
            means["psnr_rgb"] = -10 * math.log10(max(means.pop("mse"), 1e-10))
            pace = (step - first_step) / (time.monotonic() - began)
            means_of = {"epoch": epoch + 1, "step": step, "steps": counted}
            run.log({**means_of, **means, "lr": rate, "steps_per_second": pace})
            for name, value in means.items():
                writer.add_scalar(f"train/{name}", value, step)
            writer.add_scalar("optimizer/lr", rate, step)
            writer.add_scalar("speed/steps_per_second", pace, step)
            rows = [images[:4].detach().float().clamp(0, 1).cpu() for images in (rainy, derained, clean)]
            writer.add_image("train/rainy_derained_clean", make_grid(torch.cat(rows), nrow=len(rows[0])), step)
            sums, counted = torch.zeros(4), 0
            run.save(step, epoch + 1 if epoch_is_over else None)
            if step == last_step:
                break
            if interrupted():
                print(f"stopped at step {step}, the end of an epoch; the same command goes on from here")
                return
    writer.close()
    print(f"done: {settings.save_path / 'net_latest.pth'}")


def validate(
    network: DARGNet, data: DerainDataset, pairs: Sequence[int], device: torch.device, precision: str
) -> dict[str, float]:
    """Mean psnr_y and ssim_y (PReNet protocol) over whole pairs of the packed set."""
    network, figures = fold(network), []
    for pair in pairs:
        rainy, clean = data.whole_pair(pair)
        derained = quantize(derain_image(network, rainy, device, precision))
        figures.append((psnr_y(derained, clean), ssim_y(derained, clean)))
    return dict(zip(("psnr_y", "ssim_y"), np.mean(figures, axis=0).tolist(), strict=True))


# ---------------------------------------------------------------- testing


def derain_image(
    network: DARGNet, rgb: np.ndarray, device: torch.device, precision: str = "fp32", tile: int | None = None
) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 RGB -> (H, W, 3) float32, about [0, 1], not clipped.

    tile: side of exact tiles in pixels (see networks.derain), 0 for none, None to go by the free memory.
    """
    if tile is None:
        tile = automatic_tile(*rgb.shape[:2], network.receptive_field_radius, device, precision)
    rainy = to_tensor(rgb).to(memory_format=torch.channels_last)
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        return to_image(derain(network, rainy, tile))


def evaluate(settings: EvalSettings) -> None:
    """Derain a set of images, measure them where clean ones are there, write and print what came out.

    Writes to the save path: a PNG per image, under the image's name, results.csv and results.json.
    """
    device = choose_device(settings.device)
    tile = parse_tile(settings.tile)
    data_path = settings.data_path or default_data(settings)
    pairs: Sequence[Pair | Path] = find_rainy(data_path) if settings.pairs is None else find_pairs(data_path)
    label = data_set_label(settings, data_path, pairs)
    default_name = data_path.resolve().name if settings.pairs and label != settings.name else settings.name
    save_path = settings.save_path or Path("results") / default_name
    outputs = report.output_paths(save_path, pairs)
    weights = weights_file(settings.logdir)
    network = fold(load_weights(weights)).to(device)
    print(f"{label}: {len(pairs)} images of {data_path}, weights {weights}, {device} {settings.precision}", flush=True)

    rows, refused = [], []
    for i, (pair, output) in enumerate(zip(pairs, outputs, strict=True)):
        try:
            if isinstance(pair, Pair):
                rainy, clean = read_pair(pair)
                picture = Picture(rainy)
            else:
                picture, clean = read_picture(pair), None
        except InputError as error:
            if settings.pairs is not None:
                raise  # a mean over the rest of a set would pass for the set's
            refused.append(str(error))
            print(f"refused: {error}", file=sys.stderr, flush=True)
            continue
        began = time.perf_counter()
        values = derain_image(network, picture.rgb, device, settings.precision, tile)
        milliseconds = 1000 * (time.perf_counter() - began)
        derained = quantize(values, picture.rgb.dtype, settings.quantize)
        write_picture(output, dataclasses.replace(picture, rgb=derained))
        figures, input_figures = {}, {}
        if clean is not None:
            try:
                figures, input_figures = image_metrics(derained, clean), image_metrics(rainy, clean)
            except ValueError as error:
                raise InputError(f"{pair.rainy}: {error}") from error
        row = {"data_set": label, "image": output.name, **figures, "milliseconds": round(milliseconds, 1)}
        rows.append(row | {f"input_{name}": value for name, value in input_figures.items()})
        shown = f" {figures['psnr_y']:6.2f} dB" if figures else ""
        print(f"[{i + 1}/{len(pairs)}] {output.name}{shown} {milliseconds / 1000:.2f} s", flush=True)

    if rows and label == settings.name and settings.input_psnr_y is not None:
        found = report.means(rows, "input_")["psnr_y"]
        if abs(found - settings.input_psnr_y) > 0.01:  # as many pairs, but other pictures
            label = f"{data_path.resolve().name} (rainy input {found:.2f} dB), not {settings.name}"
            rows = [row | {"data_set": label} for row in rows]
    if rows:
        lines = [] if settings.pairs is None else report.summary_lines(settings, label, rows, pairs)
        summary = {
            "data_set": {"name": label, "path": data_path, "images": len(pairs)},
            "protocol": PROTOCOL if lines else None,
            "means": dict(lines),
            "median_milliseconds": float(np.median([row["milliseconds"] for row in rows])),
            "refused": refused,
            "weights": {"path": weights, "sha256": sha256_of(weights)},
            "settings": dataclasses.asdict(settings),
            "environment": environment(device),
        }
        report.write_results(save_path, rows, summary)
        if lines:
            protocol = "PReNet protocol: Y channel, mean of per-image figures; RGB beside it"
            print("\n" + report.table(f"{label}, {len(pairs)} pairs ({protocol})", lines))
        print(f"\n{len(rows)} images and results.csv, results.json in {save_path}")
    if refused:
        raise InputError(f"{len(refused)} of {len(pairs)} images were refused: see the lines that begin with 'refused'")


def data_set_label(settings: EvalSettings, data_path: Path, pairs: Sequence[Pair | Path]) -> str:
    """What every row, CSV and JSON calls the pictures: the data set's name only if they can be that set."""
    first = pairs[0].rainy if isinstance(pairs[0], Pair) else pairs[0]
    synthetic = synthetic_label(first.parent)
    if synthetic:
        return f"{synthetic}, not {settings.name}" if settings.pairs else synthetic
    if settings.pairs in (None, len(pairs)):
        return settings.name
    return f"{data_path.resolve().name} ({len(pairs)} pairs), not {settings.name}"


def default_data(settings: EvalSettings) -> Path:
    """The data set's usual folder; where it is missing, the stand-in, with a line that says so."""
    folder = Path("datasets/test") / settings.name
    if folder.is_dir():
        return folder
    print(
        f"{folder} is missing (datasets/README.md says where {settings.name} is had; it goes there): "
        f"using a stand-in of synthetic {settings.rain} rain, whose figures are not {settings.name}'s",
        flush=True,
    )
    return stand_in(settings.rain)


def weights_file(path: Path) -> Path:
    """The weights that --logdir or --init names: the file itself, or net_latest.pth in the folder."""
    file = path / "net_latest.pth" if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"{file}: no such weights; name a folder with net_latest.pth, or a .pth file")
    return file


def load_weights(path: Path) -> DARGNet:
    """load_network with errors that are for the user to read."""
    try:
        return load_network(path)
    except ValueError as error:
        raise InputError(str(error)) from error


def automatic_tile(height: int, width: int, halo: int, device: torch.device, precision: str) -> int:
    """0 if an image fits well into the free memory, else the side of the largest tile that does."""
    per_pixel = BYTES_PER_PIXEL if precision == "fp32" else BYTES_PER_PIXEL // 2
    pixels = free_memory(device) / 2 / per_pixel
    if height * width <= min(pixels, WHOLE_PIXELS):
        return 0
    return max(64, min(LARGEST_TILE, int(math.sqrt(pixels)) - 2 * halo))
