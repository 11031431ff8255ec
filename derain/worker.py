"""What the app does with files that are dropped on it; nothing here depends on Gradio."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from derain.cli import setting
from derain.evaluate import EvalSettings, derain_file, result_names
from derain.frames import is_video
from derain.images import read_image, write_image
from derain.inference import derain_image, load_weights, optimize
from derain.pairs import Pair
from hubconf import WEIGHTS
from utils import InputError, choose_device, choose_precision


@dataclass(frozen=True)
class Settings:
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")


class Worker:
    """Derains uploads with our networks and estimates the time. Paths are text, as Gradio's are."""

    def __init__(self, settings: Settings) -> None:
        device = choose_device(settings.device)
        precision = choose_precision("auto", device)
        self.networks = {}
        for rain, folder in WEIGHTS.items():
            network = load_weights(Path("logs", folder)).to(device)
            self.networks[rain] = optimize(network, precision)
        for _ in range(2):  # the first call also loads GPU kernels
            began = time.perf_counter()
            derain_image(self.networks["any"], np.zeros((256, 256, 3), np.uint8))
        self.seconds_per_pixel = (time.perf_counter() - began) / 256**2

    def expected_time(self, files: list[str]) -> str:
        """Return in words how large files are, and how long they will take."""
        pixels = 0
        for file in files:
            with suppress(OSError), Image.open(file) as image:  # others are named by derain
                pixels += image.width * image.height
        seconds = pixels * self.seconds_per_pixel
        return f"{pixels / 1e6:.1f} megapixels, about {seconds:.0f} s; videos show the time left"

    def derain(self, files: list[str], rain: str) -> Iterator[tuple]:
        """Derain files one by one, into a folder beside each that has the name of the rain.

        Yields a text on all files so far, the last image before and after, and the results.
        """
        derain_rgb = partial(derain_image, self.networks[rain])
        status, compared, results = "", None, []
        for path in map(Path, files):
            target = path.parent / rain / result_names([path], "png")[0]
            before = target.with_suffix(".before.png")
            try:
                derain_file(EvalSettings(), Pair(path), target, derain_rgb)
                if not is_video(path):
                    write_image(before, read_image(path))
                    compared = before, target
                results.append(str(target))
                status += f"{path.name}: done\n"
            except (InputError, MemoryError, OSError, RuntimeError, ValueError) as error:
                status += str(error).replace(str(path), path.name) + "\n"
            yield status, compared, results
