"""The parts of training: a run's files, the order of the patches, the learning rate, averaging, signals.

engine.train puts them together; read that first.
"""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tensorboardX import SummaryWriter
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import Sampler

from derain.inference import folded_near
from derain.settings import TrainSettings
from networks import DARGNet, DualAttention
from utils import InputError, append_line, keep_under, lock, plain, save_torch


class Run:
    """A training run's files: its state, weights, log and TensorBoard's events.

    Of several processes that train together the first one writes them; in the others nothing is
    written. Another run that uses the folder is refused.
    """

    def __init__(
        self,
        settings: TrainSettings,
        network: DARGNet,
        average: AveragedModel | None,
        optimizer: torch.optim.Adam,
        writes: bool = True,
    ) -> None:
        self.folder, self.resume, self.writes = settings.save_path, settings.resume, writes
        if writes:
            weakref.finalize(self, lock(self.folder / "lock").close)  # held for as long as this object lives
        self.settings = plain(dataclasses.asdict(settings))
        self.free = set(settings.FREE) - ({"epochs", "max_steps"} if settings.schedule == "cosine" else set())
        self.network, self.average, self.optimizer = network, average, optimizer
        self.latest, self.previous = self.folder / "state_latest.pth", self.folder / "state_previous.pth"
        self.shown: dict[str, float] = {}  # the last of each figure that TensorBoard got

    def restore(self) -> int:
        """Load the newest whole training state of the folder, if there is one; returns its step."""
        files = [path for path in (self.latest, self.previous) if path.exists()]
        if files and self.resume == "never":
            raise InputError(f"{self.folder}: holds a training run already; choose another --save_path or remove it")
        for path in files:
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                before = state["settings"]
                break
            except Exception as error:  # torch.load raises many types for a damaged file
                print(f"{path}: damaged ({type(error).__name__}); trying the state before it")
        else:
            if files:
                raise InputError(f"{self.folder}: no training state is whole; remove {' and '.join(map(str, files))}")
            return 0
        changed = [k for k, v in self.settings.items() if k not in self.free and before.get(k) != v]
        if changed and self.resume != "force":
            listed = ", ".join(f"{k} {before.get(k)} -> {self.settings[k]}" for k in changed)
            remedy = "restore them, choose another --save_path, or --resume force"
            raise InputError(f"{path}: trained with other settings ({listed}); {remedy}")
        if path == self.previous and self.latest.exists() and self.writes:
            # The next save would else put the damaged state in the place of this good one.
            self.latest.replace(self.latest.with_name(self.latest.name + ".damaged"))
        self.network.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None and state["average"] is not None:
            self.average.load_state_dict(state["average"])
        if self.writes:
            print(f"going on from {path}, step {state['step']}")
        return state["step"]

    def begin(self, step: int, surroundings: dict[str, Any]) -> None:
        """Record the settings and the machine, one line per part of the run, before the first step."""
        self.log({"begin": step, "settings": self.settings, "environment": surroundings})
        if self.writes:
            self.tensorboard = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
            self.tensorboard.add_text("settings", f"```\n{json.dumps(self.settings, indent=1)}\n```", step)
            self.tensorboard.add_text("environment", f"```\n{json.dumps(plain(surroundings), indent=1)}\n```", step)

    def save(self, step: int, epoch: int | None = None) -> None:
        """Write the state and the latest weights; those of a finished epoch also under its number."""
        if not self.writes:
            return
        state = {
            "model": self.network.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "optimizer": self.optimizer.state_dict(),
            "step": step,
            "settings": self.settings,
        }
        if self.latest.exists():
            keep_under(self.latest, self.previous)  # a second name, so that the first is there at any moment
        save_torch(self.latest, state)
        weights = {key: value.cpu().contiguous() for key, value in self.best_network().state_dict().items()}
        save_torch(self.folder / "net_latest.pth", weights)
        if epoch is not None:
            save_torch(self.folder / f"net_epoch{epoch}.pth", weights)

    def close(self) -> None:
        """Give TensorBoard the settings beside the last figures, to compare runs by (HPARAMS), and finish its file."""
        if self.writes:
            settings = {name: value for name, value in self.settings.items() if name not in self.free}
            settings = {
                name: value if isinstance(value, int | float) else str(value) for name, value in settings.items()
            }
            last = {tag: value for tag, value in self.shown.items() if tag.startswith(("train/", "validation/"))}
            self.tensorboard.add_hparams(settings, last, name="hparams")
            self.tensorboard.close()

    def best_network(self) -> DARGNet:
        """The averaged network if there is one, else the trained one."""
        return self.network if self.average is None else self.average.module

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to log.jsonl."""
        if self.writes:
            append_line(self.folder / "log.jsonl", json.dumps(plain(line)))

    def show(self, step: int, figures: dict[str, float], tag: str = "", images: Sequence[Tensor] = ()) -> None:
        """Hand TensorBoard figures by their tags, and under `tag` a row of up to four of each of the images, if any.

        images: each (N, 3, H, W), RGB in [0, 1].
        """
        if not self.writes:
            return
        self.shown |= figures
        for name, value in figures.items():
            self.tensorboard.add_scalar(name, value, step)
        if images:
            from torchvision.utils import make_grid  # testing does without torchvision, and its 160 MB

            rows = [row[:4].detach().float().clamp(0, 1).cpu() for row in images]
            self.tensorboard.add_image(tag, make_grid(torch.cat(rows), nrow=len(rows[0])), step)


class EpochBatches(Sampler):
    """Shuffled batches of patch numbers; the order depends on the seed and the epoch alone.

    rank, size: of several processes that train together, which one this is; each takes its part of
    every batch.
    """

    def __init__(self, patches: int, batch_size: int, seed: int, rank: int = 0, size: int = 1) -> None:
        self.patches, self.batch_size, self.seed, self.rank, self.size = patches, batch_size, seed, rank, size
        self.per_epoch = math.ceil(patches / batch_size)
        self._epoch = -1  # of which the order is at hand
        self.start(0)

    def start(self, epoch: int, first: int = 0) -> None:
        """Prepare to give an epoch's batches, from number `first` on."""
        self.epoch, self.first = epoch, first

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.epoch * self.per_epoch + self.first, (self.epoch + 1) * self.per_epoch):
            batch = self.of(step)
            yield batch[self.rank :: self.size] or batch[:1]  # never empty; its weight is 0 then

    def of(self, step: int) -> list[int]:
        """The patches of a step's whole batch."""
        epoch, i = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._order = np.random.RandomState([self.seed % 2**32, epoch]).permutation(self.patches)
            self._epoch = epoch
        return self._order[i * self.batch_size : (i + 1) * self.batch_size].tolist()

    def weight(self, step: int) -> float:
        """What this process's part of a step's batch counts among the processes; their mean is 1."""
        batch = range(self.patches)[step % self.per_epoch * self.batch_size :][: self.batch_size]
        return len(batch[self.rank :: self.size]) * self.size / len(batch)

    def __len__(self) -> int:
        return self.per_epoch - self.first


