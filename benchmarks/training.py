"""Time of one training step, batch 8 of 100x100 patches: the plain published formulation against ours.

    python benchmarks/training.py                      # on the CPU: about two minutes on two cores
    python benchmarks/training.py --device cuda
    python benchmarks/training.py --profile            # where the time of our steps goes, on the CPU

Plain is NCHW, float32, with concatenations, SSIM with 11x11 windows, and a second forward pass that
only serves to print a PSNR, as published. Ours is the step of engine.train, in both precisions. All
begin with the same numbers and the same batch; the table's last column is the loss of the first step.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import plain_dargnet
from benchmarks.common import measure, report, summarise, tell_if_without_gpu
from derain.cli import run_script, setting
from derain.data.synthesize import add_rain, free_photographs, rain_layer
from derain.training import loss_parts, speed_up
from networks import DARGNet, convert_state_dict
from SSIM import SSIM
from utils import InputError, choose_device, to_tensor

PLAIN = "plain formulation, NCHW, second pass for a PSNR"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this benchmark."""

    batch_size: int = setting(8, "patches per step")
    patch_size: int = setting(100, "side of a patch in pixels")
    rounds: int = setting(7, "measured steps of each candidate, in turn")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    json_path: Path | None = setting(None, "file for the figures and the environment")
    compile: bool = setting(True, "measure --compile of the train scripts, too; needs a C++ compiler")
    profile: bool = setting(False, "print which operations take the time of our steps instead")


class Clock(TorchDispatchMode):
    """While active, adds up the seconds of each kind of operation; on the CPU, where a call ends with its work."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        began = time.perf_counter()
        result = operation(*args, **kwargs or {})
        self.seconds[self.kind(operation.overloadpacket.__name__, args)] += time.perf_counter() - began
        return result

    @staticmethod
    def kind(name: str, args: tuple) -> str:
        """In the words of the table: convolutions by their kernels, then PReLUs, then all the rest."""
        if "convolution" in name:
            backward = "backward" in name
            weight = args[2] if backward else args[1]
            kernel = "depthwise" if weight.shape[1] == 1 else f"{weight.shape[2]}x{weight.shape[3]}"
            return f"convolutions {kernel}, {'back' if backward else 'forward'}"
        return "PReLU" if name in ("leaky_relu", "leaky_relu_backward", "clamp_max") else "pointwise and sums"


def print_profile(name: str, step: Callable[[], float], rounds: int) -> None:
    """The share of each kind of operation in a step's time, medians over some steps."""
    for _ in range(3):
        step()
    totals, parts = [], []
    for _ in range(rounds):
        began = time.perf_counter()
        with Clock() as clock:
            step()
        totals.append(time.perf_counter() - began)
        parts.append(clock.seconds)
    print(f"\n{name}: {np.median(totals):.3f} s a step\n\n| operations | seconds | share |\n|---|---|---|")
    medians = {kind: float(np.median([part[kind] for part in parts])) for kind in parts[0]}
    medians["between them"] = float(np.median(totals)) - sum(medians.values())
    for kind, seconds in sorted(medians.items(), key=lambda item: -item[1]):
        if seconds > 0.005 * np.median(totals):
            print(f"| {kind} | {seconds:.3f} | {seconds / np.median(totals):.0%} |")


