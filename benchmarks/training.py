"""Time of one training step, 8 patches of 100x100: the plain published formulation against ours.

    python -m benchmarks.training                      # on the CPU: two minutes on two cores
    python -m benchmarks.training --device cuda

Plain is NCHW, float32, with concatenations, SSIM with 11x11 windows, and a second forward pass
that only serves to print a PSNR, as published. All begin with the same numbers and the same batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain_dargnet
from benchmarks.common import in_own_process, measure, print_table, rainy_and_clean
from derain.cli import run_script, setting
from derain.optim import Muon
from derain.train import take_step
from networks import DARGNet, convert_state_dict
from train_rain100L import loss
from utils import choose_device


@dataclass(frozen=True)
class Settings:
    batch_size: int = setting(8, "patches per step")
    patch_size: int = setting(100, "side of a patch in pixels")
    rounds: int = setting(7, "measured steps of each candidate, in turn")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")


def plain_ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return mean SSIM with 11x11 windows, five convolutions, zero padding, as published."""
    line = torch.exp(-((torch.arange(11.0, device=first.device) - 5) ** 2) / (2 * 1.5**2))
    window = torch.outer(line, line)
    window = (window / window.sum()).expand(3, 1, 11, 11).contiguous()

    def blur(image: Tensor) -> Tensor:
        return F.conv2d(image, window, padding=5, groups=3)

    mean1, mean2 = blur(first), blur(second)
    variance1, variance2 = blur(first * first) - mean1**2, blur(second * second) - mean2**2
    covariance = blur(first * second) - mean1 * mean2
    luminance = (2 * mean1 * mean2 + 0.01**2) / (mean1**2 + mean2**2 + 0.01**2)
    return (luminance * (2 * covariance + 0.03**2) / (variance1 + variance2 + 0.03**2)).mean()


def plain_step(state: plain_dargnet.State, rainy: Tensor, clean: Tensor) -> float:
    """Take one step of the plain formulation from `state`, and return its loss."""
    state = {name: value.clone().requires_grad_() for name, value in state.items()}
    optimizer = torch.optim.Adam(state.values(), lr=1e-3)
    derained = plain_dargnet.dargnet(state, rainy)
    total = 1 - plain_ssim(derained, clean) + F.l1_loss(derained, clean)
    total.backward()
    optimizer.step()
    with torch.no_grad():
        F.mse_loss(plain_dargnet.dargnet(state, rainy).clamp(0, 1), clean).log10().item()
    return total.item()


def our_step(
    state: plain_dargnet.State, rainy: Tensor, clean: Tensor, bf16: bool = True, muon: bool = False
) -> Callable[[], float]:
    """Return a function that takes one step as derain/train.py does, and returns its loss."""
    network = DARGNet().to(rainy.device, memory_format=torch.channels_last)
    network.load_state_dict(convert_state_dict(state))
    optimizer = Muon(network) if muon else torch.optim.Adam(network.parameters(), lr=1e-3)
    precision = "bf16" if bf16 else "fp32"
    return lambda: take_step(network, optimizer, loss, (rainy, clean), precision)["loss"]


def main(settings: Settings) -> None:
    """Check that the first losses agree, measure, and print the table."""
    device, side = choose_device(settings.device), settings.patch_size
    state = plain_dargnet.random_published_state()
    state = {name: value.to(device) for name, value in state.items()}
    images = rainy_and_clean(side, settings.batch_size * side)
    rainy, clean = (torch.cat(image.split(side, dim=3)).to(device) for image in images)
    batch = [image.to(memory_format=torch.channels_last) for image in (rainy, clean)]
    plain: Callable[[], float] = partial(plain_step, state, rainy, clean)
    if device.type == "cpu":
        plain = in_own_process(plain_step, state, rainy, clean)
    calls = {
        "plain formulation, NCHW, second pass for a PSNR": plain,
        "ours, fp32 (default)": our_step(state, *batch, bf16=False),
        "ours, bf16": our_step(state, *batch),
        "ours, bf16, Muon": our_step(state, *batch, muon=True),
    }
    losses = {name: step() for name, step in calls.items()}
    if max(losses.values()) - min(losses.values()) > 5e-3:
        raise RuntimeError(f"the first losses differ: {losses}")
    notes = {name: f"loss {loss:.6f}" for name, loss in losses.items()}
    print_table(measure(calls, device, settings.rounds), notes)


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
