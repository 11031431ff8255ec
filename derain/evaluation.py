"""The parts of an evaluation: weights, data sets, images through the network, their rows of results.

engine.evaluate puts them together; read that first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

from derain.containers import VIDEO_SUFFIXES
from derain.data.synthesize import stand_in, synthetic_label
from derain.inference import OpenVINONetwork, derain, fold, in_blocks
from derain.page import Thumbnails, thumbnails
from derain.results import Place
from derain.settings import EvalSettings
from DerainDataset import DerainDataset, Pair, find_rainy, folders_below, list_images, rainy_file, read_pair
from networks import DARGNet, load_network
from SSIM import image_metrics, psnr_y, ssim_y
from utils import (
    IMAGE_SUFFIXES,
    DecodedImage,
    InputError,
    append_line,
    free_memory,
    grey_mean,
    quantize,
    read_image,
    release_freed_memory,
    sha256_of,
    to_image,
    to_tensor,
    write_atomically,
    write_image,
)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WHOLE_PIXELS = 4_000_000  # images up to here are computed whole if memory allows
LARGEST_TILE = 1440  # pixels; its halo is a sixth more work


def derain_image(network: DARGNet, rgb: np.ndarray, tile: int | None = None, quantization: str = "round") -> np.ndarray:
    """(H, W, 3) uint8 or uint16 RGB -> the derained image, of the same shape and type.

    network: as fast_network gives it. tile: largest side of exact tiles in pixels, 0 for none,
    None to go by the free memory. Only a tile at a time is ever there as floating-point numbers.
    """
    if tile is None:
        tile = automatic_tile(*rgb.shape[:2], network)

    def part(pixels: torch.Tensor) -> torch.Tensor:
        rainy = to_tensor(pixels[0].permute(1, 2, 0).numpy()).to(memory_format=torch.channels_last)
        derained = quantize(to_image(derain(network, rainy)), rgb.dtype, quantization)
        if tile:  # lest pieces that one tile leaves add to the next one's memory, or to what encoding takes
            release_freed_memory()
        return torch.from_numpy(derained).permute(2, 0, 1)[None]

    pixels = torch.from_numpy(rgb).permute(2, 0, 1)[None]  # HWC -> NCHW, the same memory
    derained = in_blocks(part, pixels, network.receptive_field_radius, tile) if tile else part(pixels)
    return derained[0].permute(1, 2, 0).numpy()


def ahead(pool: Executor, call: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Future]:
    """The futures of call(item) for every item in order, begun two items early, so that few results wait in memory."""
    futures: deque[Future] = deque()
    for item in items:
        futures.append(pool.submit(call, item))
        if len(futures) > 2:
            yield futures.popleft()
    yield from futures


def read_images(pair: Pair | Path) -> tuple[DecodedImage, np.ndarray | None]:
    """A rainy picture, and its clean image if it has one. Raises InputError naming what can't be read."""
    if isinstance(pair, Path):
        return read_image(pair), None
    rainy, clean = read_pair(pair)
    return DecodedImage(rainy), clean


class Provenance:
    """provenance.jsonl of a results folder: which weights, settings and input each derained file there came from.

    A line is added for every file that was written; the last one for a name counts. What was made
    otherwise, or changed since, is not taken for this run's own by --skip_existing.
    """

    def __init__(self, folder: Path, checksum: str, settings: EvalSettings) -> None:
        self.folder, self.path = folder, folder / "provenance.jsonl"
        names = ("precision", "backend", "quantize")
        self.how = {"weights_sha256": checksum} | {name: getattr(settings, name) for name in names}
        self.known: dict[str, Any] = {}
        try:
            text = self.path.read_text(encoding="utf-8")
        except (OSError, ValueError):
            return
        for line in text.splitlines():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # a line that was cut off
                entry = json.loads(line)
                self.known[entry["file"]] = entry
        kept = "".join(json.dumps(entry) + "\n" for entry in self.known.values())
        if kept != text:  # lines that others replaced, or a last one that the next would be added to
            write_atomically(self.path, kept)

    def _entry(self, output: Path, source: Path) -> dict[str, Any]:
        status, name = source.stat(), output.relative_to(self.folder).as_posix()
        return {"file": name, "sha256": sha256_of(output), "input": [status.st_size, status.st_mtime_ns], **self.how}

    def add(self, output: Path, source: Path) -> None:
        """Record that `output` was just made from `source`."""
        append_line(self.path, json.dumps(self._entry(output, source)))

    def made(self, output: Path, source: Path) -> bool:
        """Whether `output` is there, as this run would make it from `source`."""
        try:
            entry = self._entry(output, source)
        except OSError:
            return False
        return self.known.get(entry["file"]) == entry


