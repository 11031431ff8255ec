"""An app in the browser: drop photographs or a short video, compare, and save the results.

    python -m derain.app      # prints its address; needs: pip install gradio

Nothing leaves this computer. Files are deleted when their page is closed, or when the app ends.
GRADIO_SERVER_NAME=0.0.0.0 serves other computers, too.
"""

import os
import shutil
import tempfile
from pathlib import Path

from derain.cli import run_script
from derain.synthesize import stand_in
from derain.worker import Settings, Worker
from hubconf import WEIGHTS


def main(settings: Settings) -> None:
    """Serve the page until Ctrl-C."""
    import gradio as gr  # an extra requirement

    worker = Worker(settings)
    uploads: dict[str | None, set[Path]] = {}  # folders, by open page

    def announce(files: list[str], request: gr.Request) -> str:
        places = uploads.setdefault(request.session_hash, set())
        places.update(Path(file).parent for file in files)
        return worker.expected_time(files)

    def derain(files: list[str] | None, rain: str, progress=gr.Progress(track_tqdm=True)):
        yield from worker.derain(files or [], rain)

    def forget(request: gr.Request) -> None:
        closed = uploads.pop(request.session_hash, set())
        for place in closed.difference(*uploads.values()):  # equal uploads share a folder
            shutil.rmtree(place, ignore_errors=True)  # with its results

    with tempfile.TemporaryDirectory(prefix="derain-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        files = gr.File(label="Photographs, or a short video", file_count="multiple")
        rain = gr.Radio(list(WEIGHTS), value="any", label="Kind of rain")
        status = gr.Textbox(label="Status", placeholder="Drop files, or click an example")
        slider = gr.ImageSlider(label="Before | after", buttons=["fullscreen"])
        results = gr.File(label="Results: click a size to save")
        with gr.Interface(
            derain,
            [files, rain],
            [status, slider, results],
            title="Remove the rain",
            submit_btn="Derain",
            stop_btn="Stop after this file",
            flagging_mode="never",
            analytics_enabled=False,
            delete_cache=(3600, 86400),
        ) as page:
            paths = sorted(stand_in("heavy", Path(folder)).glob("rainy/*.png"))[::3]
            examples = gr.Dataset(components=["image"], samples=[[str(path)] for path in paths])
            examples.click(lambda sample: [sample[0]], examples, files)
            files.upload(announce, files, status)
            page.unload(forget)
        page.launch(share=False, footer_links=[], run_history=False)
    os._exit(0)  # torch would abort if Python ended while a thread still computes


if __name__ == "__main__":
    run_script(main, Settings(), __doc__)
