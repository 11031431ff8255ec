"""Time of one derained image: the plain published formulation against this repository's forms.

    python -m benchmarks.inference                     # 481x321 on the CPU: a minute on two cores
    python -m benchmarks.inference --device cuda --height 1080 --width 1920

Plain is NCHW, float32, with concatenations, as published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import plain_dargnet
from benchmarks.common import in_own_process, measure, print_table, rainy_and_clean
from derain.cli import run_script, setting
from derain.inference import derain, fold, load_weights
from networks import convert_state_dict
from SSIM import psnr
from utils import choose_device, quantize, to_image


@dataclass(frozen=True)
class Settings:
    logdir: Path = setting(Path("logs/Rain100L"), "folder that holds net_latest.pth, or a file")
    height: int = setting(321, "pixels")
    width: int = setting(481, "pixels")
    rounds: int = setting(7, "measured calls of each candidate, in turn")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")


def plain(state: plain_dargnet.State, rainy: Tensor) -> Tensor:
    with torch.inference_mode():
        return plain_dargnet.dargnet(state, rainy)


def main(settings: Settings) -> None:
    """Compare every candidate's image with the plain one's, measure, and print the table."""
    device = choose_device(settings.device)
    network = load_weights(settings.logdir).to(device)
    weights, state = network.state_dict(), {"PR.weight": torch.zeros(1, device=device)}
    names = {name: name for name in plain_dargnet.published_shapes()}
    for ours, theirs in convert_state_dict(names).items():
        state[theirs] = weights[ours]
    rainy = rainy_and_clean(settings.height, settings.width)[0].to(device)

    folded, half = fold(network), fold(network, torch.bfloat16)
    written = network.to(memory_format=torch.channels_last)
    calls: dict[str, Callable[[], Tensor]] = {}
    if device.type == "cpu":
        calls["plain formulation, NCHW"] = in_own_process(plain, state, rainy)
    calls["plain, with freed memory reused"] = lambda: plain(state, rainy)
    calls["channels_last, as written"] = lambda: derain(written, rainy)
    calls["folded (default)"] = lambda: derain(folded, rainy)
    calls["folded, bf16"] = lambda: derain(half, rainy)

    exact, notes = to_image(plain(state, rainy)), {}
    for name, call in calls.items():
        image = to_image(call())
        equal = (quantize(image) == quantize(exact)).mean()
        distance = psnr(image, exact, peak=1)
        notes[name] = f"{equal:.3%} equal pixels, {distance:.1f} dB from plain"
        if distance < 100 and "bf16" not in name:
            raise RuntimeError(f"{name}: {notes[name]}")
    print_table(measure(calls, device, settings.rounds), notes)


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
