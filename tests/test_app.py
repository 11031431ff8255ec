"""The page of derain.app: the files of test_real.py, also in a browser; no outside connections."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ENVIRONMENT, ROOT, Command, scene, write
from PIL import Image

from derain.images import read_rgb

CHROMEDRIVER = shutil.which("chromedriver")
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
    """A phone's JPEG on its side, with EXIF and dpi, a text, and a PNG of 16 bits."""
    rainy, _ = scene(1)
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a phone"  # orientation, maker
    Image.fromarray(rainy).save(folder / "phone.jpg", quality=95, exif=exif, dpi=(300, 300))
    (folder / "fake.png").write_text("a text, by its name an image")
    write(folder / "deep.png", rainy.astype(np.uint16) * 257)
    return [folder / name for name in ("phone.jpg", "fake.png", "deep.png")]


def test_results_are_those_of_test_real(tmp_path: Path, inline: Command) -> None:
    pytest.importorskip("gradio")
    from derain.app import App

    files = photographs(tmp_path)
    assert inline("test_real.py", "--data_path", *files, "--save_path", "out").returncode == 2
    *_, (status, compared, results) = App("cpu").derain(map(str, files), "any")
    lines = status.splitlines()
    assert (lines[0], lines[2]) == ("phone.jpg: done", "deep.png: done")
    assert lines[1].startswith("fake.png: not readable")
    assert [Path(result).name for result in results] == ["phone.png", "deep.png"]
    for result in map(Path, results):
        assert result.read_bytes() == (tmp_path / "out" / result.name).read_bytes()
    assert read_rgb(Path(results[0])).shape == (72, 64, 3)  # upright
    assert np.array_equal(read_rgb(compared[0]), read_rgb(files[2]))


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the value of a condition as soon as it is true."""
    until = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return value


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


class Browser:
    """A headless Chromium, driven through chromedriver's HTTP (https://w3.org/TR/webdriver)."""

    def __init__(self, server: subprocess.Popen, downloads: Path) -> None:
        printed = ""
        while "successfully on port" not in printed:
            printed = server.stdout.readline()
        self.address = f"http://127.0.0.1:{printed.split()[-1].strip('.')}/session"
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
        chosen = {"args": flags, "prefs": {"download.default_directory": str(downloads)}}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chosen}}
        self.address += "/" + self("", capabilities=wanted)["sessionId"]

    def __call__(self, path: str, **body: Any) -> Any:
        """Send a command; return the value of its answer."""
        request = urllib.request.Request(self.address + path, json.dumps(body).encode())
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def wait(self, expression: str) -> Any:
        """Return the value of an expression in JavaScript as soon as it is true."""
        return wait_for(lambda: self("/execute/sync", script=f"return {expression}", args=[]))

    def element(self, selector: str, action: str, **body: Any) -> None:
        """Click or fill the element of a selector in CSS as soon as it is there."""
        element = self.wait(f"document.querySelector('{selector}')")
        self(f"/element/{next(iter(element.values()))}/{action}", **body)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if CHROMEDRIVER is None:
        pytest.skip("no chromedriver here")
    command = [CHROMEDRIVER, "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ) as server:
        browser = Browser(server, tmp_path / "downloads")
        yield browser
        urllib.request.urlopen(urllib.request.Request(browser.address, method="DELETE")).close()
        server.terminate()


def test_in_a_browser(address: str, browser: Browser, tmp_path: Path, command: Command) -> None:
    """Upload, press, drag the slider, save; nothing is loaded from elsewhere; then close."""
    photograph, *_ = photographs(tmp_path)
    assert command("test_real.py", "--data_path", photograph, "--save_path", "out").returncode == 0
    browser("/url", url=address)
    browser.element("input[type=file]", "value", text=str(photograph))
    browser.wait("document.querySelector('textarea').value.includes('megapixels, about')")
    browser.element("button.primary", "click")
    browser.wait("document.querySelector('textarea').value.startsWith('phone.jpg: done')")

    after = "document.querySelectorAll('[data-testid=imageslider-image]')[1]"
    assert browser.wait(f"{after}?.complete && {after}.naturalHeight") == 72
    assert browser.wait(f"{after}.style.clipPath") == "inset(0px 0px 0px 50%)"
    handle = browser.wait("document.querySelector('[data-testid=slider]')")
    steps = [
        {"type": "pointerMove", "origin": handle, "x": 0, "y": 0},
        {"type": "pointerDown", "button": 0},
        {"type": "pointerMove", "origin": "pointer", "x": 50, "y": 0},
        {"type": "pointerUp", "button": 0},
    ]
    browser("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])
    browser.wait(f"parseFloat({after}.style.clipPath.split(' ')[3]) > 51")

    browser.element("a[href*=any]", "click")
    saved = tmp_path / "downloads/phone.png"
    wait_for(saved.exists)
    assert saved.read_bytes() == (tmp_path / "out/phone.png").read_bytes()
    loaded = browser.wait("performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [name for name in loaded if not name.startswith(address)] == []

    assert list(tmp_path.glob("derain-*/*/phone.jpg"))
    browser("/url", url="about:blank")
    wait_for(lambda: not list(tmp_path.glob("derain-*/*/phone.jpg")))


def test_without_gradio_one_line_names_it(tmp_path: Path, command: Command) -> None:
    (tmp_path / "gradio.py").write_text("raise ImportError")
    result = command("derain.app")
    assert result.returncode == 2
    assert "pip install gradio" in result.stderr
    assert len(result.stderr.splitlines()) == 1
