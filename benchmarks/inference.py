"""Time of one derained image: the plain published formulation against what this repository runs.

    python -m benchmarks.inference                     # 481x321 on the CPU: about a minute on two cores
    python -m benchmarks.inference --device cuda --height 1080 --width 1920

Plain is NCHW, float32, with concatenations, as published. "bf16" is --precision bf16 of the test
scripts; its column tells how far its images are from those of float32.
"""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks import plain_dargnet
from benchmarks.common import measure, report, summarise, tell_if_without_gpu
from derain.cli import run_script, setting
from derain.inference import derain, weights_file
from derain.inference import fold
from derain.synthesize import add_rain, free_photographs, rain_layer
from networks import DARGNet, convert_state_dict, load_network
from SSIM import psnr
from utils import choose_device, quantize, to_image, to_tensor

PLAIN = "plain formulation, NCHW"


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line of this benchmark."""

    logdir: Path = setting(Path("logs/Rain100L"), "folder that holds net_latest.pth, or a .pth file")
    height: int = setting(321, "pixels")
    width: int = setting(481, "pixels")
    rounds: int = setting(7, "measured calls of each candidate, in turn")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    json_path: Path | None = setting(None, "file for the times and the environment")


def published_state(network: DARGNet) -> plain_dargnet.State:
    """The network's numbers under the published names, as the plain formulation takes them."""
    published_names = {name: name for name in plain_dargnet.published_shapes()}
    weights = network.state_dict()
    state = {"PR.weight": torch.zeros(1)}
    for ours, theirs in convert_state_dict(published_names).items():
        state[theirs] = weights[ours]
    return state


def prepare_plain(state: plain_dargnet.State, rainy: torch.Tensor) -> None:
    """In the plain formulation's own process: keep what it is run on."""
    global plain_arguments
    plain_arguments = (state, rainy)


@torch.inference_mode()
def plain() -> torch.Tensor:
    """The plain formulation on what prepare_plain was given."""
    return plain_dargnet.dargnet(*plain_arguments)


def main(settings: Settings) -> None:
    """Measure, compare every candidate's image with the plain one's, and print the table."""
    device = choose_device(settings.device)
    network = load_network(weights_file(settings.logdir)).to(device)
    folded, half = fold(network), fold(network, torch.bfloat16)
    state = {key: value.to(device) for key, value in published_state(network).items()}

    photograph = free_photographs("test")["coffee"]
    repeats = (-(-settings.height // photograph.shape[0]), -(-settings.width // photograph.shape[1]), 1)
    clean = np.tile(photograph, repeats)[: settings.height, : settings.width]
    layer = rain_layer(settings.height, settings.width, "light", np.random.RandomState(0))
    plain_input = to_tensor(add_rain(clean, layer)).to(device).contiguous()
    rainy = plain_input.to(memory_format=torch.channels_last)
    ordered = copy.deepcopy(network).to(memory_format=torch.channels_last)
    prepare_plain(state, plain_input)

    candidates: dict[str, Callable[[], torch.Tensor]] = {}
    if device.type == "cpu":
        # The scripts have this process keep its freed memory; the plain formulation as published does not.
        child = multiprocessing.get_context("spawn").Pool(1, prepare_plain, (state, plain_input))
        candidates[PLAIN] = lambda: child.apply(plain)
        candidates["plain, with freed memory reused"] = plain
    else:
        candidates[PLAIN] = plain
    candidates |= {
        "channels_last, as written": lambda: derain(ordered, rainy),
        "folded (default)": lambda: derain(folded, rainy),
        "folded, bf16": lambda: derain(half, rainy),
    }

    exact = to_image(plain())
    notes: dict[str, str] = {PLAIN: "-"}
    for name, call in candidates.items():
        image = to_image(call())
        if "bf16" not in name and np.abs(image - exact).max() > 1e-4:
            raise RuntimeError(f"{name}: differs from the plain formulation by {np.abs(image - exact).max():.1e}")
        equal = (quantize(image) == quantize(exact)).mean()
        distance = psnr(image, exact, peak=1)
        notes.setdefault(name, f"{100 * equal:.3f} % equal pixels, {distance:.1f} dB from plain")
    rows = summarise(measure(candidates, device, settings.rounds), notes)
    report(f"One {settings.width}x{settings.height} image", rows, device, settings.json_path)
    tell_if_without_gpu()


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