def learning_rate(settings: TrainSettings, step: int, per_epoch: int, last_step: int) -> float:
    """The rate of step `step` (counted from 0) of `last_step`, where an epoch has `per_epoch` steps."""
    if settings.schedule == "multistep":
        return settings.lr * 0.2 ** sum(step >= milestone * per_epoch for milestone in settings.milestones)
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup) / max(1, last_step - settings.warmup)))


def augmented(rainy: Tensor, clean: Tensor, settings: TrainSettings, step: int, rank: int = 0) -> tuple[Tensor, Tensor]:
    """A batch, each (N, 3, H, W) RGB in [0, 1], as the settings vary it; seed, step and rank decide how."""
    random = np.random.RandomState([settings.seed % 2**32, step] + [rank] * (rank > 0))
    if settings.augment:
        rainy, clean = random_flips(rainy, clean, random)
    if settings.recombine or settings.gain:
        rainy = other_rain(rainy, clean, settings.recombine, settings.gain, random)
    return rainy, clean


def random_flips(rainy: Tensor, clean: Tensor, random: np.random.RandomState) -> tuple[Tensor, Tensor]:
    """Mirror each pair left-right, upside down, both or not at all.

    No quarter turns: rain falls, and streaks that lie flat would be another problem.
    """
    draws = torch.from_numpy(random.randint(2, size=(2, len(rainy), 1, 1, 1)))
    for axis, draw in zip((-1, -2), draws.bool().to(rainy.device), strict=True):
        rainy, clean = (torch.where(draw, x.flip(axis), x) for x in (rainy, clean))
    return rainy, clean


