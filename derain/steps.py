"""One training step, the pace of a run, and what to do when it diverges."""

import copy
import math
import statistics
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from derain.checkpoint import RunFolder
from derain.distributed import Processes
from derain.optim import Muon, learning_rate_factor
from derain.patches import GridPatches, RandomPatches
from DerainDataset import DerainDataset
from utils import InputError, choose_precision

if TYPE_CHECKING:
    from derain.train import TrainSettings


class Training:
    """Network, optimizer and everything else that changes with the steps."""

    def __init__(
        self,
        settings: "TrainSettings",
        network: nn.Module,
        patches: GridPatches | RandomPatches,
        ssim: nn.Module,
        processes: Processes,
    ) -> None:
        self.settings, self.network, self.patches, self.processes = settings, network, patches, processes
        self.device = next(network.parameters()).device
        self.precision = choose_precision(settings.precision, self.device)
        self.ssim = ssim.to(self.device)
        if settings.optimizer == "muon":
            self.optimizer: torch.optim.Optimizer = Muon(
                network, settings.muon_lr, settings.lr, weight_decay=settings.weight_decay, clip=settings.clip
            )
        else:
            groups = [{"params": network.parameters(), "initial_lr": settings.lr}]
            self.optimizer = torch.optim.Adam(groups, settings.lr)
        self.parallel = processes.wrap(network)
        self.step, self.lr_scale, self.rollbacks = 0, 1.0, 0
        steps = settings.epochs * patches.steps_per_epoch
        self.last_step = math.inf if settings.minutes else min(steps, settings.max_steps or math.inf)

    def take_step(self, data: DerainDataset, interrupted: Callable[[], int]) -> tuple[dict[str, float], bool]:
        """Train on one batch.

        Returns the loss, its parts and the training PSNR, and whether any process was interrupted.
        Raises InputError if the loss is not finite.
        """
        batch = self.patches.at(self.step, self.progress)
        part, weight = self.processes.share(batch)
        rainy, clean = (x.to(self.device) for x in data.batch(part))
        self.set_learning_rate()

        self.optimizer.zero_grad(set_to_none=True)
        values = torch.zeros(4, device=self.device)
        for rainy_part, clean_part in zip(*(x.chunk(self.settings.accumulate) for x in (rainy, clean)), strict=True):
            share = weight * len(rainy_part) / len(rainy)
            derained, ssim_loss, l1_loss = self.loss_parts(self.parallel, rainy_part, clean_part)
            loss = ssim_loss + l1_loss
            (share * loss).backward()
            mse = F.mse_loss(derained.detach().clamp(0, 1), clean_part)  # another pass for it would cost a quarter
            values += torch.stack([loss, l1_loss, ssim_loss, mse]).detach() * share / self.processes.size
        self.optimizer.step()
        self.step += 1

        summed = self.processes.sum(torch.cat([values.cpu(), torch.tensor([float(interrupted())])]))
        *means, mean_error, stops = summed.tolist()
        if not math.isfinite(means[0]):
            names = ", ".join(sorted({data.names[patch.pair] for patch in batch}))
            raise InputError(
                f"step {self.step}: the loss is {means[0]} on patches of {names}; {self.settings.save_path} keeps "
                f"the last training state. Try a lower learning rate, or --precision fp32"
            )
        psnr = -10 * math.log10(max(mean_error, 1e-10))
        return dict(zip(("loss", "l1", "ssim_loss", "psnr_rgb"), (*means, psnr), strict=True)), bool(stops)

    def loss_parts(self, network: nn.Module, rainy: Tensor, clean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the derained batch and the loss's two parts, 1 - SSIM and L1."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            derained = network(rainy)
        derained = derained.float()
        return derained, 1 - self.ssim(derained, clean), F.l1_loss(derained, clean)

    @property
    def progress(self) -> float:
        """Share of the run's steps that are done; 0 while its length is not known."""
        return self.step / self.last_step

    @property
    def rate(self) -> float:
        """The present learning rate of the first group of parameters."""
        return self.optimizer.param_groups[0]["lr"]

    def set_learning_rate(self) -> None:
        settings, per_epoch = self.settings, self.patches.steps_per_epoch
        if settings.minutes and math.isfinite(self.last_step):  # milestones keep their share of the run
            per_epoch = self.last_step / settings.epochs
        milestones = [milestone * per_epoch for milestone in settings.milestones]
        factor = learning_rate_factor(settings.schedule, self.step, self.last_step, settings.warmup, milestones)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor * self.lr_scale

    def fix_length(self, meter: "Meter") -> None:
        """With --minutes, set the number of steps once the pace of the first minute is known."""
        minutes = self.settings.minutes
        if minutes is None or math.isfinite(self.last_step):
            return
        enough = meter.steps > 5 and 60 * meter.minutes() >= min(60, 6 * minutes)
        if not self.processes.sum(torch.tensor([float(enough)])).item():
            return
        seconds = meter.seconds_per_step() * self.stage_costs()
        wanted = (60 * minutes - meter.startup) / seconds
        steps = self.processes.sum(torch.tensor([wanted], dtype=torch.float64)) / self.processes.size
        self.last_step = max(self.step + 1, round(steps.item()))
        pace = f"{meter.seconds_per_step():.3f} s a step at first, {seconds:.3f} s on average"
        self.processes.say(f"{pace}: {self.last_step} steps in {minutes:g} minutes")

    def stage_costs(self) -> float:
        """Return the mean time of a step over the run, in units of a step of its first stage."""
        if not isinstance(self.patches, RandomPatches):
            return 1.0
        network, stages = copy.deepcopy(self.network), self.patches.stages
        times = []
        for stage in stages:
            batch = torch.rand(stage.batch_size, 3, stage.size, stage.size, device=self.device)
            batch = batch.to(memory_format=torch.channels_last)
            elapsed = []
            for _ in range(4):
                began = time.perf_counter()
                _, ssim_loss, l1_loss = self.loss_parts(network, batch, batch)
                (ssim_loss + l1_loss).backward()
                float(l1_loss.detach())  # waits for a GPU
                elapsed.append(time.perf_counter() - began)
            times.append(min(elapsed))
        total = sum(stage.share for stage in stages)
        return sum(s.share / total * t for s, t in zip(stages, times, strict=True)) / times[0]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that resuming needs; the weights are under `state_dict`."""
        numbers = {name: getattr(self, name) for name in ("step", "last_step", "lr_scale", "rollbacks")}
        return {"state_dict": self.network.state_dict(), "optimizer": self.optimizer.state_dict(), **numbers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what state_dict returned."""
        self.network.load_state_dict(state["state_dict"])
        chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
            group |= {k: v for k, v in settings.items() if k not in ("steps", "running_norm")}  # --resume force
        self.step, self.lr_scale, self.rollbacks = (state[k] for k in ("step", "lr_scale", "rollbacks"))
        if self.settings.minutes:
            self.last_step = state["last_step"]


class Meter:
    """Means of the values since the last epoch, the pace, and when the next line of progress is due."""

    def __init__(self, step: int) -> None:
        self.began, self.steps, self.shown, self.startup = time.monotonic(), 0, 0.0, 0.0
        self.recent: deque[float] = deque(maxlen=500)  # times at which steps ended
        self.restart()

    def restart(self) -> None:
        self.sums, self.count = Counter[str](), 0

    def add(self, values: dict[str, float]) -> None:
        self.recent.append(time.monotonic())
        self.startup = self.startup or time.monotonic() - self.began  # until the end of the first step
        self.steps += 1
        self.count += 1
        self.sums.update(values)

    def means(self) -> dict[str, float]:
        return {name: total / self.count for name, total in self.sums.items()}

    def minutes(self) -> float:
        return (time.monotonic() - self.began) / 60

    def seconds_per_step(self) -> float:
        if len(self.recent) < 2:
            return math.nan
        return (self.recent[-1] - self.recent[0]) / (len(self.recent) - 1)

    def is_due(self) -> bool:
        if time.monotonic() - self.shown < 10:
            return False
        self.shown = time.monotonic()
        return True

    def line(self, training: Training) -> str:
        means, last = self.means(), training.last_step
        left = "?" if math.isinf(last) else f"{(last - training.step) * self.seconds_per_step() / 60:.0f}"
        total = "?" if math.isinf(last) else last
        return (
            f"step {training.step}/{total} loss {means['loss']:.4f} psnr {means['psnr_rgb']:.2f} dB "
            f"lr {training.rate:.1e} {self.seconds_per_step():.3f} s a step, {left} min left"
        )


class DivergenceGuard:
    """Notices a diverging run, and returns it to its last good state at half the learning rate.

    A run has diverged when the median loss of its last 50 steps is above four times that of the last 500. States
    are kept in memory every 500 steps; the one before the last is good, because divergence shows sooner.
    """

    def __init__(self, training: Training) -> None:
        self.training = training
        self.losses: deque[float] = deque(maxlen=500)
        self.states = [copy.deepcopy(training.state_dict())]

    def diverged(self, loss: float) -> bool:
        self.losses.append(loss)
        if self.training.step % 500 == 0:
            self.states = [self.states[-1], copy.deepcopy(self.training.state_dict())]
        recent = list(self.losses)[-50:]
        return len(self.losses) >= 200 and statistics.median(recent) > 4 * statistics.median(self.losses)

    def go_back(self, folder: RunFolder) -> None:
        """Restore the last good state. Raises InputError at the fourth time."""
        training, found_at = self.training, self.training.step
        rollbacks, scale = training.rollbacks + 1, training.lr_scale / 2
        if rollbacks > 3:
            raise InputError(
                f"step {found_at}: training diverged four times, at ever lower learning rates; {folder.folder} keeps "
                "the last training state. Train with lower --lr and --muon_lr, or higher --weight_decay"
            )
        last_step = training.last_step
        training.load_state_dict(copy.deepcopy(self.states[0]))
        training.rollbacks, training.lr_scale, training.last_step = rollbacks, scale, last_step
        self.losses.clear()
        self.states = self.states[:1]
        where = f"back to step {training.step} at {scale:g} of the learning rate"
        training.processes.say(f"step {found_at}: diverged; {where}")
        folder.log({"diverged": found_at, "back_to": training.step, "lr_scale": scale})
