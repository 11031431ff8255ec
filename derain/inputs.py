"""What a test takes: its settings, its images, and what tables may call them."""

import dataclasses
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from derain import figure
from derain.cli import check_folder, setting, text_to_paths
from derain.pairs import Pair, find_pairs, find_rainy, list_images, rainy_file
from derain.synthesize import stand_in, synthetic_label
from derain.results import OutputPaths, output_paths, refuse_replacing
from derain.sets import TestSet, identify_pairs
from derain.video import VIDEO_SUFFIXES
from utils import InputError


@dataclasses.dataclass(frozen=True)
class EvalSettings:
    """What a test script measures, and with which weights."""

    data_path: tuple[Path, ...] = setting(
        (), "images and folders of them, or a video; of a test set its folder (default: the set's)", alias="rainy_dir"
    )
    clean_dir: Path | None = setting(None, "folder of the clean images, if they are not in --data_path")
    logdir: Path = setting(Path("logs/Rain100H"), "folder that holds net_latest.pth, or a .pth file")
    save_path: Path | None = setting(None, "folder for derained images and results (default: results/NAME)")
    device: str = setting("auto", "auto, cpu, cuda, cuda:N or mps")
    precision: str = setting(
        "fp32", "arithmetic of the network; auto: bf16 where it is native", ("auto", "fp32", "bf16")
    )
    quantize: str = setting("round", "how values become 8-bit; the authors truncated", ("round", "truncate"))
    skip_existing: bool = setting(False, "keep images that an earlier run with the same weights and settings derained")
    page: bool = setting(True, "write index.html, every image with a before/after slider")
    figure: tuple[str, ...] | None = setting(
        None, "draw figure.png: images by name, or without names those of largest, median and smallest gain"
    )
    crop: tuple[int, ...] | None = setting(
        None, "X Y SIZE: left, top, width (pixels) of the figure's crop, half as high"
    )
    tile: str = setting("auto", "auto (by free memory), off, or the side of exact tiles in pixels")
    recursive: bool = setting(False, "own images: include all subfolders; results keep the subfolders")
    suffix: str = setting("", "own images: what is added to their names, such as _derained")
    format: str = setting("png", "own images: how they are saved", ("png", "jpg", "webp"))
    quality: int = setting(95, "of jpg and webp, 1 to 100")
    out: Path | None = setting(None, "the file for a single image or video, instead of a folder of results")
    show_rain: bool = setting(False, "also write the removed rain, rainy - derained clipped at 0, to rain/")
    codec: str = setting("libx264", "of a video, in FFmpeg's words")
    crf: int = setting(17, "quality of a video: 0 is the best, 51 the worst")
    start: float = setting(0.0, "second of a video to start at")
    duration: float | None = setting(None, "seconds of a video to derain (default: all)")

    def __post_init__(self) -> None:
        text_to_paths(self)
        if isinstance(self.data_path, Path):  # one path will do in Python
            object.__setattr__(self, "data_path", (self.data_path,))


@dataclasses.dataclass
class Images:
    """What is to be derained: a test set's pairs or own images, where results go, and what tables call them."""

    source: str
    inputs: Sequence[Pair | Path]
    label: str
    save_path: Path
    outputs: list[OutputPaths]
    exact: int = 0  # pairs whose pixels are the test set's
    quality: int = 95  # of JPEG and WebP


def default_data(test_set: TestSet | None) -> Path:
    """Return the data set's usual folder, or a synthetic stand-in, with a line that says so, if it is missing."""
    name, rain = (test_set.name, test_set.rain) if test_set else ("real", "heavy")
    folder = Path("datasets/test") / name
    if folder.is_dir():
        return folder
    missing = f"{folder} is missing (see datasets/README.md for where to get it)"
    print(f"{missing}: using a stand-in of synthetic {rain} rain, whose scores are not those of {name}", flush=True)
    return stand_in(rain)


def label_of(test_set: TestSet, data_path: Path, pairs: Sequence[Pair]) -> tuple[str, int]:
    """Return what tables call the pairs, and how many have exactly the test set's pixels.

    The label is the set's own name only if all its pairs are there, with its pixels, under its numbers.
    """
    synthetic = synthetic_label(rainy_file(pairs[0]).parent)
    if synthetic:
        return f"{synthetic}, not {test_set.name}", 0
    found = identify_pairs(pairs)
    if found.name == test_set.name:
        return found.label, found.exact
    return f"{data_path.resolve().name} ({found.label}), not {test_set.name}", 0


