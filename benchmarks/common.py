"""Measure candidates in turn, and print a table of medians."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from multiprocessing import get_context

import numpy as np
import torch
from torch import Tensor
from tqdm import trange

from derain.synthesize import add_rain, free_photographs, rain_layer
from utils import InputError, environment, to_tensor

Calls = Mapping[str, Callable[[], object]]


def rainy_and_clean(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return a free photograph, repeated if need be, with light rain and without: (1, 3, H, W)."""
    photograph = free_photographs(400, 600)["coffee"]
    repeats = (-(-height // photograph.shape[0]), -(-width // photograph.shape[1]), 1)
    clean = np.tile(photograph, repeats)[:height, :width]
    layer = rain_layer(height, width, "light", np.random.RandomState(0))
    return to_tensor(add_rain(clean, layer)).contiguous(), to_tensor(clean).contiguous()


def in_own_process(call: Callable, *arguments: object) -> Callable:
    """Return `call` in a process of its own, which does not reuse freed memory as this one does."""
    pool = get_context("spawn").Pool(1)
    return lambda: pool.apply(call, arguments)


def measure(calls: Calls, device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each call: candidates in turn (A B A B), after one round of warm-up.

    Other work of the machine falls on all candidates alike, so their ratios hold better than
    their times.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in trange(rounds + 1, desc="rounds"):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # a GPU's calls return early
            if turn > 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def print_table(seconds: Mapping[str, list[float]], notes: Mapping[str, str]) -> None:
    """Print median and quartiles, the median ratio to the first candidate, and a note for each."""
    first = np.array(next(iter(seconds.values())))
    print("| | median | quartiles | speed-up | |\n|---|---|---|---|---|")
    for name, times in seconds.items():
        low, median, high = np.percentile(times, [25, 50, 75])
        ratio = np.median(first / np.array(times))
        spread = f"{median:.3f} s | {low:.3f} to {high:.3f} s"
        print(f"| {name} | {spread} | {ratio:.2f} | {notes[name]} |")
    machine = environment(torch.device("cpu"))
    print(f"\n{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}")