def existing(output: Path, picture: DecodedImage) -> np.ndarray | None:
    """The derained image that an earlier run left, or None if there is none that fits the picture."""
    try:
        rgb = read_image(output).rgb
    except InputError:
        return None
    return rgb if rgb.shape == picture.rgb.shape and rgb.dtype == picture.rgb.dtype else None


def finish(
    pair: Pair | Path,
    place: Place,
    picture: DecodedImage,
    clean: np.ndarray | None,
    derained: np.ndarray,
    milliseconds: float | None,
    provenance: Provenance,
    with_thumbnails: bool,
) -> tuple[dict[str, Any], Thumbnails | None]:
    """Write a derained image, unless an earlier run did (milliseconds is None), its rain if wanted, and measure it.

    Returns its row of results, and its pictures for the page if they are wanted.
    """
    try:
        if milliseconds is not None:
            write_image(place.output, dataclasses.replace(picture, rgb=derained))
            provenance.add(place.output, rainy_file(pair))
        if place.rain is not None:
            rain = rain_layer(picture.rgb, grey_mean(derained) if picture.grey else derained)
            write_image(place.rain, DecodedImage(rain, grey=picture.grey))
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise  # a full disk: the next image would fare no better
        raise InputError(f"{place.output}: the name is too long for this file system; rename the picture") from error
    row: dict[str, Any] = {"image": place.name}
    figures = {}
    if clean is not None:
        try:
            row |= image_metrics(derained, clean)
            figures = image_metrics(picture.rgb, clean)
        except ValueError as error:
            raise InputError(f"{pair.rainy}: {error}") from error
    row |= {"milliseconds": milliseconds} | {f"input_{name}": value for name, value in figures.items()}
    return row, thumbnails(picture.rgb, derained, clean) if with_thumbnails else None


def rain_layer(rainy: np.ndarray, derained: np.ndarray) -> np.ndarray:
    """What was taken away: rainy - derained, below 0 clipped to 0, not stretched; (H, W, 3) uint8 or uint16 as they."""
    return cv2.subtract(rainy, derained)


def validate(
    network: DARGNet, data: DerainDataset, pairs: Sequence[int], precision: str
) -> tuple[dict[str, float], list[torch.Tensor]]:
    """Mean psnr_y and ssim_y (PReNet protocol) over whole pairs of the packed set.

    With them the middles of the first four pairs, to look at: rainy, derained and clean ones, each
    (N, 3, H, W) in [0, 1], 128 pixels wide and high or as large as the smallest image.
    """
    from torchvision.transforms.functional import center_crop  # testing does without torchvision, and its 160 MB

    network, figures, middles = fold(network, DTYPES[precision]), [], []
    for pair in pairs:
        rainy, clean = data.whole_pair(pair)
        derained = derain_image(network, rainy)
        figures.append((psnr_y(derained, clean), ssim_y(derained, clean)))
        if len(middles) < 4:
            middles.append(torch.cat([to_tensor(image) for image in (rainy, derained, clean)]))
    side = min(128, *(length for images in middles for length in images.shape[2:]))
    shown = torch.stack([center_crop(images, [side, side]) for images in middles], dim=1)
    return dict(zip(("psnr_y", "ssim_y"), np.mean(figures, axis=0).tolist(), strict=True)), list(shown)


def data_set_label(settings: EvalSettings, data_path: Path, pairs: Sequence[Pair | Path]) -> str:
    """What every row, CSV and JSON calls the pictures: the data set's name only if they can be that set."""
    synthetic = synthetic_label(rainy_file(pairs[0]).parent)
    if synthetic:
        return f"{synthetic}, not {settings.name}" if settings.pairs else synthetic
    if settings.pairs in (None, len(pairs)):
        return settings.name
    return f"{data_path.resolve().name} ({len(pairs)} pairs), not {settings.name}"


