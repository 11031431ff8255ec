"""The processes that torchrun started to train one network; alone, nothing here does anything.

    torchrun --nproc_per_node=2 train_rain100H.py

Each process takes its share of every batch, and gradients are averaged, so the steps are those of
one process with the same batch. The main process writes the files.
"""

import atexit
import os
import sys

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

from utils import choose_device

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
IS_MAIN = RANK == 0


def connect(device_name: str) -> torch.device:
    """Connect the processes, and return this one's device: of several GPUs, each takes its own."""
    device = choose_device(device_name)
    if WORLD_SIZE > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        atexit.register(dist.destroy_process_group)
    return device


def share_of(rainy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return this process's part of a batch, and its weight in the loss; the mean weight is 1.

    Where a batch has fewer items than there are processes, the others get an item of weight 0.
    """
    part = slice(RANK, None, WORLD_SIZE)
    weight = len(rainy[part]) * WORLD_SIZE / len(rainy)
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


def say(line: str) -> None:
    """Print a line above the progress bar, once for all processes."""
    if IS_MAIN:
        tqdm.write(line)
        sys.stdout.flush()
