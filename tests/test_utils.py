"""Images of every kind in and out, the command line, files that are whole or not there."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import io
import json
import math
import os
import re
import subprocess
import sys
import types
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from conftest import ROOT, scene, write_pairs

import utils
from derain.checkpoint import lock
from derain.cli import Progress, Unbroken, explained, parse_settings, run_script, setting
from derain.evaluate import EvalSettings
from networks import DARGNet
from utils import (
    InputError,
    atomic_path,
    choose_device,
    environment,
    quantize,
    to_image,
    to_tensor,
    write_atomically,
    write_json,
)

RGB = scene(5, 24, 33)[0]


def test_quantize_rounds_and_truncates() -> None:
    values = np.array([-0.2, 0, 1.4 / 255, 1.6 / 255, 254.9 / 255, 1.3], np.float32)
    assert quantize(values).tolist() == [0, 0, 1, 2, 255, 255]
    assert quantize(values, mode="truncate").tolist() == [0, 0, 1, 1, 254, 255]
    assert quantize(values[4:], np.uint16).tolist() == [round(254.9 * 257), 65535]


def test_every_level_survives_the_tensor() -> None:
    levels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for mode in ("round", "truncate"):
        assert np.array_equal(quantize(to_image(to_tensor(levels)), mode=mode), levels)
    deep = np.arange(65536, dtype=np.uint16).repeat(3).reshape(256, 256, 3)
    assert np.array_equal(quantize(to_image(to_tensor(deep)), np.uint16), deep)


# ---------------------------------------------------------------- files


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_atomically(path, "old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old"
    with pytest.raises(TypeError):
        write_json(path, {"x": object()})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]  # noqa: PTH208


def test_json_is_strict(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"psnr": math.inf, "path": Path("a/b"), "list": (1, math.nan)})

    def refuse(name: str) -> None:
        raise AssertionError(name)

    found = json.loads((tmp_path / "x.json").read_text(), parse_constant=refuse)
    assert found == {"psnr": None, "path": "a/b", "list": [1, None]}


# ---------------------------------------------------------------- the command line


@dataclasses.dataclass(frozen=True)
class Example:
    count: int = setting(3, "how many (100 % of them)")
    fast: bool = setting(False, "hurry")
    steps: tuple[int, ...] = setting((1, 2), "when")
    limit: int | None = setting(None, "at most")
    kind: str = setting("a", "which", ("a", "b"))
    constant: str = "not a flag"


def test_settings_from_the_command_line() -> None:
    assert parse_settings(Example(), "", []) == Example()
    found = parse_settings(
        Example(), "", ["--count", "5", "--fast", "--steps", "7", "9", "--limit", "4", "--kind", "b"]
    )
    assert found == Example(count=5, fast=True, steps=(7, 9), limit=4, kind="b")
    assert parse_settings(Example(), "", ["--no-fast"]).fast is False


@pytest.mark.parametrize("arguments", [["--coun", "5"], ["--fast", "False"], ["--kind", "c"], ["--constant", "x"]])
def test_flags_do_not_lie(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_settings(Example(), "", arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(Example(), "What it does.", ["--help"])
    shown = capsys.readouterr().out
    for text in ("What it does.", "(default: 3)", "--no-fast", "(default: 1 2)", "100 %"):
        assert text in shown


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("x.png: remove it"), 2, "error: x.png: remove it"),
        (OSError(28, "No space"), 2, "error: No space"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: out of memory; "),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory; "),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory; "),
    ],
)
def test_run_script_ends_in_one_line(
    error: BaseException, status: int, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(_settings: Example) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(SystemExit) as caught:
        run_script(run, Example(), "")
    assert caught.value.code == status
    (printed,) = capsys.readouterr().err.splitlines()
    assert printed.startswith(line)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left", "out/a.png"),
            "out/a.png: No space left; free some space, or",
        ),
        (OSError(errno.EACCES, "Permission denied", "out"), "out: Permission denied; change its permissions, or"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (OSError("something else"), "something else"),
    ],
)
def test_what_the_system_refuses_is_said_with_its_name_and_a_remedy(error: OSError, said: str) -> None:
    assert explained(error).startswith(said)


def test_a_file_that_cannot_be_written_whole_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Is a directory") as caught, atomic_path(tmp_path) as temporary:
        temporary.write_bytes(b"a file in the place of a folder")
    assert str(tmp_path) in (caught.value.filename, caught.value.filename2)
    with pytest.raises(OSError, match="too large") as caught, atomic_path(tmp_path / "a.png"):
        raise OSError(errno.EFBIG, "File too large")
    assert caught.value.filename == str(tmp_path / "a.png")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_path_is_not_the_current_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(EvalSettings(), "", ["--data_path", ""])
    assert "is empty: name a file or a folder" in capsys.readouterr().err


def test_a_programming_fault_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(_settings: Example) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("sys.argv", ["script"])
    with pytest.raises(ZeroDivisionError):
        run_script(run, Example(), "")


# ---------------------------------------------------------------- devices


def test_devices() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", ""):
        with pytest.raises(InputError, match="--device"):
            choose_device(name)


@pytest.mark.parametrize("native", [True, False])
def test_precision_by_itself(native: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """auto takes bfloat16 where the CPU computes it; elsewhere an explicit bf16 is said to be slow."""
    monkeypatch.setattr(utils, "computes_bf16", lambda: native)
    cpu = torch.device("cpu")
    found = [utils.choose_precision(name, cpu) for name in ("auto", "fp32", "bf16")]
    assert found == ["bf16" if native else "fp32", "fp32", "bf16"]
    assert ("much slower than fp32" in capsys.readouterr().out) != native


def test_environment_is_plain() -> None:
    found = environment(torch.device("cpu"))
    assert {"python", "torch", "torchvision", "cv2", "skimage", "device_name", "commit"} <= set(found)
    json.dumps(found, allow_nan=False)
    assert cv2.__version__ == found["cv2"]


def test_a_copy_within_another_repository_has_no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    if (ROOT / ".git").exists():
        assert utils.commit() is not None
    monkeypatch.setattr(utils, "__file__", str(ROOT / "tests/utils.py"))
    assert utils.commit() is None


# ---------------------------------------------------------------- control groups, and readers that leave


def groups(root: Path, line: str, files: dict[str, object]) -> Path:
    """A file system as control groups show it."""
    for name, content in {"proc/self/cgroup": line, **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


MIB = 2**20
STAT = f"anon 5\ninactive_file {30 * MIB}\ntotal_inactive_file {30 * MIB}"
V2 = {
    "sys/fs/cgroup/job/step/memory.max": "max",
    "sys/fs/cgroup/job/step/memory.current": 50 * MIB,
    "sys/fs/cgroup/job/step/memory.stat": STAT,
    "sys/fs/cgroup/job/memory.max": 200 * MIB,
    "sys/fs/cgroup/job/memory.current": 80 * MIB,
    "sys/fs/cgroup/job/memory.stat": STAT,
    "sys/fs/cgroup/job/step/cpu.max": "max 100000",
    "sys/fs/cgroup/job/cpu.max": "150000 100000",
}
V1 = {
    "sys/fs/cgroup/memory/slurm/memory.limit_in_bytes": 200 * MIB,
    "sys/fs/cgroup/memory/slurm/memory.usage_in_bytes": 80 * MIB,
    "sys/fs/cgroup/memory/slurm/memory.stat": STAT,
    "sys/fs/cgroup/cpu/slurm/cpu.cfs_quota_us": 150000,
    "sys/fs/cgroup/cpu/slurm/cpu.cfs_period_us": 100000,
    "sys/fs/cgroup/cpu/slurm/job/cpu.cfs_quota_us": -1,
    "sys/fs/cgroup/cpu/slurm/job/cpu.cfs_period_us": 100000,
}


@pytest.mark.parametrize(
    ("line", "files"), [("0::/job/step", V2), ("9:cpu:/slurm/job\n5:memory:/slurm/job", V1)], ids=["v2", "v1"]
)
def test_limits_of_nested_control_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, files: dict[str, object]
) -> None:
    """The tightest one counts, of the outer groups too; cached files are free memory."""
    root = groups(tmp_path, line, files)
    found = utils.control_groups
    monkeypatch.setattr(utils, "control_groups", lambda controller: found(controller, root))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    assert utils.free_memory(torch.device("cpu")) == (200 - 80 + 30) * MIB
    assert utils.usable_cpus() == 2
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(1), raising=False)
    assert utils.usable_cpus() == 1


def test_without_control_groups_nothing_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64), raising=False)
    for files in ({}, {"sys/fs/cgroup/job/cpu.max": "rubbish", "sys/fs/cgroup/job/memory.max": "rubbish"}):
        root = groups(tmp_path / str(len(files)), "0::/job", files)
        monkeypatch.setattr(utils, "control_groups", lambda c, root=root: [root / "sys/fs/cgroup/job"])
        assert utils.usable_cpus() == 64
        assert utils.free_memory(torch.device("cpu")) > 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EIO, errno.EAGAIN])
def test_file_systems_without_locks_get_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def lockf(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", lockf)
    if number == errno.EAGAIN:
        with pytest.raises(InputError, match="another process is writing there"):
            lock(tmp_path / "run/lock")
    else:
        lock(tmp_path / "run/lock").close()
        assert capsys.readouterr().out.count("has no locks; do not start a second run in the folder") == 1


@pytest.mark.parametrize("number", [errno.EPIPE, errno.EIO])
def test_output_that_nobody_can_see_stops_nothing(tmp_path: Path, number: int) -> None:
    """A pipe whose reader left, or a terminal that was closed."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

        def fileno(self) -> int:
            return descriptor

    descriptor = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    try:
        Unbroken(Gone()).write("a line")
        os.write(descriptor, b"goes nowhere")
    finally:
        os.close(descriptor)
    assert (tmp_path / "file").read_bytes() == b""
    number = errno.ENOSPC
    with pytest.raises(OSError, match=os.strerror(number)):
        Unbroken(Gone()).write("a line")


