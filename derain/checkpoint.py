"""A training run's folder: its state, weights, log and TensorBoard's events."""

import contextlib
import errno
import json
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import torch
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from torch import Tensor

from derain.cli import is_out_of_memory
from utils import InputError, plain, save_torch

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]


class RunFolder:
    """The folder of one run. Only one process at a time may use it; with `writes` False nothing is written.

    settings: of the run, as plain values. free: the names of those that may change when the run resumes.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], free: set[str], writes: bool = True) -> None:
        self.folder, self.settings, self.free, self.writes = folder, plain(settings), free, writes
        self.state_file = folder / "state_latest.pth"
        self.events: Any = None
        if writes:
            weakref.finalize(self, lock(folder / "lock").close)  # held for as long as this object lives

    def restore(self, resume: str) -> dict[str, Any] | None:
        """Load the training state, if the folder has one.

        resume: 'auto', 'never' (raise InputError if there is a state) or 'force' (accept changed settings).
        Raises InputError for a damaged state, or one trained with other settings.
        """
        if not self.state_file.exists():
            return None
        if resume == "never":
            raise InputError(f"{self.folder}: holds a training run already; choose another --save_path or remove it")
        try:
            state = torch.load(self.state_file, map_location="cpu", weights_only=True)
            before = state["settings"]
        except Exception as error:  # torch.load raises many types for a damaged file
            if isinstance(error, PermissionError) or is_out_of_memory(error):  # it may be whole
                raise
            raise InputError(
                f"{self.state_file}: damaged ({type(error).__name__}); remove it, and continue from the weights with "
                f"--init {self.folder / 'net_latest.pth'} and another --save_path"
            ) from error
        changed = [k for k, v in self.settings.items() if k not in self.free and before.get(k) != v]
        if changed and resume != "force":
            listed = ", ".join(f"{k} {before.get(k)} -> {self.settings[k]}" for k in changed)
            fix = "restore them, choose another --save_path, or --resume force"
            raise InputError(f"{self.state_file}: trained with other settings ({listed}); {fix}")
        return state

    def begin(self, step: int, environment: dict[str, Any]) -> None:
        """Record settings and machine, one line per part of the run."""
        self.log({"begin": step, "settings": self.settings, "environment": environment})
        if self.writes:
            (self.folder / "tensorboard").mkdir(exist_ok=True)
            # Not SummaryWriter: its thread would end on a full disk, and the run then wait for it for ever.
            self.events = EventsWriter(str(self.folder / "tensorboard/events"))
            resumed = SessionLog(status=SessionLog.START)  # what an earlier part wrote after this step is void
            self.events.write_event(Event(step=step + 1, wall_time=time.time(), session_log=resumed))
            self._add(step, summary.text("settings", f"```\n{json.dumps(self.settings, indent=1)}\n```"))

    def _add(self, step: int, content: Any) -> None:
        self.events.write_event(Event(step=step, wall_time=time.time(), summary=content))

    def save(self, state: dict[str, Any], epoch: int | None = None) -> None:
        """Write the training state, and its `state_dict` as net_latest.pth; at an epoch's end also under its number.

        The state comes last: a run that is killed before it takes these steps again.
        """
        if not self.writes:
            return
        weights = {key: value.cpu().contiguous() for key, value in state["state_dict"].items()}
        save_torch(self.folder / "net_latest.pth", weights)
        if epoch is not None:
            save_torch(self.folder / f"net_epoch{epoch}.pth", weights)
        save_torch(self.state_file, state | {"settings": self.settings})

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to log.jsonl."""
        if self.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            with open(self.folder / "log.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")

    def show(self, step: int, values: dict[str, float], tag: str = "", images: Sequence[Tensor] = ()) -> None:
        """Send values to TensorBoard, by tag, and a grid of images under `tag`: one row for each of `images`.

        images: each (N, 3, H, W), RGB in [0, 1].
        """
        if not self.writes:
            return
        for name, value in values.items():
            self._add(step, summary.scalar(name, value))
        if images:
            from torchvision.utils import make_grid

            grid = make_grid(torch.cat([row.float().clamp(0, 1) for row in images]), nrow=len(images[0]))
            self._add(step, summary.image(tag, grid))
        self.events.flush()

    def close(self) -> None:
        """Finish TensorBoard's file; on a full disk, which has been reported, as far as it got."""
        if self.events is not None:
            with contextlib.suppress(OSError):
                self.events.close()


def lock(path: Path) -> IO[str]:
    """Hold a file until the returned object is closed or the process ends, however it ends.

    Raises InputError while another process holds it. A file system without locks (some clusters) gets a warning.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "w", encoding="utf-8")  # noqa: SIM115, it stays open
    if fcntl is None:  # Windows
        return file
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # not inherited by processes that outlive a killed run
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            print(f"{path}: this file system has no locks; do not start a second run in the folder", flush=True)
            return file
        file.close()
        raise InputError(f"{path.parent}: another process is writing there; wait for it, or choose another") from error
    return file