def other_rain(rainy: Tensor, clean: Tensor, recombine: bool, gain: float, random: np.random.RandomState) -> Tensor:
    """Rainy patches for the clean ones with the batch's layers of rain shuffled, stronger or fainter.

    Rain in these data sets is one layer added to the clean image and clipped at white, so a layer is the
    difference of a pair; where it was clipped, it is fainter than it was.
    """
    order = torch.from_numpy(random.permutation(len(rainy))) if recombine else torch.arange(len(rainy))
    strength = torch.from_numpy(random.uniform(1 - gain, 1 + gain, (len(rainy), 1, 1, 1))).to(rainy)
    return (clean + strength * (rainy - clean)[order.to(rainy.device)]).clamp(max=1)


def moving_average(decay: float) -> Any:
    """An exponential moving average that forgets its first steps sooner than its later ones."""

    @torch.no_grad()
    def update(averaged: list[Tensor], current: list[Tensor], count: Tensor | int) -> None:
        count = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + count) / (10 + count)))

    return update


def loss_parts(
    network: nn.Module, similarity: nn.Module, rainy: Tensor, clean: Tensor, half: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The derained batch, and the loss's two parts: 1 - SSIM and L1. half: the network computes in bfloat16."""
    with torch.autocast(rainy.device.type, torch.bfloat16, enabled=half):
        derained = network(rainy.to(memory_format=torch.channels_last))
    derained = derained.float()
    return derained, 1 - similarity(derained, clean), F.l1_loss(derained, clean)


class SingleSlopeReLU(torch.autograd.Function):
    """PReLU with one slope: any float tensor and the slope (1,) -> the same shape.

    torch's own backward pass writes the slope's gradient out for every value before it adds them
    up, on the CPU in a loop that isn't vectorised: an eighth of a training step.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, slope: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope.item()
        return F.leaky_relu(x, ctx.slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        by_channel = x.clamp_max(0).mul_(gradient).sum((0, 2, 3))
        before = torch.ops.aten.leaky_relu_backward(gradient, x, ctx.slope, False)
        return before, by_channel.sum(dtype=torch.float32).view(1)


class SingleSlopePReLU(nn.PReLU):
    """nn.PReLU() for (N, C, H, W) with the faster backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return SingleSlopeReLU.apply(x, self.weight)


class LeanDualAttention(DualAttention):
    """DualAttention with fewer passes over memory: one convolution less (inference.folded_near), sums in place.

    The same values and gradients up to rounding. The fold is of the weights, so it is done anew in every
    step, and gradients go through it; that is nothing beside a convolution of images.
    """

    def forward(self, x: Tensor) -> Tensor:
        spatial = self.spatial
        with torch.autocast(x.device.type, enabled=False):  # a product of weights is not to be rounded twice
            near_weight, near_bias = folded_near(spatial)
        first, second = spatial.merge.weight.split(x.shape[1], dim=1)
        middle = spatial.act(spatial.conv_d2(x))
        y = spatial.act(F.conv2d(x, near_weight, near_bias, padding=1).add_(F.conv2d(middle, second)))
        far = spatial.act(spatial.conv_d5(x))
        y = F.conv2d(y, first, spatial.merge.bias).add_(F.conv2d(far, second))
        return (y * self.channel(x)).add_(x)


def speed_up(network: DARGNet, prelus: bool = True) -> None:
    """Give parts of a network faster forward and backward passes; its parameters and their names stay what they are.

    prelus: those too; only worth it on the CPU, without torch.compile.
    """
    for module in network.modules():
        if type(module) is DualAttention:
            module.__class__ = LeanDualAttention  # the same parts under another forward
        elif prelus and type(module) is nn.PReLU and module.num_parameters == 1:
            module.__class__ = SingleSlopePReLU


@contextmanager
def interrupts_noted() -> Iterator[Callable[[], bool]]:
    """Within this context Ctrl-C and SIGTERM only set a flag; the function it gives tells whether they did."""
    noted: list[int] = []
    before = {s: signal.signal(s, lambda number, _: noted.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def workers_watched() -> Iterator[None]:
    """Turn the death of a DataLoader worker into InputError.

    torch reports it from wherever the program is; a patch that was just being fetched ends in a broken connection.
    """
    try:
        yield
    except (RuntimeError, EOFError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
            raise
        raise InputError(
            "a process that reads patches died, of too little memory perhaps (fewer --workers take less); "
            "the same command goes on from the last training state"
        ) from error


@contextmanager
def compiler_watched() -> Iterator[None]:
    """Turn a failure of torch.compile, which shows when the network is first used, into InputError."""
    try:
        yield
    except RuntimeError as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"--compile: torch could not compile the network ({reason}); leave --compile out") from error


def ignore_interrupts(_worker: int) -> None:
    """For DataLoader workers: Ctrl-C and a SIGTERM to all reach them too, but only the main process may act."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
