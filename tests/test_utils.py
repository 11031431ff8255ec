"""Files that are whole or not there, the command line, devices."""

import dataclasses
import errno
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import utils
from derain.cli import check_folder, parse_settings, run_script, setting
from utils import InputError

CPU = torch.device("cpu")
RECIPES: Mapping[str, dict] = {"slow": {}, "quick": {"count": 1, "fast": True}}


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_level_survives_the_tensor(dtype: type) -> None:
    levels = np.arange(np.iinfo(dtype).max + 1, dtype=dtype).repeat(3).reshape(16, -1, 3)
    values = utils.to_image(utils.to_tensor(levels))
    assert np.array_equal(utils.quantize(values, dtype), levels)
    assert dtype == np.uint16 or np.array_equal(utils.quantize(values, dtype, "truncate"), levels)
    between = np.array([-0.2, 1.6 / 255, 254.9 / 255, 1.3], np.float32)
    assert utils.quantize(between).tolist() == [0, 2, 255, 255]
    assert utils.quantize(between, mode="truncate").tolist() == [0, 1, 254, 255]


def test_a_failed_write_names_the_file_and_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    utils.write_atomically(path, "older")
    with open(path) as reader:  # reads the whole file that it has opened
        utils.write_atomically(path, "old")
        assert reader.read() == "older"
    (tmp_path / "other").touch()
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode  # open to others as usual
    with pytest.raises(OSError, match="too large") as caught, utils.atomic_path(path) as temporary:
        temporary.write_text("half of the n")
        raise OSError(errno.EFBIG, "File too large")
    assert caught.value.filename == str(path)
    with pytest.raises(TypeError):
        utils.write_json(path, {"x": object()})
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2


def test_json_is_strict(tmp_path: Path) -> None:
    content = {"psnr": math.inf, "path": Path("a/b"), "list": (1, math.nan), "name": "\udcd3"}
    utils.write_json(tmp_path / "x.json", content)
    text = (tmp_path / "x.json").read_text()
    assert "Infinity" not in text
    assert "NaN" not in text
    expected = {"psnr": None, "path": "a/b", "list": [1, None], "name": "\udcd3"}
    assert json.loads(text) == expected


# ---------------------------------------------------------------- the command line


@dataclasses.dataclass(frozen=True)
class Example:
    recipe: str = setting("slow", "which", RECIPES)
    count: int = setting(3, "how many (100 % of them)", names=["--count", "--number"])
    fast: bool = setting(False, "hurry")
    steps: tuple[int, ...] = setting((1, 2), "when")
    limit: int | None = setting(None, "at most")
    kind: str = setting("a", "which", ("a", "b"))
    files: tuple[Path, ...] = setting((), "what", names=["files"])
    constant: str = "not a flag"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", Example()),
        ("--count 5 --fast --kind b", Example(count=5, fast=True, kind="b")),
        ("x y --steps 7 9 --limit 4", Example(steps=(7, 9), limit=4, files=(Path("x"), Path("y")))),
        ("--steps --no-fast --number 4", Example(steps=(), count=4)),
        ("--recipe quick", Example("quick", count=1, fast=True)),
        ("--count 9 --recipe quick --no-fast", Example("quick", count=9)),
    ],
)
def test_settings_from_the_command_line(line: str, expected: Example) -> None:
    assert parse_settings(Example(), "", line.split()) == expected


@pytest.mark.parametrize(
    "arguments", [["--coun", "5"], ["--fast=False"], ["--kind", "c"], ["--constant", "x"], [""]]
)
def test_flags_do_not_lie(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No abbreviations, no word for a boolean, and an empty path is not the current folder."""
    with pytest.raises(SystemExit) as caught:
        parse_settings(Example(), "", arguments)
    assert caught.value.code == 2
    assert "error" in capsys.readouterr().err


def test_help_shows_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_settings(Example(), "What it does.", ["--help"])
    shown = capsys.readouterr().out
    for text in ("What it does.", "(default: 3)", "--no-fast", "100 %"):
        assert text in shown


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("x.png: remove it"), 2, "error: x.png: remove it"),
        (OSError(28, "No space", "a.png"), 2, "error: a.png: No space"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 2, "error: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), 2, "error: out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 2, "error: out of memory"),
        (RuntimeError("illegal memory access"), None, ""),  # a bug keeps its traceback
    ],
)
def test_run_script_ends_in_one_line(
    error: BaseException,
    status: int | None,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(_settings: Example) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["script"])
    with pytest.raises(SystemExit if status else type(error)) as caught:
        run_script(run, Example(), "")
    assert getattr(caught.value, "code", None) == status
    printed = capsys.readouterr().err.splitlines()
    assert len(printed) == bool(status)
    assert "".join(printed).startswith(line)


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_folder(tmp_path / "new/below")
    for path in (tmp_path / "file", tmp_path / "file/below"):
        with pytest.raises(InputError, match="--out"):
            check_folder(path, "--out")


# ---------------------------------------------------------------- devices


@pytest.mark.parametrize("native", [True, False])
def test_devices_and_precisions(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert utils.choose_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("gpu", "cuda:99", ""):
        with pytest.raises(InputError, match="--device"):
            utils.choose_device(name)
    # Only auto goes by the machine; Intel's bf16 is slow without AMX.
    abilities = {"avx512_bf16": True, "cpu_name": "AMD EPYC" if native else "Intel Xeon"}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities, raising=False)
    found = [utils.choose_precision(name, CPU) for name in ("auto", "fp32", "bf16")]
    assert found == ["bf16" if native else "fp32", "fp32", "bf16"]
