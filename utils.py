"""Helpers that are not specific to DARGNet: errors, tensors, atomic writes, devices, seeds."""

import contextlib
import ctypes
import io
import json
import os
import platform
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm


class InputError(Exception):
    """An error that the user can fix. The message is one line with the path and the fix."""


def note(text: str) -> None:
    """Print a message to stderr, above the progress bar."""
    tqdm.write(text, file=sys.stderr)


def quantize(image: np.ndarray, dtype: Any = np.uint8, mode: str = "round") -> np.ndarray:
    """Convert float values in [0, 1] to integers of `dtype`; mode 'truncate' is the authors'."""
    levels = np.clip(image, 0, 1) * np.float32(np.iinfo(dtype).max)
    if mode == "round":
        levels = np.round(levels)
    return levels.astype(dtype)


def to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """Convert (H, W, 3) uint8 or uint16 RGB to (1, 3, H, W) float32 in [0, 1]."""
    scaled = rgb.astype(np.float32) / np.float32(np.iinfo(rgb.dtype).max)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None]


def to_image(tensor: torch.Tensor) -> np.ndarray:
    """Convert (1, 3, H, W) on any device to (H, W, 3) float32."""
    return tensor[0].float().permute(1, 2, 0).cpu().numpy()


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary path: renamed to `path` on success, removed on failure.

    A reader sees the old file or the whole new one, even after a power cut.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.filename in (None, str(temporary)):  # name the file that the user knows
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write a whole file or leave the old one. File names that are not text are escaped."""
    if isinstance(content, str):
        content = content.encode("utf-8", "backslashreplace")
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def json_types(content: Any) -> Any:
    """Return the content in types of strict JSON: paths as text, non-finite numbers as None."""
    text = json.dumps(content, default=os.fspath)
    return json.loads(text, parse_constant=lambda _: None)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, atomically."""
    write_atomically(path, json.dumps(json_types(content), indent=2) + "\n")


def save_torch(path: Path, content: Any) -> None:
    """Save like torch.save, atomically. A full disk is an OSError, not torch's RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def choose_device(name: str) -> torch.device:
    """Return the device called auto (CUDA, MPS or CPU), cpu, cuda, cuda:N or mps.

    Makes cuDNN compute float32 as float32, not as TF32. Raises InputError if it is not available.
    """
    if name == "auto":
        name = str(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    torch.backends.cudnn.allow_tf32 = False
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available; use --device auto or cpu") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """Return fp32 or bf16; for auto bf16 if `device` computes it natively, and faster.

    A CPU that emulates bf16 takes ten times as long; an Intel one without AMX, 1.4 times.
    """
    if name != "auto":
        return name
    native = False
    if device.type == "cpu":
        ability = cpu_capabilities().get
        is_intel = "Intel" in ability("cpu_name", "")
        native = ability("amx_bf16") or ability("bf16") or (ability("avx512_bf16") and not is_intel)
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if native else "fp32"


def cpu_capabilities() -> dict[str, Any]:
    """Return the CPU's abilities, as torch reports them; none before torch 2.12."""
    return getattr(torch.cpu, "get_capabilities", dict)()


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed torch; deterministic: use deterministic GPU kernels (slower)."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # CUDA needs it
    torch.use_deterministic_algorithms(deterministic)
    torch.manual_seed(seed % 2**63)


def keep_freed_memory() -> None:
    """Have glibc keep all freed memory for the next tensors.

    Otherwise the system clears every page again, which can double the inference time.
    """
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # from malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_max, 0)  # blocks that are mapped one by one always go back
        mallopt(trim_threshold, -1)
        mallopt(top_pad, 64 << 20)


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides its settings: versions and hardware."""
    name = cpu_capabilities().get("cpu_name") or platform.processor()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
    }
