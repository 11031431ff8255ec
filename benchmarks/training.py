"""Time of one training step, batch 8 of 100x100 patches: the plain published formulation against ours.

    python -m benchmarks.training                      # on the CPU: about two minutes on two cores
    python -m benchmarks.training --device cuda

Plain is NCHW, float32, with concatenations, SSIM with 11x11 windows, and a second forward pass that
only serves to print a PSNR, as published. Ours is the step of train, in both precisions. All
begin with the same numbers and the same batch; the table's last column is the loss of the first step.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain_dargnet
from benchmarks.common import measure, report, summarise, tell_if_without_gpu
from derain.cli import run_script, setting
from derain.optim import Muon
from derain.synthesize import add_rain, free_photographs, rain_layer
from networks import DARGNet, convert_state_dict
from SSIM import SSIM
from utils import choose_device, to_tensor

PLAIN = "plain formulation, NCHW, second pass for a PSNR"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this benchmark."""

    batch_size: int = setting(8, "patches per step")
    patch_size: int = setting(100, "side of a patch in pixels")
    rounds: int = setting(7, "measured steps of each candidate, in turn")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    json_path: Path | None = setting(None, "file for the times and the environment")


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
    """Training steps as derain.steps takes them; a call does one and returns its loss."""

    def __init__(self, state: plain_dargnet.State, rainy: Tensor, clean: Tensor, bf16: bool) -> None:
        self.network = DARGNet()
        self.network.load_state_dict(convert_state_dict(state))
        self.network.to(rainy.device, memory_format=torch.channels_last)
        self.rainy, self.clean = (x.to(memory_format=torch.channels_last) for x in (rainy, clean))
        self.bf16, self.ssim = bf16, SSIM().to(rainy.device)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-3)

    def __call__(self) -> float:
        with torch.autocast(self.rainy.device.type, torch.bfloat16, enabled=self.bf16):
            derained = self.network(self.rainy)
        derained = derained.float()
        loss = 1 - self.ssim(derained, self.clean) + F.l1_loss(derained, self.clean)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        F.mse_loss(derained.detach().clamp(0, 1), self.clean).log10().item()
        return loss.item()


class MuonStep(OurStep):
    """The same steps with Muon in Adam's place."""

    def __init__(self, state: plain_dargnet.State, rainy: Tensor, clean: Tensor) -> None:
        super().__init__(state, rainy, clean, bf16=True)
        self.optimizer = Muon(self.network)


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
    candidates: dict[str, Callable[[], float]] = {}
    if device.type == "cpu":  # the scripts have their process keep freed memory; as published there is no such thing
        child = multiprocessing.get_context("spawn").Pool(1, prepare_plain, (state, rainy, clean))
        candidates[PLAIN] = lambda: child.apply(plain)
    else:
        candidates[PLAIN] = PlainStep(state, rainy, clean)
    candidates["ours, fp32 (default)"] = OurStep(state, rainy, clean, bf16=False)
    candidates["ours, bf16"] = OurStep(state, rainy, clean, bf16=True)
    candidates["ours, bf16, Muon"] = MuonStep(state, rainy, clean)
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
