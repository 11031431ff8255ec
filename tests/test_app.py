"""The page of derain.app: the files of test_real.py, also in a browser; no outside connections."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, Browser, Command, one_error, scene, wait_for, write
from PIL import Image

from derain.images import read_rgb
from derain.worker import Settings, Worker

# Python runs this before the app: it notes which addresses are looked up or connected to.
SPY = """
import sys
def note(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo"):
        with open("connections.txt", "a") as file:
            print(arguments, file=file)
sys.addaudithook(note)
"""


def photographs(folder: Path) -> list[Path]:
    """A phone's JPEG on its side, a text, and a PNG of 16 bits."""
    rainy, _ = scene(1)
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    Image.fromarray(rainy).save(folder / "phone.jpg", exif=exif)
    (folder / "fake.png").write_text("a text, by its name an image")
    write(folder / "deep.png", rainy.astype(np.uint16) * 257)
    return [folder / name for name in ("phone.jpg", "fake.png", "deep.png")]


def test_results_are_those_of_test_real(tmp_path: Path, inline: Command) -> None:
    files = photographs(tmp_path)
    assert inline("test_real.py", "--data_path", *files, "--save_path", "out").returncode == 2
    *_, (status, compared, results) = Worker(Settings("cpu")).derain(map(str, files), "any")
    lines = status.splitlines()
    assert (lines[0], lines[2]) == ("phone.jpg: done", "deep.png: done")
    assert lines[1].startswith("fake.png: not readable")
    assert [Path(result).name for result in results] == ["phone.png", "deep.png"]
    for result in map(Path, results):
        assert result.read_bytes() == (tmp_path / "out" / result.name).read_bytes()
    assert read_rgb(Path(results[0])).shape == (72, 64, 3)  # upright
    assert np.array_equal(read_rgb(compared[0]), read_rgb(files[2]))


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    """Start the app in tmp_path; give the address it prints; end it as Ctrl-C does."""
    pytest.importorskip("gradio")
    (tmp_path / "sitecustomize.py").write_text(SPY)
    environment = os.environ | ENVIRONMENT | {"TMPDIR": str(tmp_path), "PYTHONWARNINGS": "ignore"}
    environment["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    command = [sys.executable, "-u", "-m", "derain.app", "--device", "cpu"]
    how = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **how) as server:
        yield server.stdout.readline().split()[-1]
        server.send_signal(2)
        server.stdout.read()
    assert not list(tmp_path.glob("derain-*"))
    connections = (tmp_path / "connections.txt").read_text().splitlines()
    assert connections
    outside = [line for line in connections if "127.0.0.1" not in line and "localhost" not in line]
    assert outside == []


def test_in_a_browser(browser: Browser, address: str, tmp_path: Path, inline: Command) -> None:
    """Upload, press, drag the slider, save; nothing is loaded from elsewhere; then close."""
    photograph, *_ = photographs(tmp_path)
    assert inline("test_real.py", "--data_path", photograph, "--save_path", "out").returncode == 0
    browser("/url", url=address)
    browser.element("input[type=file]", "value", text=str(photograph))
    browser.wait("document.querySelector('textarea').value.includes('megapixels, about')")
    browser.element("button.primary", "click")
    browser.wait("document.querySelector('textarea').value.startsWith('phone.jpg: done')")

    after = "document.querySelectorAll('[data-testid=imageslider-image]')[1]"
    assert browser.wait(f"{after}?.complete && {after}.naturalHeight") == 72
    browser.drag("[data-testid=slider]", after)

    browser.element("a[href*=any]", "click")
    saved = tmp_path / "downloads/phone.png"
    wait_for(saved.exists)
    assert saved.read_bytes() == (tmp_path / "out/phone.png").read_bytes()
    loaded = browser.wait("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(address)] == []

    assert list(tmp_path.glob("derain-*/*/phone.jpg"))
    browser("/url", url="about:blank")
    wait_for(lambda: not list(tmp_path.glob("derain-*/*/phone.jpg")))


def test_without_gradio_one_line_names_it(monkeypatch: pytest.MonkeyPatch, inline: Command) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    one_error(inline("derain.app"), "needs gradio: pip install")
