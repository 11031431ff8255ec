"""Images as numbers, files, devices, seeds. Nothing here knows of DARGNet."""

import contextlib
import ctypes
import hashlib
import io
import json
import math
import os
import platform
import random
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch


class InputError(Exception):
    """An error the user can fix. The message is one line with the path and the fix."""


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next tensors, up to 32 MiB each, the most that it can.

    Otherwise every layer's output is returned to the system, which clears each page before it hands
    it out again: that cost a quarter of the inference time. Other C libraries are left as they are.
    """
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3  # of malloc.h
    with contextlib.suppress(OSError, AttributeError, TypeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(mmap_threshold, 32 << 20)
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(top_pad, 64 << 20)


def release_freed_memory() -> None:
    """Have glibc return what it keeps to the system, after large work, before something else needs memory."""
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


# ---------------------------------------------------------------- images


def quantize(image: np.ndarray, dtype: np.dtype | type = np.uint8, mode: str = "round") -> np.ndarray:
    """Float values in [0, 1] -> integers of `dtype`, clipped. mode: 'round', or 'truncate' as the authors did."""
    levels = np.clip(image, 0, 1) * np.float32(np.iinfo(dtype).max)
    return (np.round(levels) if mode == "round" else levels).astype(dtype)


def to_tensor(rgb: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 or uint16 RGB -> (1, 3, H, W) float32 in [0, 1]."""
    scaled = rgb.astype(np.float32) / np.float32(np.iinfo(rgb.dtype).max)
    return torch.from_numpy(scaled).permute(2, 0, 1)[None]


def to_image(tensor: torch.Tensor) -> np.ndarray:
    """(1, 3, H, W) -> (H, W, 3) float32 on the CPU."""
    return tensor[0].float().permute(1, 2, 0).cpu().numpy()


# ---------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_path(path: Path, suffix: str = ".tmp") -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync and rename it there, on failure remove it.

    Whoever reads `path` sees the old file or the whole new one, also after a power cut.
    suffix: the temporary name's ending, for writers that go by it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:20]}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes private files; results are as open as any other
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename in (None, name):  # the name that is known outside
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | memoryview | str) -> None:
    """Write a whole file, or leave what was there."""
    with atomic_path(path) as temporary:
        # File names need not be valid text: what can't be encoded is spelled out, not fatal.
        temporary.write_bytes(content.encode("utf-8", "backslashreplace") if isinstance(content, str) else content)


def write_json(path: Path, content: Any) -> None:
    """Write strict JSON, atomically: paths become strings, infinite and undefined numbers null."""
    write_atomically(path, json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(content: Any) -> Any:
    """Return the same content in the types of strict JSON."""
    if isinstance(content, dict):
        return {str(k): plain(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(v) for v in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return str(content) if isinstance(content, Path) else content


def save_torch(path: Path, content: Any) -> None:
    """Save as torch.save does, atomically. A full disk is an OSError, not torch's RuntimeError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_atomically(path, buffer.getvalue())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# ---------------------------------------------------------------- devices, seeds, environment


def choose_device(name: str) -> torch.device:
    """'auto' (CUDA, else Apple's MPS, else the CPU), 'cpu', 'cuda', 'cuda:N' or 'mps'.

    float32 is made to mean float32: by itself cuDNN rounds it to 10 bits (TF32) in convolutions.

    Raises InputError if this machine has no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
        torch.backends.cudnn.allow_tf32 = False
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name}: not available on this machine; use --device auto or cpu") from error
    return device


def set_seed(seed: int, deterministic: bool = False) -> None:
    """Seed Python, NumPy and torch on every device; if asked to, keep torch to operations that repeat bit for bit."""
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which CUDA's matrix products need for that
    torch.use_deterministic_algorithms(deterministic)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def free_memory(device: torch.device) -> int:
    """Return the bytes that may be used on `device` now; 4 GiB where the system doesn't tell."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch's own, to use again
        return torch.cuda.mem_get_info(device)[0] + kept
    limits = []
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        if (most := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
            taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            limits.append(max(0, most - taken))
    for group in control_groups("memory"):
        for limit, used, cache in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
        ):
            with contextlib.suppress(OSError, ValueError):
                counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                free = int((group / limit).read_text()) - int((group / used).read_text()) + int(counts.get(cache, 0))
                limits.append(max(0, free))
    return min(limits, default=4 * 2**30)


def usable_cpus() -> int:
    """Return how many CPUs this process may use: by its affinity, and by the limits of its control groups."""
    limits = [len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1]
    for group in control_groups("cpu"):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (group / "cpu.max").read_text().split()
            limits.append(math.ceil(int(quota) / int(period)))  # 'max' is no number
        with contextlib.suppress(OSError, ValueError):  # version 1, where -1 is no limit
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            limits.append(math.ceil(int(quota) / int(period)) if int(quota) > 0 else limits[0])
    return max(1, min(limits))


def control_groups(controller: str, root: Path = Path("/")) -> list[Path]:
    """Return the folders of the control groups, of both versions, that this process is in, from inner to outer."""
    found = []
    with contextlib.suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, name = line.split(":", 2)
            if controllers and controller not in controllers.split(","):
                continue
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = top / name.strip("/")
            found += [place for place in (inner, *inner.parents) if place.is_relative_to(top)]
    return found


def environment(device: torch.device) -> dict[str, Any]:
    """Return what a result depends on besides the code: versions, hardware, and the code's commit."""
    import h5py
    import skimage
    import torchvision

    modules = (torch, torchvision, np, cv2, skimage, h5py)
    versions = {m.__name__: m.__version__ for m in modules}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name()
    system = {"python": platform.python_version(), "platform": platform.platform()}
    used = {"device": str(device), "device_name": name, "threads": torch.get_num_threads(), "commit": commit()}
    return {**system, **versions, **used}


def processor_name() -> str:
    """Return the CPU's model name, as far as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def commit() -> str | None:
    """Return the git commit of this code, with '-dirty' if files differ from it; None outside a clone of it."""
    folder = Path(__file__).resolve().parent
    describe = ("describe", "--always", "--dirty", "--abbrev=12")
    command = ["git", f"--git-dir={folder}/.git", f"--work-tree={folder}", *describe]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def choose_precision(name: str, device: torch.device) -> str:
    """'auto', 'fp32' or 'bf16' -> 'fp32' or 'bf16': auto takes bf16 where `device` computes it natively.

    A CPU that does not (it needs avx512_bf16 or AMX) is ten times slower in bf16 than in fp32.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and computes_bf16()
    if name == "bf16" and not native:
        print(f"--precision bf16: this {device.type} computes it by emulation, much slower than fp32", flush=True)
    return ("bf16" if native else "fp32") if name == "auto" else name


def computes_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 numbers in hardware."""
    if hasattr(torch.cpu, "get_capabilities"):
        found = {name for name, has in torch.cpu.get_capabilities().items() if has}
    else:  # torch 2.11
        cpuinfo = Path("/proc/cpuinfo")
        found = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return not found.isdisjoint(("avx512_bf16", "amx_bf16", "bf16"))
