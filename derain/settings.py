"""The settings of the scripts: what each flag is, its default, and which values make sense.

A script overrides a few of them for its data set; the command line overrides those.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

from derain.cli import setting
from utils import InputError

# What --recipe changes. logs/README.md has the validation gain that earned each setting its place.
RECIPES = {
    "paper": {},
    "best": {"schedule": "cosine", "ema": 0.999, "augment": True, "batch_size": 4, "precision": "bf16"},
}


@dataclasses.dataclass(frozen=True)
class TrainSettings:
    """The published recipe; a train script overrides what its data set needs."""

    recipe: str = setting("paper", "paper: as published; best: what validation prefers (logs/README.md)", RECIPES)
    data_path: Path = setting(Path(), "folder of training pairs")
    save_path: Path = setting(Path(), "folder for weights, training state and logs")
    epochs: int = setting(100, "passes over the patches")
    batch_size: int = setting(8, "patches per step")
    lr: float = setting(1e-3, "learning rate of Adam (highest)")
    milestones: tuple[float, ...] = setting((40, 60, 80), "epochs (or fractions) after which the rate falls to a fifth")
    patch_size: int = setting(100, "side of a training patch in pixels")
    stride: int = setting(80, "distance between patches in pixels")
    flip: bool = setting(False, "double the patches by left-right mirror images")
    strict: bool = setting(False, "of RainTrainH use only the 1,254 images without test backgrounds")
    schedule: str = setting("multistep", "rate falls at milestones, or in one cosine", ("multistep", "cosine"))
    warmup: int = setting(200, "steps of linear warm-up (cosine only)")
    ema: float = setting(0.0, "decay of the averaged weights that are saved; 0: save the last ones")
    augment: bool = setting(False, "mirror every patch left-right and upside down at random")
    recombine: bool = setting(False, "give every patch the rain of another patch of its batch, drawn anew at each step")
    gain: float = setting(0.0, "make each patch's rain up to this much (0.3: 30 %) stronger or fainter at random")
    validation: int = setting(0, "pairs to hold out at least, by whole backgrounds; 0: train on all, as published")
    validation_path: Path | None = setting(None, "folder of pairs to validate on; their backgrounds are not trained on")
    validate_every: int = setting(0, "steps between validations; 0: at each epoch's end")
    workers: int = setting(2, "processes that read patches, at most one per processor")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the network; the loss is always fp32", ("fp32", "bf16"))
    compile: bool = setting(False, "have torch.compile make steps faster, after a minute; needs a C++ compiler")
    seed: int = setting(0, "seed of everything random")
    init: Path | None = setting(None, "weights to start from, not random ones: a .pth file, or its folder")
    deterministic: bool = setting(False, "on a GPU only operations that repeat bit for bit, slower; the CPU's all do")
    max_steps: int | None = setting(None, "stop after this many steps in all, even within an epoch")
    resume: str = setting(
        "auto",
        "auto: go on from save_path's training state, if any; never: refuse to; force: go on with changed settings",
        ("auto", "never", "force"),
    )
    save_minutes: float = setting(5.0, "minutes between training states, beside each epoch's end")

    script: str = ""  # the train script's name, for messages
    rain: str = "heavy"  # the kind of synthetic rain nearest to the data set

    # These may differ between the parts of a run that was stopped and resumed.
    FREE = (
        *("save_path", "epochs", "max_steps", "validate_every"),
        *("recipe", "workers", "device", "resume", "save_minutes"),
    )


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What a test script measures, and with which weights."""

    data_path: Path | None = setting(None, "folder of the pairs (default: datasets/test/NAME)")
    logdir: Path = setting(Path(), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/NAME)")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting("fp32", "arithmetic of the network", ("fp32", "bf16"))
    backend: str = setting("torch", "what computes; openvino needs requirements-extra.txt", ("torch", "openvino"))
    quantize: str = setting("round", "how values become 8-bit; the authors truncated", ("round", "truncate"))
    skip_existing: bool = setting(False, "keep images that an earlier run with the same weights and settings derained")
    page: bool = setting(True, "write index.html, every image with a before/after slider")
    figure: tuple[str, ...] | None = setting(
        None, "draw figure.png: pictures by name, or those of median, largest and smallest gain (own ones: some three)"
    )
    crop: tuple[int, ...] | None = setting(
        None, "X Y SIZE: left, top, width (pixels) of the figure's crop, half as high"
    )
    tile: str = setting("auto", "auto (by free memory), off, or the side of exact tiles in pixels")

    recursive: bool = False  # these three are flags of test_real.py
    show_rain: bool = False
    frames: int | None = None

    name: str = ""  # of the data set
    rain: str = "heavy"  # of the stand-in where the data set is missing
    pairs: int | None = None  # how many the data set has; None: there are no clean images to measure against
    input_psnr_y: float | None = None  # mean of its rainy images, by which it is told from other sets of as many pairs
    unseen: tuple[int, ...] = ()  # numbers of the images whose backgrounds RainTrainL does not show
    reference: tuple[float, float, float | None] | None = None  # psnr_y, ssim_y, psnr_rgb of the authors' outputs


def check_settings(settings: TrainSettings) -> None:
    """Raise InputError for a number that makes no sense, before anything long begins."""
    for name in ("epochs", "batch_size", "lr", "patch_size", "stride", "max_steps"):
        value = getattr(settings, name)
        if value is not None and not 0 < value < math.inf:  # nan is not, either
            raise InputError(f"--{name} {value}: must be a number above 0")
    for name in ("workers", "validation", "validate_every", "warmup", "save_minutes"):
        if not getattr(settings, name) >= 0:
            raise InputError(f"--{name} {getattr(settings, name)}: must not be below 0")
    for name in ("ema", "gain"):
        if not 0 <= getattr(settings, name) < 1:
            raise InputError(f"--{name} {getattr(settings, name)}: must be at least 0 and below 1")
    if settings.validation and settings.validation_path:
        raise InputError(f"--validation {settings.validation} and --validation_path: only one of them at a time")


def parse_tile(text: str) -> int | None:
    """--tile as a number of pixels: 0 for off, None for auto."""
    if text in ("auto", "off"):
        return None if text == "auto" else 0
    if not text.isdecimal() or int(text) < 16:
        raise InputError(f"--tile {text}: takes auto, off, or a number of pixels from 16 up")
    return int(text)