def default_data(settings: EvalSettings) -> Path:
    """The data set's usual folder; where it is missing, the stand-in, with a line that says so."""
    folder = Path("datasets/test") / settings.name
    if folder.is_dir():
        return folder
    print(
        f"{folder} is missing (datasets/README.md says where {settings.name} is had; it goes there): "
        f"using a stand-in of synthetic {settings.rain} rain, whose figures are not {settings.name}'s",
        flush=True,
    )
    return stand_in(settings.rain)


def find_pictures(settings: EvalSettings, data_path: Path) -> list[Path]:
    """The pictures that have no clean ones: one, or those of a folder, with --recursive also of its subfolders.

    What else lies there is named in a line: videos, for they are done one at a time; files of other kinds; and,
    without --recursive, subfolders.

    Raises InputError if there is no picture.
    """
    if not data_path.is_dir():
        return find_rainy(data_path)
    results = settings.save_path or Path("results") / settings.name
    folders = folders_below(data_path, leave_out=results) if settings.recursive else [data_path]
    videos = [p for folder in folders for p in sorted(folder.iterdir()) if p.suffix.lower() in VIDEO_SUFFIXES]
    one_at_a_time = f"videos ({len(videos)}), which are done one at a time: --data_path {min(videos, default='')}"
    images = [image for folder in folders for image in list_images(folder)]
    if not images and videos:
        raise InputError(f"{data_path}: holds no image but {one_at_a_time}")
    if videos:
        print(f"{data_path}: also holds {one_at_a_time}", flush=True)
    taken = IMAGE_SUFFIXES | VIDEO_SUFFIXES
    visible = [p for folder in folders for p in sorted(folder.iterdir()) if p.name[0] != "."]
    others = [p.name for p in visible if p.is_file() and p.suffix.lower() not in taken]
    ours = os.path.realpath(results)
    inner = [p.name for p in visible if p.is_dir() and os.path.realpath(p) != ours and not settings.recursive]
    try:
        found = images if settings.recursive and images else find_rainy(data_path)
    except InputError as error:
        if images or not inner:
            raise
        raise InputError(f"{data_path}: holds no image, but subfolders ({_some(inner)}): add --recursive") from error
    if set(found) <= set(images):  # else it is a data set, and its rainy ones lie in a subfolder
        if others:
            print(f"{data_path}: left out, of kinds that are not read here: {_some(others)}", flush=True)
        if inner:
            print(f"{data_path}: subfolders are left out, --recursive takes them: {_some(inner)}", flush=True)
    return found


def _some(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def weights_file(path: Path) -> Path:
    """The weights that --logdir or --init names: the file itself, or net_latest.pth in the folder.

    What is not below the current folder is looked for below this repository's: our weights are found from anywhere.
    """
    for place in (path, Path(__file__).parent.parent / path):
        file = place / "net_latest.pth" if place.is_dir() else place
        if file.is_file():
            return file
    raise InputError(f"{path}: no such weights; name a folder with net_latest.pth, or a .pth file")


def load_weights(path: Path) -> DARGNet:
    """load_network with errors that are for the user to read."""
    try:
        return load_network(path)
    except ValueError as error:
        raise InputError(str(error)) from error


def fast_network(weights: Path, settings: EvalSettings, device: torch.device) -> nn.Module:
    """The network of a weights file as the settings want it run."""
    network, dtype = load_weights(weights), DTYPES[settings.precision]
    if settings.backend == "torch":
        return fold(network.to(device), dtype)
    if device.type != "cpu":
        raise InputError(f"--backend {settings.backend} computes on the CPU: add --device cpu")
    try:
        return OpenVINONetwork(network, dtype)
    except ImportError as error:
        raise InputError("--backend openvino needs openvino: pip install -r requirements-extra.txt") from error


def automatic_tile(height: int, width: int, network: nn.Module) -> int:
    """0 if an image fits well into the free memory, else the largest side of a tile that does."""
    device = next(network.parameters(), torch.empty(0)).device
    pixels = free_memory(device) / 2 / network.bytes_per_pixel
    if height * width <= min(pixels, WHOLE_PIXELS):
        return 0
    return max(64, min(LARGEST_TILE, int(math.sqrt(pixels)) - 2 * network.receptive_field_radius))
