"""A soak test: random kills, full disks, bad files and flags, for as long as you like. Not part of the test suite.

    python tests/soak.py --minutes 60

Each trial is made from its seed, which is printed if it fails: --seed N --trials 1 repeats it. Whatever happens, a
command ends with status 0 or 2 (a signal has its own) and without a traceback, an output is a whole image or not there,
and a training that was killed or interrupted ends with the weights of one that was left alone.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from conftest import scene, write, write_pairs  # noqa: E402

from derain.images import read_image  # noqa: E402
from networks import DARGNet  # noqa: E402
from utils import InputError  # noqa: E402

TRAINING = ["--stride", "16", "--patch_size", "32", "--batch_size", "2", "--groups", "1", "--max_steps", "30"]


def run(
    folder: Path,
    *command: object,
    seconds: float | None = None,
    number: int = signal.SIGKILL,
    largest: int = 0,
) -> subprocess.CompletedProcess:
    """Run a script; send it a signal after some seconds, or let no file grow beyond `largest` bytes (a full disk)."""

    def limit() -> None:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # which leaves the error EFBIG
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))

    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        preexec_fn=limit if largest else None,
    )
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, output)


def check(result: subprocess.CompletedProcess, *allowed: int) -> None:
    assert "Traceback" not in result.stdout, result.stdout[-2000:]
    assert result.returncode in allowed, f"status {result.returncode}: {result.stdout[-2000:]}"


def training(folder: Path, chance: random.Random, reference: dict[str, torch.Tensor]) -> str:
    """Kill or interrupt a training a few times, or let the disk be full, and let it end."""
    write_pairs(folder / "pairs", 2)
    command = [ROOT / "train_rain100L.py", "--data_path", "pairs", "--save_path", "run", *TRAINING]
    kills = chance.randint(1, 4)
    for _ in range(kills):
        if chance.random() < 0.3:
            check(run(folder, *command, largest=chance.choice([1_000, 60_000, 200_000, 900_000])), 0, 2)
        else:
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
            result = run(folder, *command, "--save_minutes", "0", seconds=chance.uniform(2, 9), number=number)
            if "pairs, step" in result.stdout:
                check(result, 0, 130 if number == signal.SIGINT else 75, -number)
            else:  # while torch is imported
                assert result.returncode in (-number, 0, 130), f"status {result.returncode}: {result.stdout[-2000:]}"
    check(run(folder, *command), 0)
    found = torch.load(folder / "run/net_latest.pth", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in reference.items()), "other weights"
    return "training killed"


def spoil(path: Path, chance: random.Random) -> None:
    """Damage a file in one of the ways that files are damaged."""
    data = bytearray(path.read_bytes())
    kind = chance.randrange(4)
    if kind == 0:
        data = data[: chance.randrange(len(data))]
    elif kind == 1:
        for _ in range(chance.randint(1, 20)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    elif kind == 2:
        data = bytearray(chance.randbytes(chance.randrange(2000)))
    path.write_bytes(data)


def images(folder: Path, chance: random.Random, reference: dict[str, torch.Tensor]) -> str:
    """Derain a folder of images of which some are damaged, with random flags, at times on a full disk."""
    torch.save(reference, folder / "net.pth")
    for i in range(chance.randint(1, 6)):
        rgb = scene(i, chance.randint(1, 90), chance.randint(1, 90))[0]
        channels = rgb if chance.random() < 0.7 else rgb[..., 0]
        path = write(folder / f"in/{i}{chance.choice(['.png', '.jpg', '.tif', '.webp', '.bmp'])}", channels)
        if chance.random() < 0.5:
            spoil(path, chance)
    flags = ["--tile", chance.choice(["auto", "off", "16", "40"]), "--format", chance.choice(["png", "jpg", "webp"])]
    flags += chance.sample(
        ["--show_rain", "--figure", "--no-page", "--recursive", "--skip_existing"], chance.randrange(4)
    )
    command = [ROOT / "test_real.py", "--data_path", "in", "--logdir", "net.pth", "--save_path", "out", *flags]
    if chance.random() < 0.3:
        check(run(folder, *command, largest=chance.choice([100, 3_000, 20_000])), 0, 2)
    if killed := chance.random() < 0.3:
        check(run(folder, *command, seconds=chance.uniform(2, 6)), 0, 2, -signal.SIGKILL)
    result = run(folder, *command)
    check(result, 0, 2)
    assert result.returncode == 0 or "error: " in result.stdout
    for path in [*folder.glob("out/*.png"), *folder.glob("out/*.jpg"), *folder.glob("out/*.webp")]:
        assert np.isfinite(read_image(path).rgb).all()
    assert killed or not list(folder.glob("out/.*")), "a temporary file is left"
    return "images damaged"


def pairs(folder: Path, chance: random.Random, reference: dict[str, torch.Tensor]) -> str:
    """Measure a set with a damaged, missing or extra file: scores of all pairs, or one line."""
    torch.save(reference, folder / "net.pth")
    write_pairs(folder / "pairs", 3)
    files = sorted(p for p in (folder / "pairs").rglob("*") if p.is_file())
    victim = chance.choice(files)
    what = chance.randrange(4)
    if what == 0:
        victim.unlink()
    elif what == 1:
        spoil(victim, chance)
    elif what == 2:
        victim.with_name(f"{victim.stem} (1){victim.suffix}").write_bytes(victim.read_bytes())
    result = run(folder, ROOT / "test_Rain12.py", "--data_path", "pairs", "--logdir", "net.pth", "--save_path", "out")
    check(result, 0, 2)
    if result.returncode == 0:
        assert "3 pairs" in result.stdout
        for path in files:
            try:
                read_image(path)
            except InputError as error:
                raise AssertionError(f"measured in spite of {error}") from error
    else:
        assert len([line for line in result.stdout.splitlines() if line.startswith("error: ")]) == 1
    return "pairs damaged"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--trials", type=int, default=10**9)
    parser.add_argument("--seed", type=int, default=0, help="of the first trial")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by a job in the background
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs", 2)
        command = [ROOT / "train_rain100L.py", "--data_path", "pairs", "--save_path", "run", *TRAINING]
        check(run(folder, *command), 0)
        reference = torch.load(folder / "run/net_latest.pth", weights_only=True)
    assert set(reference) == set(DARGNet(groups=1).state_dict())
    began, counts = time.monotonic(), Counter[str]()
    for seed in range(options.seed, options.seed + options.trials):
        if time.monotonic() - began > 60 * options.minutes:
            break
        chance = random.Random(seed)
        trial = chance.choice([training, images, images, images, pairs, pairs])
        with tempfile.TemporaryDirectory() as name:
            try:
                counts[trial(Path(name), chance, reference)] += 1
            except Exception as error:
                print(f"seed {seed}, {trial.__name__}: {error}", flush=True)
                counts[f"FAILED {trial.__name__}"] += 1
    print(f"{(time.monotonic() - began) / 60:.0f} minutes: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    raise SystemExit(any(what.startswith("FAILED") for what in counts))


if __name__ == "__main__":
    main()
