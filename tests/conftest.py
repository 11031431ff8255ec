"""What the tests share: scenes with rain, data sets of them, the real commands, a browser."""

import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks import plain_dargnet
from networks import DARGNet, convert_state_dict

ROOT = Path(__file__).resolve().parent.parent
# Any warning of a command is an error; tests/versions.sh allows those of the lowest versions.
WARNINGS = os.environ.get("WARNINGS_OF_COMMANDS", "error")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": WARNINGS, "PYTHONPATH": str(ROOT)}
TEST_SCRIPTS = ("test_Rain100H.py", "test_Rain100L.py", "test_Rain12.py", "test_real.py")
SCRIPTS = ("train_rain100H.py", "train_rain100L.py", *TEST_SCRIPTS)
Result = subprocess.CompletedProcess[str]
Command = Callable[..., Result]


@pytest.fixture(autouse=True, scope="session")
def prepare_process() -> None:
    """Keep to one core, since tests may run side by side.

    Let commands heed Ctrl-C and SIGHUP, which a job in the background ignores.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def network() -> DARGNet:
    """A DARGNet with numbers of a sensible size, in eval mode."""
    network = DARGNet()
    network.load_state_dict(convert_state_dict(plain_dargnet.random_published_state(1)))
    return network.eval()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Weights of a tiny DARGNet, in a folder as --logdir takes it."""
    torch.manual_seed(0)
    (tmp_path / "my_logs").mkdir()
    torch.save(DARGNet(4, 1).state_dict(), tmp_path / "my_logs/net_latest.pth")
    return tmp_path / "my_logs"


def scene(seed: int, height: int = 64, width: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """A rainy and a clean image, (H, W, 3) uint8 RGB, one grey layer of rain added and clipped."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    clean = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    drops = random.rand(height, width) < 0.2
    layer = np.where(drops, random.randint(20, 120, (height, width)), 0)
    return np.minimum(255, clean.astype(int) + layer[..., None]).astype(np.uint8), clean


def write(path: Path, rgb: np.ndarray) -> Path:
    """Write RGB, or any layout that OpenCV takes, by another writer than ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rgb[..., ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
    encoded, data = cv2.imencode(path.suffix, pixels)
    assert encoded
    path.write_bytes(data.tobytes())
    return path


def write_pairs(
    folder: Path,
    count: int = 3,
    rainy: str = "rainy/rain-{:03d}.png",
    clean: str = "norain-{:03d}.png",
    first: int = 1,
    **size: int,
) -> Path:
    """Write a data set of `count` scenes, from number `first`, and return its folder."""
    for number in range(first, first + count):
        for pattern, image in zip((rainy, clean), scene(number, **size), strict=True):
            write(folder / pattern.format(number), image)
    return folder


def one_error(result: Result, *texts: object) -> None:
    """Check that a command ended with status 2 and one error line that holds all texts."""
    assert result.returncode == 2, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    for text in texts:
        assert str(text) in lines[0]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a script or module of the repository as a user does, in an empty folder."""

    def run(script: str, *arguments: str | Path) -> Result:
        program = [ROOT / script] if script.endswith(".py") else ["-m", script]
        line = [sys.executable, *program, *map(str, arguments)]
        how = {"cwd": tmp_path, "env": os.environ | ENVIRONMENT, "timeout": 200}
        return subprocess.run(line, capture_output=True, text=True, check=False, **how)

    return run


@pytest.fixture
def inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """The same as `command` in this process, without the seconds that importing torch takes."""
    monkeypatch.chdir(tmp_path)

    def run(script: str, *arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        status = 0
        try:
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                monkeypatch.delitem(sys.modules, script, raising=False)  # or runpy warns
                runpy.run_module(script, run_name="__main__", alter_sys=True)
        except SystemExit as stop:
            status = int(stop.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess([script], status, output.out, output.err)

    return run


def start(script: str, folder: Path, *flags: str, processes: int = 1) -> subprocess.Popen:
    """Start a train script on folder/pairs, or torchrun with it, in its own process group.

    Its run is in folder/run, its output in folder/output.txt.
    """
    command = [sys.executable, "-u"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command += [f"--nproc_per_node={processes}", "--monitor-interval=0.5"]
    command += [str(ROOT / script), "--data_path", "pairs", "--save_path", "run"]
    command += ["--patch_size", "32", "--device", "cpu", *flags]
    how = {"cwd": folder, "env": os.environ | ENVIRONMENT, "start_new_session": True}
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, **how)


def wait_for(condition: Callable[[], Any]) -> Any:
    """Return the value of a condition as soon as it is true."""
    until = time.monotonic() + 60
    while not (value := condition()):
        assert time.monotonic() < until
        time.sleep(0.1)
    return value


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

    def drag(self, handle: str, image: str) -> None:
        """Drag an element 50 pixels to the right; wait until the edge of an image follows."""
        origin = self.wait(f"document.querySelector('{handle}')")
        steps = [
            {"type": "pointerMove", "origin": origin, "x": 0, "y": 0},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerMove", "origin": "pointer", "x": 50, "y": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self.wait(f"getComputedStyle({image}).clipPath == 'inset(0px 0px 0px 50%)'")
        self("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": steps}])
        self.wait(f"parseFloat(getComputedStyle({image}).clipPath.split(' ')[3]) > 51")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    if driver is None:
        pytest.skip("no chromedriver here")
    with subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True) as server:
        browser = Browser(server, tmp_path / "downloads")
        yield browser
        urllib.request.urlopen(urllib.request.Request(browser.address, method="DELETE")).close()
        server.terminate()
