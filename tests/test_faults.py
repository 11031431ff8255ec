"""Faults of long runs, inflicted on the real commands: killed processes, two runs at once, a full disk."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, start, write_pairs

from networks import load_network

pytestmark = pytest.mark.slow

TRAINING = ("--stride", "16", "--batch_size", "2", "--groups", "1", "--max_steps")


def wait_until(condition: Callable[[], object], process: subprocess.Popen, seconds: float = 120) -> None:
    """Return once the condition holds; fail if the process ends or the time passes before."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "the command ended by itself"
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def kill(process: subprocess.Popen) -> None:
    """SIGKILL to a command and all its workers: nothing can be saved, nothing can be said."""
    workers = children(process)  # torchrun's are in groups of their own
    os.killpg(process.pid, signal.SIGKILL)
    for pid in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def children(process: subprocess.Popen) -> list[int]:
    """The processes that a command has started, oldest first; under torchrun in the order of their ranks."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(pid) for pid in path.read_text().split()) if path.exists() else []


def step_of(folder: Path) -> int:
    """The step of the run's newest training state, 0 without one."""
    path = folder / "run/state_latest.pth"
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.long)])
def test_a_run_killed_at_any_moment_ends_with_the_same_weights(tmp_path: Path, kills: int) -> None:
    """SIGKILL at random moments, a state at every step, in starting up, training and saving alike."""
    steps = 10 * kills
    flags = (*TRAINING, str(steps), "--save_minutes", "0", "--recipe", "best", "--stages", "32:2:0.6", "40:1:0.4")
    weights, killed = [], 0
    moments = random.Random(kills)
    for name in ("whole", "killed"):
        folder = tmp_path / name
        write_pairs(folder / "pairs", 2)
        for _ in range(kills if name == "killed" else 0):
            wanted = min(step_of(folder) + moments.randint(0, 3), steps)
            process = start("train_rain100L.py", folder, *flags)
            wait_until(lambda: process.poll() is not None or step_of(folder) >= max(1, wanted), process)  # noqa: B023
            time.sleep(moments.uniform(0, 0.3))
            if process.poll() is None:  # else it came to its end before
                kill(process)
                killed += 1
            assert step_of(folder) >= wanted, "a state was lost"
        assert start("train_rain100L.py", folder, *flags).wait(timeout=300) == 0, (folder / "output.txt").read_text()
        weights.append(torch.load(folder / "run/net_latest.pth", weights_only=True))
    assert killed > kills / 2
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_folder_has_one_training_and_any_readers(tmp_path: Path) -> None:
    """Another training is refused; weights that are read while they are replaced at every step are always whole."""
    write_pairs(tmp_path / "pairs", 2)
    flags = (*TRAINING, "100000", "--save_minutes", "0")
    first = start("train_rain100L.py", tmp_path, *flags)
    try:
        wait_until((tmp_path / "run/log.jsonl").exists, first)
        second = start("train_rain100L.py", tmp_path, *flags)
        assert second.wait(timeout=100) == 2
        assert "run: another process is writing there" in (tmp_path / "output.txt").read_text()
        assert (tmp_path / "run/log.jsonl").read_text().count("begin") == 1
        seen = set()

        def read() -> bool:
            weights = load_network(tmp_path / "run/net_latest.pth").state_dict()
            seen.add(float(sum(value.abs().sum() for value in weights.values())))
            return len(seen) > 5

        wait_until(read, first)
    finally:
        kill(first)
    assert start("train_rain100L.py", tmp_path, *TRAINING, "2").wait(timeout=100) == 0  # the lock went with its holder


def test_two_first_starts_prepare_one_data_set(tmp_path: Path) -> None:
    """Both pack the same folder at once; each ends well and the packed file is whole."""
    write_pairs(tmp_path / "pairs", 6)
    flags = (*TRAINING, "1", "--save_path")
    both = [start("train_rain100L.py", tmp_path, *flags, name) for name in ("a", "b")]
    assert [process.wait(timeout=100) for process in both] == [0, 0], (tmp_path / "output.txt").read_text()
    assert not list(tmp_path.glob("*.tmp")) + list(tmp_path.glob(".*.tmp"))


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_a_killed_rank_ends_the_others_with_a_word(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 2)
    process = start("train_rain100L.py", tmp_path, *TRAINING, "100000", processes=2)
    try:
        wait_until((tmp_path / "run/log.jsonl").exists, process)
        wait_until(lambda: "step 1/" in (tmp_path / "output.txt").read_text(), process)
        ranks = children(process)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        assert process.wait(timeout=60) != 0
        assert "another process of this training ended" in (tmp_path / "output.txt").read_text()
        assert not any(Path(f"/proc/{pid}").exists() for pid in ranks)
    finally:
        if process.poll() is None:
            kill(process)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
def test_torchrun_restarts_from_the_last_state(tmp_path: Path) -> None:
    write_pairs(tmp_path / "pairs", 2)
    flags = (*TRAINING, "14", "--epochs", "99", "--save_minutes", "0")
    process = start("train_rain100L.py", tmp_path, *flags, processes=2, restarts=1)
    try:
        wait_until(lambda: step_of(tmp_path) >= 2, process)
        os.kill(children(process)[0], signal.SIGKILL)
        assert process.wait(timeout=120) == 0, (tmp_path / "output.txt").read_text()
    finally:
        if process.poll() is None:
            kill(process)
    text = (tmp_path / "output.txt").read_text()
    assert "resuming run/state_latest.pth" in text
    assert step_of(tmp_path) == 14


def test_processes_that_are_missing_are_named(tmp_path: Path) -> None:
    """One process of two: it waits, and says after a minute (here a moment) for what."""
    write_pairs(tmp_path / "pairs", 2)
    code = (
        "import threading, runpy, sys; timer = threading.Timer\n"
        "threading.Timer = lambda seconds, call: timer(seconds / 600, call)\n"
        f"sys.argv = ['train', '--data_path', 'pairs', '--save_path', 'run', '--device', 'cpu']\n"
        f"sys.path.insert(0, {str(ROOT)!r}); runpy.run_path({str(ROOT / 'train_rain100L.py')!r}, run_name='__main__')"
    )
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    with open(tmp_path / "output.txt", "w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | environment, stderr=output, stdout=output
        )
    try:
        wait_until(lambda: "waiting for 2 processes (WORLD_SIZE)" in (tmp_path / "output.txt").read_text(), process)
    finally:
        process.kill()
        process.wait()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]
