"""What the tests share: small scenes with rain, data sets of them, and the real commands."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from benchmarks import plain_dargnet
from networks import DARGNet, convert_state_dict

ROOT = Path(__file__).resolve().parent.parent
# Of commands: any warning is an error, and so in tests/versions.sh, but for the lowest versions' deprecations.
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": os.environ.get("WARNINGS_OF_COMMANDS", "error")}
SCRIPTS = (
    *("train_rain100H.py", "train_rain100L.py"),
    *("test_Rain100H.py", "test_Rain100L.py", "test_Rain12.py", "test_real.py"),
)


@pytest.fixture(autouse=True)
def few_threads() -> None:
    """Tests may run side by side: each keeps to one core, so that none waits for the others' threads."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def heed_signals() -> None:
    """A job in the background may have been started with Ctrl-C and SIGHUP ignored, and so would its commands be."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is signal.SIG_IGN:
            signal.signal(getattr(signal, name), handler)


@pytest.fixture(scope="session")
def network() -> DARGNet:
    """A DARGNet with numbers of a sensible size, in eval mode."""
    network = DARGNet()
    network.load_state_dict(convert_state_dict(plain_dargnet.random_published_state(1)))
    return network.eval()


def scene(seed: int, height: int = 64, width: int = 72) -> tuple[np.ndarray, np.ndarray]:
    """A rainy and a clean image, (H, W, 3) uint8 RGB, one grey layer of rain added and clipped."""
    random = np.random.RandomState(seed)
    coarse = random.randint(0, 200, (height // 8 + 1, width // 8 + 1, 3)).astype(np.uint8)
    clean = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    layer = np.where(random.rand(height, width) < 0.2, random.randint(20, 120, (height, width)), 0)
    return np.minimum(255, clean.astype(int) + layer[..., None]).astype(np.uint8), clean


def write(path: Path, rgb: np.ndarray) -> Path:
    """Write RGB (or any channel layout OpenCV takes) with OpenCV's own writer, to check our reader against."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = rgb[..., ::-1] if rgb.ndim == 3 and rgb.shape[2] == 3 else rgb
    encoded, data = cv2.imencode(path.suffix, pixels)
    assert encoded
    path.write_bytes(data.tobytes())
    return path


# name: (pattern of the rainy file, pattern of the clean file)
LAYOUT_PATTERNS = {
    "PReNet test": ("rainy/rain-{0:03d}.png", "norain-{0:03d}.png"),
    "PReNet train": ("rain-{0}.png", "norain-{0}.png"),
    "DARG clean": ("rainy/rain-{0:03d}.png", "clean/norain-{0:03d}.png"),
    "DARG groundtruth": ("rainy/rain-{0:03d}.png", "groundtruth/norain-{0:03d}.png"),
    "DARG norain": ("rainy/rain-{0:03d}.png", "norain/norain-{0:03d}.png"),
    "Rain12 numbers": ("rainy/{0}.png", "groundtruth/{0}.png"),
    "RCDNet": ("rain/norain-{0}.png", "norain/norain-{0}.png"),
    "RCDNet small": ("small/rain/norain-{0}.png", "small/norain/norain-{0}.png"),
    "MPRNet": ("input/{0}.png", "target/{0}.png"),
}


def write_pairs(folder: Path, count: int = 3, layout: str = "PReNet test", first: int = 1, **size: int) -> Path:
    """Write a data set of `count` scenes, from number `first`, in one of the layouts; returns the folder."""
    rainy_pattern, clean_pattern = LAYOUT_PATTERNS[layout]
    for number in range(first, first + count):
        rainy, clean = scene(number, **size)
        write(folder / rainy_pattern.format(number), rainy)
        write(folder / clean_pattern.format(number), clean)
    return folder


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a script or module of the repository as a user would, in an empty folder; gives its output and status."""

    def run(script: str, *arguments: str | Path, timeout: float = 200) -> subprocess.CompletedProcess[str]:
        environment = os.environ | ENVIRONMENT | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(
            [sys.executable, *([ROOT / script] if script.endswith(".py") else ["-m", script]), *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture
def inline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., subprocess.CompletedProcess[str]]:
    """The same as `command`, in this process: spares the seconds that importing torch takes."""

    def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        capsys.readouterr()
        try:
            if script.endswith(".py"):
                runpy.run_path(str(ROOT / script), run_name="__main__")
            else:
                monkeypatch.delitem(sys.modules, script, raising=False)  # or runpy warns
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        output = capsys.readouterr()
        return subprocess.CompletedProcess([script], status, output.out, output.err)

    return run


def start(script: str, folder: Path, *flags: str, processes: int = 1, restarts: int = 0) -> subprocess.Popen:
    """Start a train script on folder/pairs, alone or under torchrun, in a process group of its own.

    Its run is in folder/run, what it prints in folder/output.txt.
    """
    command = [sys.executable, "-u"]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command += [f"--max-restarts={restarts}", "--monitor-interval=0.5"]
    command += [str(ROOT / script), "--data_path", "pairs", "--save_path", "run", "--patch_size", "32"]
    with open(folder / "output.txt", "a") as output:
        return subprocess.Popen(
            [*command, "--device", "cpu", *flags],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | ENVIRONMENT,
        )