def test_memory_that_a_shell_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """ulimit -v: what the process has taken counts."""
    resource = pytest.importorskip("resource")
    if not Path("/proc/self/statm").exists():
        pytest.skip("only Linux tells what a process has taken")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (size + 300 * MIB, resource.RLIM_INFINITY))
    assert 200 * MIB < utils.free_memory(torch.device("cpu")) <= 400 * MIB


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals there")
def test_a_narrow_terminal_gets_plain_lines(tmp_path: Path) -> None:
    """No codes that move, colour or erase, in whatever terminal."""
    write_pairs(tmp_path / "pairs", 2)
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "net.pth")
    terminal, end = os.openpty()
    arguments = ("--data_path", "pairs", "--logdir", "net.pth", "--save_path", "out")
    environment = os.environ | {"COLUMNS": "10", "TERM": "xterm-256color", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "test_Rain12.py", *arguments]
    assert subprocess.run(command, cwd=tmp_path, env=environment, stdin=end, stdout=end, stderr=end).returncode == 0
    os.close(end)
    printed = b""
    with contextlib.suppress(OSError):  # which ends it
        while chunk := os.read(terminal, 4096):
            printed += chunk
    assert b"[2/2] rain-002.png" in printed
    assert not re.search(rb"[^\n -~]", printed.replace(b"\r\n", b"\n"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no head there")
def test_a_reader_that_leaves_stops_nothing(tmp_path: Path) -> None:
    """`| head -1`, also of the errors, or no output at all: the results are there, and no word of a broken pipe.

    Without -u, Python keeps the last lines until it ends.
    """
    write_pairs(tmp_path / "pairs", 3)
    (tmp_path / "pairs/rainy/rain-002.png").write_bytes(b"damaged")
    torch.save(DARGNet(channels=4, groups=1).state_dict(), tmp_path / "net.pth")
    script = f"{sys.executable} {ROOT / 'test_real.py'} --data_path pairs/rainy --logdir net.pth --save_path"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    endings = (("2>&1 | head -n 1", 1), ("2> /dev/null | true", 0), (">&- | cat", 0), (">&- 2>&- | cat", 0))
    for i, (ending, lines) in enumerate(endings):
        command = ["bash", "-c", f"{script} {i} {ending}; exit ${{PIPESTATUS[0]}}"]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 2, result.stderr  # of the damaged image
        assert "Traceback" not in result.stderr and "pipe" not in result.stderr
        assert len(result.stdout.splitlines()) == lines
        assert len(list((tmp_path / str(i)).glob("rain-*.png"))) == 2
        assert (tmp_path / f"{i}/results.json").exists() and (tmp_path / f"{i}/index.html").exists()


def test_progress_in_a_notebook_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shown by IPython, which is stood in for here, into an output that each line replaces."""
    shown: list[object] = []

    class Display:
        def update(self, content: dict[str, str], raw: bool) -> None:
            shown.append((content, raw))

    ipython, stdout = types.ModuleType("IPython.display"), type("OutStream", (io.StringIO,), {})
    ipython.display = lambda *_, **options: options == {"raw": True, "display_id": True} and Display()
    stdout.__module__ = "ipykernel.iostream"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "IPython.display", ipython)
        patch.setattr(sys, "stdout", stdout())
        progress = Progress()
        progress.show("step 1")
        progress.show("step 2")
        assert sys.stdout.getvalue() == ""
        patch.setattr(sys, "stdout", Unbroken(sys.stdout))  # as under %run
        Progress().show("step 3")
    assert shown == [({"text/plain": f"step {i}"}, True) for i in (1, 2, 3)]
    Progress().show("step 3")
    assert capsys.readouterr().out == "step 3\n"
