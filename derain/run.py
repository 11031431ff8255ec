"""A training run: its processes, the state it resumes from, and the folder of its files.

    torchrun --nproc_per_node=2 train_rain100H.py

Each process takes its share of every batch, and gradients are averaged, so the steps are those of
one process with the same batch. Only the main process writes files.
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar
from torch import Tensor, nn
from torch.optim import Optimizer
from tqdm import tqdm

from utils import InputError, choose_device, json_types, save_torch, write_atomically

RANK = int(os.environ.get("RANK", 0))
WORLD_SIZE = int(os.environ.get("WORLD_SIZE", 1))
IS_MAIN = RANK == 0
CHANGEABLE = ("recipe", "save_path", "device", "validate_every")  # when a run resumes


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


def averaged(values: list[float], device: torch.device) -> list[float]:
    """Return values averaged over the processes."""
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


def resume(
    folder: Path, settings: dict[str, Any], network: nn.Module, optimizer: Optimizer
) -> tuple[int, float]:
    """Load the folder's training state, if there is one; return its step and minutes.

    Raises InputError for a damaged state, one of other settings, or weights without a state.
    """
    path = folder / "state_latest.pth"
    if not path.exists():
        if (folder / "net_latest.pth").exists():
            raise InputError(f"{folder}: has weights but no state; choose another --save_path")
        return 0, 0.0
    changes = []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        before, now = state["settings"], json_types(settings)
        for name in before | now:
            if name not in CHANGEABLE and before.get(name) != now.get(name):
                changes.append(f"{name} {before.get(name)} -> {now.get(name)}")
        if not changes:
            network.load_state_dict(state["state_dict"])
            optimizer.load_state_dict(state["optimizer"])
            done = f"{folder}: trained for {state['step']} steps so far"
            say(f"{done}; a changed loss or network needs another --save_path")
            return state["step"], state["minutes"]
    except Exception as error:  # torch.load raises many types for a damaged file
        problem = f"unreadable, or of another network ({type(error).__name__})"
        fix = "choose another --save_path; --init can start from net_latest.pth"
        raise InputError(f"{path}: {problem}; {fix}") from error
    fix = f"restore them, or start from these weights: --init {folder} and another --save_path"
    raise InputError(f"{path}: trained with other settings ({', '.join(changes)}); {fix}")


class RunFolder:
    """Write one run's files from a step on, in the main process only.

    settings, environment: logged by name. TensorBoard drops events after that step.
    """

    def __init__(
        self, folder: Path, settings: dict[str, Any], step: int, environment: dict[str, Any]
    ) -> None:
        self.folder, self.settings = folder, json_types(settings)
        self.log({"begin": step, "settings": self.settings, "environment": environment})
        if IS_MAIN:
            # Events are written directly, because SummaryWriter's thread would hang on a full disk.
            (folder / "tensorboard").mkdir(exist_ok=True)
            self.events = EventsWriter(str(folder / "tensorboard/events"), f".{step}")
            atexit.register(self.events.close)
            start = SessionLog(status=SessionLog.START)
            self.events.write_event(Event(step=step + 1, session_log=start))

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to log.jsonl, and its numbers to TensorBoard if it has a step."""
        if IS_MAIN:
            path, lines = self.folder / "log.jsonl", b""
            if path.exists():
                lines = path.read_bytes()
            write_atomically(path, lines + json.dumps(json_types(line)).encode() + b"\n")
            if "step" in line:
                self._write_scalars(line, line["step"])
                self.events.flush()

    def _write_scalars(self, values: dict[str, Any], step: int, prefix: str = "") -> None:
        """Write the numbers of nested dictionaries under names such as train/loss."""
        for name, value in values.items():
            if isinstance(value, dict):
                self._write_scalars(value, step, f"{prefix}{name}/")
            else:
                summary = scalar(prefix + name, value)
                self.events.write_event(Event(step=step, wall_time=time.time(), summary=summary))

    def save(
        self, network: nn.Module, optimizer: Optimizer, step: int, minutes: float, epochs: float
    ) -> None:
        """Write net_latest.pth, after a whole number of epochs net_epochN.pth, and last the state.

        A run that is killed in between repeats its last steps.
        """
        if IS_MAIN:
            weights = {key: value.cpu().contiguous() for key, value in network.state_dict().items()}
            if epochs.is_integer():
                save_torch(self.folder / f"net_epoch{epochs:.0f}.pth", weights)
            save_torch(self.folder / "net_latest.pth", weights)
            state = {"step": step, "minutes": minutes, "settings": self.settings}
            state |= {"state_dict": weights, "optimizer": optimizer.state_dict()}
            save_torch(self.folder / "state_latest.pth", state)
