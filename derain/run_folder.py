"""The folder of a training run: its weights, training state, log and TensorBoard events."""

import contextlib
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import RecordWriter
from tensorboardX.summary import scalar
from torch import nn
from tqdm import tqdm

from derain.distributed import IS_MAIN
from utils import InputError, plain, save_torch

PROGRESS = "{percentage:5.1f}%|{bar:20}| {desc}, {remaining} left"


class RunFolder:
    """Reads and writes the files of one run, and shows its progress; only the main process does.

    settings: of the run, by name. free: the names of those that may change when the run resumes.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], free: Collection[str]) -> None:
        self.folder, self.settings, self.free = folder, plain(settings), free
        self.events: RecordWriter | None = None
        self.bar: tqdm | None = None

    def __enter__(self) -> "RunFolder":
        return self

    def __exit__(self, *_error: object) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.events is not None:
            with contextlib.suppress(OSError):  # a full disk, which has been reported
                self.events.close()

    def resume(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[int, float]:
        """Continue the folder's training state, if there is one; return its step and minutes.

        Raises InputError for a damaged state, or one of other settings.
        """
        path = self.folder / "state_latest.pth"
        if not path.exists():
            return 0, 0.0
        changes = []
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            for name, value in self.settings.items():
                before = state["settings"].get(name)
                if name not in self.free and before != value:
                    changes.append(f"{name} {before} -> {value}")
            if not changes:
                network.load_state_dict(state["state_dict"])
                optimizer.load_state_dict(state["optimizer"])
                return state["step"], state["minutes"]
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # torch.load raises many types for a damaged file
            problem = f"damaged, or of another network ({type(error).__name__})"
            fix = "remove it, or choose another --save_path; --init can start from net_latest.pth"
            raise InputError(f"{path}: {problem}; {fix}") from error
        fix = "restore them, or choose another --save_path"
        raise InputError(f"{path}: trained with other settings ({', '.join(changes)}); {fix}")

    def begin(self, step: int, progress: float, environment: dict[str, Any]) -> None:
        """Log the settings and the machine. TensorBoard forgets what follows `step`."""
        if not IS_MAIN:
            return
        place = self.folder / "tensorboard"
        place.mkdir(parents=True, exist_ok=True)
        # Events are written here, because SummaryWriter's thread would hang on a full disk.
        self.events = RecordWriter(str(place / f"events.out.tfevents.{time.time():.3f}"))
        self._add_event(0, file_version="brain.Event:2")
        self._add_event(step + 1, session_log=SessionLog(status=SessionLog.START))
        self.log({"begin": step, "settings": self.settings, "environment": environment})
        self.bar = tqdm(
            desc=f"step {step}",
            total=1,
            initial=progress,
            bar_format=PROGRESS,
            mininterval=1 if sys.stderr.isatty() else 10,
        )

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to log.jsonl, and its numbers to TensorBoard if it has a step."""
        if not IS_MAIN:
            return
        try:
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")
            if "step" in line:
                for name, value in numbers_of(line).items():
                    self._add_event(line["step"], summary=scalar(name, value))
            self.events.flush()
        except OSError as error:
            error.filename = error.filename or str(self.folder)
            raise

    def _add_event(self, step: int, **content: Any) -> None:
        event = Event(step=step, wall_time=time.time(), **content)
        self.events.write(event.SerializeToString())

    def show_progress(self, progress: float, text: str) -> None:
        """Show the share of the run that is done, and a text."""
        if self.bar is not None:
            self.bar.set_description_str(text, refresh=False)
            self.bar.update(min(progress, 1) - self.bar.n)

    def save_weights(self, name: str, network: nn.Module) -> None:
        """Write the network's weights, a bare state dict."""
        if IS_MAIN:
            save_torch(self.folder / name, weights_of(network))

    def save_state(
        self, network: nn.Module, optimizer: torch.optim.Optimizer, step: int, minutes: float
    ) -> None:
        """Write net_latest.pth, and then the training state.

        A run that is killed between the two takes the last steps again.
        """
        self.save_weights("net_latest.pth", network)
        state = {
            "state_dict": weights_of(network),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "minutes": minutes,
            "settings": self.settings,
        }
        if IS_MAIN:
            save_torch(self.folder / "state_latest.pth", state)


def weights_of(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's weights on the CPU."""
    return {key: value.cpu().contiguous() for key, value in network.state_dict().items()}


def numbers_of(values: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return the numbers of nested dictionaries under names such as train/loss."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= numbers_of(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)):
            found[prefix + name] = value
    return found
