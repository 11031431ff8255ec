"""How all benchmarks measure and print: interleaved, warmed up, synchronised, medians with their spread."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils import InputError, environment, write_json

Candidates = Mapping[str, Callable[[], object]]


def measure(candidates: Candidates, device: torch.device, rounds: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every call: each candidate in turn, round after round (A B A B), after `warmup` unmeasured rounds.

    Interleaving spreads whatever else the machine does evenly over the candidates, so that their
    ratios hold better than their times.
    """
    if rounds < 1:
        raise InputError(f"--rounds {rounds}: must be at least 1")
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(-warmup, rounds):
        for name, call in candidates.items():
            synchronise(device)
            began = time.perf_counter()
            call()
            synchronise(device)
            if turn >= 0:
                seconds[name].append(time.perf_counter() - began)
        print(f"  round {turn + warmup + 1} of {rounds + warmup}", file=sys.stderr, flush=True)
    return seconds


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given: its calls return early."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def summarise(seconds: Mapping[str, list[float]], notes: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """A row per candidate: median, quartiles, and how many times faster than the first one it is.

    The ratio is the median of the ratios within each round.
    """
    yardstick = np.array(next(iter(seconds.values())))
    rows = []
    for name, times in seconds.items():
        low, median, high = np.percentile(times, [25, 50, 75])
        ratio = float(np.median(yardstick / np.array(times)))
        row = {"name": name, "seconds": median, "low": low, "high": high, "times_faster": ratio}
        rows.append(row | ({"note": notes.get(name, "")} if notes else {}))
    return rows


def report(title: str, rows: list[dict[str, Any]], device: torch.device, json_path: Path | None) -> None:
    """Print a Markdown table of the rows; write them with the environment as JSON if a path is given."""
    notes = any("note" in row for row in rows)
    print(f"\n{title}\n")
    print("| | median | quartiles | times faster |" + (" |" if notes else ""))
    print("|---|---|---|---|" + ("---|" if notes else ""))
    for row in rows:
        cells = [row["name"], _time(row["seconds"]), f"{_time(row['low'])} to {_time(row['high'])}"]
        cells += [f"{row['times_faster']:.2f}", *([row["note"]] if notes else [])]
        print("| " + " | ".join(cells) + " |")
    machine = environment(device)
    print(f"\n{machine['device_name']}, {machine['threads']} threads, torch {machine['torch']}")
    if json_path:
        write_json(json_path, {"title": title, "rows": rows, "environment": machine})


def tell_if_without_gpu() -> None:
    """Say that there is no GPU to measure, so that the table is not taken for complete."""
    if not torch.cuda.is_available():
        print("CUDA: skipped, this machine has no GPU that torch can use")


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1000 * seconds:.3f} ms"