def find_images(data_path: Path, save_path: Path, recursive: bool) -> list[Path]:
    """Return the rainy images at a path: a file, those of a folder, with `recursive` also of its subfolders.

    What else is there is counted in a line. save_path: results, which are not taken for inputs.
    Raises InputError if there is no image.
    """
    if not data_path.is_dir():
        return find_rainy(data_path)
    folders = folders_below(data_path, leave_out=save_path) if recursive else [data_path]
    images = [image for folder in folders for image in list_images(folder)]
    try:
        found = images if recursive and images else find_rainy(data_path)
    except InputError as error:
        inside = [p for p in data_path.iterdir() if p.is_dir()]
        if images or not inside:
            raise
        raise InputError(f"{data_path}: holds no image, but {len(inside)} folders; add --recursive") from error
    if set(found) <= set(images):  # otherwise it is a data set, and its rainy images are in a subfolder
        others = [p for folder in folders for p in folder.iterdir() if p.name[0] != "." and p not in set(images)]
        kinds = Counter(_kind(p, recursive) for p in others if p.resolve() != save_path.resolve())
        kinds.pop("", None)
        if kinds:
            listed = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
            print(f"{data_path}: left out: {listed}", flush=True)
    return found


def _kind(path: Path, recursive: bool) -> str:
    """Say why a path is left out; '' for a subfolder that is not."""
    if path.is_dir() and recursive:
        return "" if is_open_folder(path) else "subfolders that cannot be read"
    if path.is_dir():
        return "subfolders (--recursive takes them)"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos (--data_path takes one at a time)"
    return f"{path.suffix.lower() or 'other'} files"


def collect(settings: EvalSettings, test_set: TestSet | None) -> Images:
    """Find the images, name them, and decide where results go."""
    paths = settings.data_path or (default_data(test_set),)
    source = str(paths[0]) + (f" and {len(paths) - 1} others" if len(paths) > 1 else "")
    save_path = settings.save_path or Path("results") / (test_set.name if test_set else "real")
    root, exact = None, 0
    if test_set is not None:
        refuse_own(settings, test_set)
        inputs: Sequence[Pair | Path] = find_pairs(paths[0], clean_dir=settings.clean_dir)
        label, exact = label_of(test_set, paths[0], inputs)
        if settings.save_path is None and label != test_set.name:
            save_path = Path("results") / paths[0].resolve().name
    else:
        if settings.clean_dir:
            raise InputError("--clean_dir: is for measuring; use a test script, such as test_Rain100H.py")
        inputs = list(dict.fromkeys(i for path in paths for i in find_images(path, save_path, settings.recursive)))
        label = synthetic_label(rainy_file(inputs[0]).parent) or "own images"
        root = paths[0] if settings.recursive and len(paths) == 1 and paths[0].is_dir() else None
    ending = f"{settings.suffix}.{settings.format}"
    outputs = output_paths(save_path, inputs, root, settings.show_rain, ending)
    figure.check_figure(settings.figure, settings.crop, [paths.name for paths in outputs])
    if settings.figure is not None:
        refuse_replacing([save_path / "figure.png"], [paths.output for paths in outputs])
    check_folder(save_path)
    return Images(source, inputs, label, save_path, outputs, exact, settings.quality)


def refuse_own(settings: EvalSettings, test_set: TestSet) -> None:
    """Raise InputError for what only own images take, or what is missing."""
    if len(settings.data_path) > 1:
        raise InputError(f"--data_path: {test_set.name} takes one folder of pairs, not {len(settings.data_path)}")
    if settings.clean_dir and not settings.data_path:
        raise InputError("--clean_dir: add --data_path, the folder of the rainy images")
    for name, usual in (("suffix", ""), ("format", "png"), ("out", None)):
        if getattr(settings, name) != usual:
            raise InputError(f"--{name}: is for your own images (test_real.py); a test set's are saved as NAME.png")


def is_open_folder(path: Path) -> bool:
    """Whether a path is a folder that this user may read."""
    return path.is_dir() and os.access(path, os.R_OK | os.X_OK)


def folders_below(folder: Path, leave_out: Path) -> list[Path]:
    """Return a folder and all its subfolders but `leave_out`; links don't lead to one twice."""
    folders: list[Path] = []
    taken, waiting = {os.path.realpath(leave_out)} - {os.path.realpath(folder)}, [folder]
    while waiting:
        folder = waiting.pop()
        place = os.path.realpath(folder)
        if place in taken:
            continue
        taken.add(place)
        folders.append(folder)
        waiting += sorted((p for p in folder.iterdir() if p.name[0] != "." and is_open_folder(p)), reverse=True)
    return folders
