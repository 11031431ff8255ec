"""Training and testing, once for all six scripts.

`train` and `evaluate` are the two stories, each read top to bottom. Their settings are in
settings.py, the parts of training in training.py, those of testing in evaluation.py and report.py.

Everything random in training is a function of the seed and the step: first weights, order of
the patches, flips. So a run that was stopped goes on exactly as if it had not been.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from derain import page
from derain import results as report
from derain.cli import check_folder, number_of
from derain.containers import video_source
from derain.distributed import Processes
from derain.evaluation import (
    Provenance,
    ahead,
    data_set_label,
    default_data,
    derain_image,
    existing,
    fast_network,
    find_pictures,
    finish,
    load_weights,
    read_images,
    validate,
    weights_file,
)
from derain.settings import EvalSettings, TrainSettings, check_settings, parse_tile
from derain.training import (
    EpochBatches,
    Run,
    augmented,
    compiler_watched,
    ignore_interrupts,
    interrupts_noted,
    learning_rate,
    loss_parts,
    moving_average,
    speed_up,
    workers_watched,
)
from derain.video import derain_video
from DerainDataset import DerainDataset, Pair, find_pairs, prepare, rainy_file, split_by_background
from networks import DARGNet
from SSIM import PROTOCOL, SSIM
from utils import InputError, choose_device, environment, processors, set_seed, sha256_of

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
            f"synthetic rain: python -m derain.data.synthesize --rain {settings.rain} --out {synthetic} "
            f"&& python {settings.script} --data_path {synthetic}"
        )
    check_folder(settings.save_path)
    processes = Processes()
    device = processes.device(settings.device)
    with processes.connected(device):
        _train(settings, processes, device)


def _train(settings: TrainSettings, processes: Processes, device: torch.device) -> None:
    set_seed(settings.seed, settings.deterministic)
    packed = processes.in_turn(lambda: prepare(settings.data_path, strict=settings.strict))
    say = partial(print, flush=True) if processes.first else lambda _: None
    data = DerainDataset(packed, settings.patch_size, settings.stride, settings.flip)
    validation, chosen, held_out = data, data.pairs, []
    if settings.validation:
        chosen, held_out = split_by_background(data.backgrounds, settings.validation, settings.seed)
    if settings.validation_path:
        validation_set = processes.in_turn(lambda: prepare(settings.validation_path))
        validation = DerainDataset(validation_set, patch_size=1, stride=2**31)  # only for its whole images
        chosen, held_out = data.unshared_pairs(validation), validation.pairs
        if left_out := len(data.pairs) - len(chosen):
            why = f"because {settings.validation_path} shows their background"
            say(f"pairs left out of training {why}: {left_out} of {len(data.pairs)}")
    if len(chosen) < len(data.pairs):
        data = DerainDataset(packed, settings.patch_size, settings.stride, settings.flip, chosen)
    workers = min(settings.workers, processors())  # more only get in each other's way
    batches = EpochBatches(len(data), settings.batch_size, settings.seed, processes.rank, processes.size)
    loader = DataLoader(
        data,
        batch_sampler=batches,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
        worker_init_fn=ignore_interrupts,
    )
    last_step = min(settings.epochs * batches.per_epoch, settings.max_steps or math.inf)

    network = DARGNet() if settings.init is None else load_weights(weights_file(settings.init))
    network = network.to(device, memory_format=torch.channels_last)
    # On others than the CPU reading the PReLUs' slopes would wait for all work before.
    speed_up(network, prelus=device.type == "cpu" and not settings.compile)
    average = AveragedModel(network, multi_avg_fn=moving_average(settings.ema)) if settings.ema else None
    optimizer = torch.optim.Adam(network.parameters(), lr=settings.lr)
    similarity = SSIM().to(device)
    run = Run(settings, network, average, optimizer, writes=processes.first)
    step = processes.in_turn(run.restore)
    if step >= last_step:
        say(f"{settings.save_path}: already trained for {step} steps; more --epochs (or --max_steps) would go on")
        return
    run.begin(step, environment(device))
    together = f", {processes.size} processes" if processes.size > 1 else ""
    of = f"{len(data)} patches of {len(data.pairs)} pairs"
    say(f"{of}, steps {step} to {last_step}, {device} {settings.precision}{together}")

    network.train()
    if settings.compile:  # each size of batch by itself, lest results depend on which came first
        network.compile(dynamic=False)
    parallel = processes.wrap(network)
    validate_every = settings.validate_every or batches.per_epoch
    sums, counted, shown, saved = torch.zeros(4), 0, time.monotonic(), time.monotonic()
    with interrupts_noted() as interrupted, workers_watched(), compiler_watched():
        for epoch in range(step // batches.per_epoch, settings.epochs):
            batches.start(epoch, first=step - epoch * batches.per_epoch)
            began, first_step = time.monotonic(), step
            for rainy, clean in loader:
                rainy, clean = (x.to(device, non_blocking=True) for x in (rainy, clean))
                rainy, clean = augmented(rainy, clean, settings, step, processes.rank)
                rate = learning_rate(settings, step, batches.per_epoch, last_step)
                for group in optimizer.param_groups:
                    group["lr"] = rate

                half = settings.precision == "bf16"
                derained, dissimilarity, difference = loss_parts(parallel, similarity, rainy, clean, half)
                loss = dissimilarity + difference
                weight = batches.weight(step)  # 1, but for processes with unequal parts of a batch
                optimizer.zero_grad(set_to_none=True)
                (weight * loss).backward()
                optimizer.step()
                if average is not None:
                    average.update_parameters(network)
                step += 1

                # Figures come after the step, for a GPU to have all its work by then, and the training PSNR
                # from the output at hand: a second pass for it would cost a quarter of the run.
                error = nn.functional.mse_loss(derained.detach().clamp(0, 1), clean)
                figures = torch.stack([loss, difference, dissimilarity, error]).detach() * weight / processes.size
                *figures, stops = processes.sum(torch.cat([figures.cpu(), torch.tensor([float(interrupted())])]))
                if not torch.isfinite(figures[0]):
                    raise InputError(
                        f"step {step}: the loss is {figures[0]} on patches of {data.names(batches.of(step - 1))}; "
                        f"{settings.save_path} keeps the last good state. A lower --lr, or --precision fp32, may help"
                    )
                sums += torch.stack(figures)
                counted += 1
                now = time.monotonic()
                if now - shown > 10 or step == last_step or counted == 1:
                    shown, pace = now, (step - first_step) / (now - began)
                    remaining = (last_step - step) / pace / 60
                    say(
                        f"epoch {epoch + 1}/{settings.epochs} step {step}/{last_step} loss {sums[0] / counted:.4f} "
                        f"rate {rate:.1e} {pace:.2f} steps/s, {remaining:.0f} min left"
                    )
                    batch = {"batch/loss": figures[0], "batch/psnr_rgb": -10 * figures[3].clamp_min(1e-10).log10()}
                    speed = {"speed/seconds_per_step": 1 / pace, "speed/patches_per_second": settings.batch_size * pace}
                    run.show(step, batch | speed | {"optimizer/lr": rate})
                if held_out and processes.first and (step % validate_every == 0 or step == last_step):
                    found, pictures = validate(run.best_network(), validation, held_out, settings.precision)
                    run.log({"validation": len(held_out), "step": step, **found})
                    tagged = {f"validation/{name}": value for name, value in found.items()}
                    run.show(step, tagged, "validation/rainy_derained_clean", pictures)
                    say(f"validation at step {step}: {found['psnr_y']:.3f} dB (Y) on {len(held_out)} pairs")
                if step == last_step or stops:
                    break
                if now - saved > 60 * settings.save_minutes:
                    run.save(step)
                    saved = now

            epoch_is_over = step == (epoch + 1) * batches.per_epoch
            if stops and not epoch_is_over:
                run.save(step)
                say(f"stopped at step {step}; the same command goes on from here")
                return
            means = dict(zip(("loss", "l1", "ssim_loss", "mse"), (sums / counted).tolist(), strict=True))
            means["psnr_rgb"] = -10 * math.log10(max(means.pop("mse"), 1e-10))
            pace = (step - first_step) / (time.monotonic() - began)
            means_of = {"epoch": epoch + 1, "step": step, "steps": counted}
            run.log({**means_of, **means, "lr": rate, "steps_per_second": pace})
            tagged = {f"train/{name}": value for name, value in means.items()}
            run.show(step, tagged, "train/rainy_derained_clean", [rainy, derained, clean])
            sums, counted = torch.zeros(4), 0
            run.save(step, epoch + 1 if epoch_is_over else None)
            if step == last_step:
                break
            if stops:
                say(f"stopped at step {step}, the end of an epoch; the same command goes on from here")
                return
    run.close()
    say(f"done: {settings.save_path / 'net_latest.pth'}")


# ---------------------------------------------------------------- testing


def evaluate(settings: EvalSettings) -> None:
    """Derain a set of images, measure them where clean ones are there, write and print what came out.

    Writes to the save path: a PNG per image, under the image's name, results.csv and results.json, and if
    the settings ask for them index.html, figure.png and the layers of rain. Videos and cameras go to derain_video.
    """
    source = video_source(settings.data_path) if settings.data_path and settings.pairs is None else None
    if source is not None:
        return derain_video(settings, source)
    if settings.frames is not None:
        raise InputError(f"--frames {settings.frames}: is for videos and cameras; leave it out")
    device = choose_device(settings.device)
    tile = parse_tile(settings.tile)
    weights = weights_file(settings.logdir)
    checksum = sha256_of(weights)  # now: a training may replace the file meanwhile
    network = fast_network(weights, settings, device)
    data_path = settings.data_path or default_data(settings)
    real = settings.pairs is None
    pairs: Sequence[Pair | Path] = find_pictures(settings, data_path) if real else find_pairs(data_path)
    label = data_set_label(settings, data_path, pairs)
    default_name = data_path.resolve().name if settings.pairs and label != settings.name else settings.name
    save_path = settings.save_path or Path("results") / default_name
    root = data_path if settings.recursive and data_path.is_dir() else None
    places = report.places(save_path, pairs, root, settings.show_rain)
    report.check_figure(settings, save_path, pairs, places)
    check_folder(save_path)
    provenance = Provenance(save_path, checksum, settings)
    how = f"{device} {settings.precision}, {settings.backend}"
    print(f"{label}: {number_of(len(pairs), 'image')} of {data_path}, weights {weights}, {how}", flush=True)

    rows: list[dict[str, Any]] = []
    refused: list[str] = []
    pictures: dict[str, page.Thumbnails] = {}
    chosen = page.shown(len(pairs)) if settings.page else set()

    def refuse(error: InputError) -> None:
        if settings.pairs is not None:
            raise error  # a mean over the rest of a set would pass for the set's
        refused.append(str(error))
        print(f"refused: {error}", file=sys.stderr, flush=True)

    def take(future: Future) -> None:
        try:
            row, small = future.result()
        except InputError as error:
            return refuse(error)
        rows.append({"data_set": label} | row)
        if small:
            pictures[row["image"]] = small
        figure = f" {row['psnr_y']:6.2f} dB" if "psnr_y" in row else ""
        seconds = "was there" if row["milliseconds"] is None else f"{row['milliseconds'] / 1000:.2f} s"
        print(f"[{len(rows) + len(refused)}/{len(pairs)}] {row['image']}{figure} {seconds}", flush=True)

    with ThreadPoolExecutor(2) as pool:  # to read, measure and write images while the network works
        finishing: deque[Future] = deque()
        for i, (pair, place, images) in enumerate(zip(pairs, places, ahead(pool, read_images, pairs), strict=True)):
            try:
                picture, clean = images.result()
            except InputError as error:
                refuse(error)
                continue
            began = time.perf_counter()
            derained, milliseconds = None, None
            if settings.skip_existing and provenance.made(place.output, rainy_file(pair)):
                derained = existing(place.output, picture)
            if derained is None:
                derained = derain_image(network, picture.rgb, tile, settings.quantize)
                milliseconds = round(1000 * (time.perf_counter() - began), 1)
            finishing.append(
                pool.submit(finish, pair, place, picture, clean, derained, milliseconds, provenance, i in chosen)
            )
            if len(finishing) > 1:
                take(finishing.popleft())
        for future in finishing:
            take(future)

    if rows and label == settings.name and settings.input_psnr_y is not None:
        found = report.means(rows, "input_")["psnr_y"]
        if abs(found - settings.input_psnr_y) > 0.01:  # as many pairs, but other pictures
            label = f"{data_path.resolve().name} (rainy input {found:.2f} dB), not {settings.name}"
            rows = [row | {"data_set": label} for row in rows]
    if rows:
        lines = [] if settings.pairs is None else report.summary_lines(settings, label, rows, pairs)
        times = [row["milliseconds"] for row in rows if row["milliseconds"] is not None]
        summary = {
            "data_set": {"name": label, "path": data_path, "images": len(pairs)},
            "protocol": PROTOCOL if lines else None,
            "means": dict(lines),
            "median_milliseconds": float(np.median(times)) if times else None,
            "refused": refused,
            "weights": {"path": weights, "sha256": checksum},
            "settings": dataclasses.asdict(settings),
            "environment": environment(device),
        }
        report.write_results(save_path, rows, summary)
        if settings.page:
            protocol = f"Figures: {PROTOCOL}. " if lines else ""
            note = f"{number_of(len(rows), 'image')} of {data_path}, weights {weights}, {how}. {protocol}"
            page.write_page(save_path, label if lines else f"Derained: {data_path.name}", note, lines, rows, pictures)
        if lines:
            protocol = "PReNet protocol: Y channel, mean of per-image figures; RGB beside it"
            print("\n" + report.table(f"{label}, {number_of(len(pairs), 'pair')} ({protocol})", lines))
        files = ["results.csv", "results.json", *(["index.html"] if settings.page else [])]
        if settings.figure is not None and report.write_figure(settings, save_path, rows, pairs, places):
            files.append(report.FIGURE)
        print(f"\n{number_of(len(rows), 'image')}, {', '.join(files)} in {save_path}")
    if refused:
        raise InputError(f"{len(refused)} of {len(pairs)} images were refused: see the lines that begin with 'refused'")
