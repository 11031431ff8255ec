"""An app in the browser: drop photographs or a short video, compare, and save the results.

    python -m derain.app      # prints its address; needs: pip install gradio

Results are the files that test_real.py writes. Nothing leaves this computer; files are deleted when
the page is closed. GRADIO_SERVER_NAME=0.0.0.0 serves other computers, too.
"""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from derain.cli import run_script, setting
from derain.evaluate import EvalSettings, derain_file, result_names
from derain.images import read_image, write_image
from derain.inference import derain_image, load_weights, optimize
from derain.pairs import Pair
from derain.synthesize import stand_in
from derain.video import is_video
from hubconf import FOLDERS
from utils import InputError, choose_device, choose_precision

try:
    import gradio as gr
except ImportError:
    print("error: the page needs Gradio: pip install gradio", file=sys.stderr)
    raise SystemExit(2) from None


@dataclass(frozen=True)
class AppSettings:
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")


class App:
    """The networks, and what the page does with files. Paths are text, as Gradio has them."""

    def __init__(self, device_name: str) -> None:
        device = choose_device(device_name)
        self.networks = {}
        precision = choose_precision("auto", device)
        for kind, folder in FOLDERS.items():
            network = load_weights(Path("logs", folder)).to(device)
            self.networks[kind] = optimize(network, precision)
        began = time.perf_counter()
        derain_image(self.networks["any"], np.zeros((256, 256, 3), np.uint8))
        self.seconds_per_pixel = (time.perf_counter() - began) / 256**2
        self.uploads: dict[str | None, list[str]] = {}  # by open page

    def announce(self, files: list[str], request: gr.Request) -> str:
        """Return how long uploaded files will take."""
        self.uploads.setdefault(request.session_hash, []).extend(files)
        pixels = 0
        for file in files:
            with suppress(OSError), Image.open(file) as image:  # others are named by derain
                pixels += image.width * image.height
        seconds = max(1, pixels * self.seconds_per_pixel)
        return f"{pixels / 1e6:.1f} megapixels, about {seconds:.0f} s; videos show the time left"

    def derain(
        self, files: list[str] | None, rain: str, progress: gr.Progress = gr.Progress(True)
    ) -> Iterator[tuple]:
        """Derain files one by one. Yields a text, an image before and after, and the results."""
        derain = partial(derain_image, self.networks[rain])
        status, compared, results = "", None, []
        for path in map(Path, files or ()):
            target = path.parent / rain / result_names([path], "png")[0]
            before = target.with_suffix(".before.png")
            try:
                derain_file(EvalSettings(), Pair(path), target, derain)
                if not is_video(path):
                    write_image(before, read_image(path))
                    compared = before, target
                results.append(str(target))
                status += f"{path.name}: done\n"
            except (InputError, OSError, ValueError) as error:
                status += str(error).replace(str(path), path.name) + "\n"
            yield status, compared, results

    def forget(self, request: gr.Request) -> None:
        """Delete the files of a page that is closed, and their results."""
        for file in self.uploads.pop(request.session_hash, ()):
            shutil.rmtree(Path(file).parent, ignore_errors=True)


def main(settings: AppSettings) -> None:
    """Serve the page until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="derain-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        app = App(settings.device)
        files = gr.File(label="Photographs, or a short video", file_count="multiple")
        rain = gr.Radio(list(app.networks), value="any", label="Kind of rain")
        status = gr.Textbox(label="Status", placeholder="Drop files, or click an example")
        slider = gr.ImageSlider(label="Before | after", buttons=["fullscreen"])
        results = gr.File(label="Results: click a size to save")
        with gr.Interface(
            app.derain,
            [files, rain],
            [status, slider, results],
            title="Remove the rain",
            submit_btn="Derain",
            stop_btn="Stop after this file",
            clear_btn=None,
            flagging_mode="never",
            analytics_enabled=False,
            delete_cache=(3600, 86400),
        ) as page:
            paths = sorted(stand_in("heavy", Path(folder)).glob("rainy/*.png"))[::3]
            examples = gr.Dataset(components=["image"], samples=[[str(path)] for path in paths])
            examples.click(lambda sample: [sample[0]], examples, files)
            files.upload(app.announce, files, status)
            page.unload(app.forget)
        page.launch(share=False, footer_links=[], run_history=False)
    os._exit(0)  # torch would abort if Python ended while a thread still computes


if __name__ == "__main__":
    run_script(main, AppSettings(), __doc__)