def plain_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Mean SSIM with 11x11 windows, five convolutions, zero padding: the loss as published, literally."""
    x = torch.arange(11.0, device=first.device) - 5
    line = torch.exp(-(x**2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 11, 11).contiguous()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window, padding=5, groups=3)

    mean1, mean2 = blur(first), blur(second)
    variance1, variance2 = blur(first * first) - mean1**2, blur(second * second) - mean2**2
    covariance = blur(first * second) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + 0.01**2) / (mean1**2 + mean2**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (variance1 + variance2 + 0.03**2)).mean()


class PlainStep:
    """Training steps of the plain formulation; a call does one and returns its loss."""

    def __init__(self, state: plain_dargnet.State, rainy: Tensor, clean: Tensor) -> None:
        self.state = {name: value.clone().to(rainy).requires_grad_() for name, value in state.items()}
        self.rainy, self.clean = rainy, clean
        self.optimizer = torch.optim.Adam([self.state[name] for name in self.state if name != "PR.weight"], lr=1e-3)

    def __call__(self) -> float:
        derained = plain_dargnet.dargnet(self.state, self.rainy)
        loss = 1 - plain_ssim(derained, self.clean) + F.l1_loss(derained, self.clean)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            shown = plain_dargnet.dargnet(self.state, self.rainy).clamp(0, 1)
            F.mse_loss(shown, self.clean).log10().item()
        return loss.item()


class OurStep:
    """Training steps as engine.train does them; a call does one and returns its loss."""

    def __init__(
        self, state: plain_dargnet.State, rainy: Tensor, clean: Tensor, half: bool, compiled: bool = False
    ) -> None:
        self.network = DARGNet()
        self.network.load_state_dict(convert_state_dict(state))
        self.network.to(rainy.device, memory_format=torch.channels_last)
        speed_up(self.network, prelus=rainy.device.type == "cpu" and not compiled)
        if compiled:
            self.network.compile(dynamic=False)
        self.rainy, self.clean, self.half = rainy, clean, half
        self.similarity = SSIM().to(rainy.device)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def __call__(self) -> float:
        derained, dissimilarity, difference = loss_parts(
            self.network, self.similarity, self.rainy, self.clean, self.half
        )
        loss = dissimilarity + difference
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        F.mse_loss(derained.detach().clamp(0, 1), self.clean).log10().item()
        return loss.item()


def prepare_plain(state: plain_dargnet.State, rainy: Tensor, clean: Tensor) -> None:
    """In the plain formulation's own process: make the step that plain() does."""
    global plain_step
    plain_step = PlainStep(state, rainy, clean)


def plain() -> float:
    """One step of what prepare_plain made."""
    return plain_step()


def batch(settings: Settings) -> tuple[Tensor, Tensor]:
    """Rainy and clean patches, each (N, 3, P, P) in [0, 1], of a free photograph with synthetic rain."""
    photograph, random = free_photographs("test")["coffee"], np.random.RandomState(0)
    side, patches = settings.patch_size, ([], [])
    for _ in range(settings.batch_size):
        top, left = (random.randint(length - side + 1) for length in photograph.shape[:2])
        clean = photograph[top : top + side, left : left + side]
        layer = rain_layer(side, side, "light", random)
        for images, image in zip(patches, (add_rain(clean, layer), clean), strict=True):
            images.append(to_tensor(image))
    rainy, clean = (torch.cat(images).contiguous() for images in patches)
    return rainy, clean


def main(settings: Settings) -> None:
    """Check that the first losses agree, measure, print the table."""
    device = choose_device(settings.device)
    state = plain_dargnet.random_published_state()
    rainy, clean = (images.to(device) for images in batch(settings))
    if settings.profile:
        if device.type != "cpu":
            raise InputError("--profile times operations as the CPU does them: add --device cpu")
        for name, half in (("ours, fp32", False), ("ours, bf16", True)):
            print_profile(name, OurStep(state, rainy, clean, half), settings.rounds)
        return
    candidates: dict[str, Callable[[], float]] = {}
    if device.type == "cpu":  # the scripts have their process keep freed memory; as published there is no such thing
        child = multiprocessing.get_context("spawn").Pool(1, prepare_plain, (state, rainy, clean))
        candidates[PLAIN] = lambda: child.apply(plain)
    else:
        candidates[PLAIN] = PlainStep(state, rainy, clean)
    candidates["ours, fp32 (default)"] = OurStep(state, rainy, clean, half=False)
    candidates["ours, bf16"] = OurStep(state, rainy, clean, half=True)
    if settings.compile:
        candidates["ours, fp32, --compile"] = OurStep(state, rainy, clean, half=False, compiled=True)
        candidates["ours, bf16, --compile"] = OurStep(state, rainy, clean, half=True, compiled=True)
    losses = {name: step() for name, step in candidates.items()}
    for name, loss in losses.items():
        if abs(loss - losses[PLAIN]) > (5e-3 if "bf16" in name else 1e-4):
            raise RuntimeError(f"{name}: a first loss of {loss}, not {losses[PLAIN]}")
    rows = summarise(
        measure(candidates, device, settings.rounds), {name: f"loss {loss:.6f}" for name, loss in losses.items()}
    )
    size = f"{settings.batch_size} patches of {settings.patch_size}x{settings.patch_size}"
    report(f"One training step, {size}", rows, device, settings.json_path)
    tell_if_without_gpu()


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
