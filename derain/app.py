"""A page for the browser: drop photographs or a short film, compare, and save the results.

    python -m derain.app      # prints its address; needs: pip install gradio

Images become the files that test_real.py writes, films become MP4. Nothing leaves this computer;
files are deleted when the page is closed. GRADIO_SERVER_NAME=0.0.0.0 serves other computers, too.
"""

import os
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from derain.cli import run_script, setting
from derain.images import network_input, network_output, read_image, write_image
from derain.inference import RAIN_WEIGHTS, derain_image, open_network
from derain.synthesize import stand_in
from derain.video import derain_video, is_video
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

    def __init__(self, settings: AppSettings) -> None:
        device = choose_device(settings.device)
        self.uploads: defaultdict[str | None, list[str]] = defaultdict(list)  # by open page
        self.networks = {}
        for kind, weights in RAIN_WEIGHTS.items():
            network = open_network(weights, device, choose_precision("auto", device))
            self.networks[kind] = network
        began = time.perf_counter()
        derain_image(network, np.zeros((256, 256, 3), np.uint8))
        self.seconds_per_pixel = (time.perf_counter() - began) / 256**2

    def announce(self, files: list[str] | None) -> str:
        """Return how long files will take, and which ones can't be read."""
        lines = []
        for path in map(Path, files or ()):
            if is_video(path):
                lines.append(f"{path.name}: the time left is shown while it runs")
                continue
            try:
                pixels = read_image(path).rgb.size / 3
            except InputError as error:
                lines.append(str(error).replace(str(path), path.name))
                continue
            seconds = pixels * self.seconds_per_pixel
            lines.append(f"{path.name}: {pixels / 1e6:.1f} megapixels, about {seconds:.0f} s")
        return "\n".join(lines)

    def derain(
        self, files: list[str] | None, rain: str, progress: gr.Progress = gr.Progress(True)
    ) -> Iterator[tuple]:
        """Derain files one by one. Yields a text, an image before and after, and the results."""
        lines, compared, results = [], None, []
        for path in map(Path, files or ()):
            progress(0, path.name)
            try:
                results.append(self.derain_file(path, rain))
                lines.append(f"{path.name}: done")
                compared = before_and_after(results[-1])
            except (InputError, OSError, ValueError) as error:
                lines.append(str(error).replace(str(path), path.name))
            yield "\n".join(lines), compared, results

    def derain_file(self, source: Path, rain: str) -> str:
        """Derain an image or a film; return the file written."""
        derain = partial(derain_image, self.networks[rain])
        target = source.parent / rain / f"{source.stem}.png"
        if is_video(source):
            return str(derain_video(source, target.with_suffix(".mp4"), derain))
        rainy = read_image(source)
        write_image(target.with_suffix(".before.png"), rainy)
        write_image(target, network_output(rainy, derain(network_input(rainy))))
        return str(target)

    def remember(self, files: list[str], request: gr.Request) -> None:
        """Note which page uploaded files."""
        self.uploads[request.session_hash] += files

    def forget(self, request: gr.Request) -> None:
        """Delete the files of a page that is closed, and their results."""
        for file in self.uploads.pop(request.session_hash, ()):
            shutil.rmtree(Path(file).parent, ignore_errors=True)


def before_and_after(result: str) -> tuple[str, str] | None:
    """Return the two images that the slider compares; None for a film."""
    before = Path(result).with_suffix(".before.png")
    return (str(before), result) if before.exists() else None


def show(results: list[str], click: gr.SelectData) -> tuple[str, str] | None:
    """Return the two images of the result that was clicked on."""
    return before_and_after(results[click.index])


def make_page(app: App, examples: list[tuple[str, str]]) -> Any:
    """Return the page, a gradio.Blocks. examples: image files, each with its kind of rain."""
    kinds = list(app.networks)
    with gr.Blocks(title="Derain", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.Markdown("# Remove the rain\nResults keep the size, depth and metadata of your files.")
        with gr.Row():
            with gr.Column():
                files = gr.File(label="Photographs, or a short film", file_count="multiple")
                rain = gr.Radio(kinds, value=kinds[0], label="Kind of rain")
                button = gr.Button("Remove the rain", variant="primary")
                status = gr.Textbox(label="Status", placeholder="Drop a file or click an example")
            with gr.Column():
                slider = gr.ImageSlider(label="Before | after", buttons=["fullscreen"])
                label = "Results: click a size to save, a name to compare"
                results = gr.File(label=label, file_count="multiple", interactive=False)
        pictures = gr.Dataset(components=["image"], samples=examples, label="Examples")
        files.upload(app.remember, files)
        files.change(app.announce, files, status)
        pictures.click(lambda sample: [sample[0]], pictures, files)
        outputs = [status, slider, results]
        button.click(app.derain, [files, rain], outputs, show_progress_on=slider)
        results.select(show, results, slider)
        page.unload(app.forget)
    return page


def main(settings: AppSettings) -> None:
    """Serve the page until Ctrl-C."""
    with tempfile.TemporaryDirectory(prefix="derain-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        examples = []
        for kind in ("heavy", "light"):
            for path in sorted(stand_in(kind, Path(folder)).glob("rainy/*.png"))[::3]:
                examples.append((str(path), kind))
        page = make_page(App(settings), examples)
        options = {"theme": gr.themes.Soft(), "footer_links": [], "run_history": False}
        _, address, _ = page.launch(share=False, quiet=True, prevent_thread_lock=True, **options)
        print(f"{address}  (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):  # a second one
            page.block_thread()
    os._exit(0)  # torch would abort if Python ended while a thread still computes


if __name__ == "__main__":
    run_script(main, AppSettings(), __doc__)
