"""The processes that torchrun started to train one network; alone, nothing here does anything.

    torchrun --nproc_per_node=2 train_rain100H.py

Each process takes its share of every batch, and gradients are averaged, so the steps are those of
one process with the same batch. The main process writes the files.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from utils import choose_device

Result = TypeVar("Result")
RANK = int(os.environ.get("RANK") or 0)
WORLD_SIZE = int(os.environ.get("WORLD_SIZE") or 1)
IS_MAIN = RANK == 0


@contextmanager
def connected(device_name: str) -> Iterator[torch.device]:
    """Connect the processes, and yield this one's device: of several GPUs, each takes its own."""
    device = choose_device(device_name)
    if WORLD_SIZE == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK") or 0))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield device
    finally:
        dist.destroy_process_group()


def share_of(rainy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return this process's part of a batch, and its weight in the loss; the mean weight is 1.

    Where a batch has fewer items than there are processes, the others get an item of weight 0.
    """
    weight = len(rainy[RANK::WORLD_SIZE]) * WORLD_SIZE / len(rainy)
    part = slice(RANK, None, WORLD_SIZE)
    if weight == 0:
        part = slice(1)
    return rainy[part], clean[part], weight


def means(values: list[float], device: torch.device) -> list[float]:
    """Return the means of values over the processes."""
    if WORLD_SIZE == 1:
        return values
    tensor = torch.tensor(values, device=device)
    dist.all_reduce(tensor)
    return (tensor / WORLD_SIZE).tolist()


def main_process_first(call: Callable[[], Result]) -> Result:
    """Return call(), made by the main process first, then by the others, who find its files."""
    if WORLD_SIZE > 1 and not IS_MAIN:
        dist.barrier()
    result = call()
    if WORLD_SIZE > 1 and IS_MAIN:
        dist.barrier()
    return result


def say(line: str) -> None:
    """Print a line, once for all processes, above a progress bar."""
    if IS_MAIN:
        with tqdm.external_write_mode():
            print(line, flush=True)
