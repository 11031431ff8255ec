"""Three questions about own images: how much derained videos flicker, what a colour profile costs, how fast films are.

    python -m benchmarks.own_images

Flicker: a photograph that stands still under rain that moves, frame by frame. Over time no pixel of the scene changes;
what the derained frames do change, in grey levels, is flicker.

Profile: the same rainy photographs stored in sRGB, and in a wider profile with the primaries of Display P3. The network
gets the values of the file as they are; the other way would be to convert them to sRGB and the result back.

Film: 1920x1080 pixels, from file to file with PyAV (`pip install av`), the most memory that the process held included.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import resource
import struct
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from derain.cli import run_script, setting
from derain.inference import derain_image, open_network
from derain.synthesize import KINDS, add_rain, free_photographs, rain_layer
from derain.video import derain_video
from SSIM import psnr_y
from utils import keep_freed_memory

P3 = {  # X, Y, Z of the primaries, adapted to D50
    b"rXYZ": (0.51512, 0.24120, -0.00105),
    b"gXYZ": (0.29198, 0.69225, 0.04189),
    b"bXYZ": (0.15710, 0.06657, 0.78407),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The command line."""

    rain: str = setting("light", "kind of rain, and of the weights against it", tuple(KINDS))
    frames: int = setting(20, "frames of the scene that stands still")
    film_frames: int = setting(6, "frames of the film")
    seed: int = setting(0, "seed of the rain")


def run(settings: Settings) -> None:
    """Print the tables."""
    keep_freed_memory()
    weights = {"light": "logs/Rain100L", "heavy": "logs/Rain100H"}[settings.rain]
    network, random = open_network(Path(weights)), np.random.RandomState(settings.seed)
    photographs = {name: image[:320, :480] for name, image in free_photographs("test").items()}
    print("| scene | rainy frames vary by | derained frames by |\n|---|---|---|")
    for name, clean in photographs.items():
        layers = (rain_layer(*clean.shape[:2], settings.rain, random) for _ in range(settings.frames))
        rainy = [add_rain(clean, layer) for layer in layers]
        derained = [derain_image(network, frame) for frame in rainy]
        before, after = (float(np.std(frames, axis=0).mean()) for frames in (rainy, derained))
        print(f"| {name} | {before:.2f} | {after:.2f} |", flush=True)
    print("\n| stored in | PSNR (Y) |\n|---|---|")
    srgb = ImageCms.createProfile("sRGB")
    wide = ImageCms.ImageCmsProfile(io.BytesIO(wide_profile(ImageCms.ImageCmsProfile(srgb).tobytes())))
    scores: dict[str, list[float]] = {"sRGB": [], "Display P3, as it is": [], "Display P3, by way of sRGB": []}
    for clean in photographs.values():
        rainy = add_rain(clean, rain_layer(*clean.shape[:2], settings.rain, random))
        stored = converted(rainy, srgb, wide)
        as_it_is = converted(derain_image(network, stored), wide, srgb)
        by_way = derain_image(network, converted(stored, wide, srgb))
        by_way = converted(converted(by_way, srgb, wide), wide, srgb)
        for values, image in zip(scores.values(), (derain_image(network, rainy), as_it_is, by_way), strict=True):
            values.append(psnr_y(image, clean))
    for name, values in scores.items():
        print(f"| {name} | {np.mean(values):.2f} dB |")
    film(settings, weights)


def film(settings: Settings, weights: str) -> None:
    """Print the table of a film, at both precisions."""
    import av

    clean = np.tile(free_photographs("test")["coffee"], (3, 4, 1))[:1080, :1920]
    random = np.random.RandomState(settings.seed)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "film.mp4"
        with av.open(str(source), "w") as writer:
            stream = writer.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuv420p"
            for _ in range(settings.film_frames):
                frame = add_rain(clean, rain_layer(*clean.shape[:2], settings.rain, random))
                writer.mux(stream.encode(av.VideoFrame.from_ndarray(frame)))
            writer.mux(stream.encode(None))
        print("\n| 1920x1080 | frames per second | memory |\n|---|---|---|")
        for precision in ("fp32", "bf16"):
            network = open_network(Path(weights), precision=precision)
            began = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                derain_video(source, Path(name) / "out.mp4", lambda rgb, net=network: derain_image(net, rgb))
            pace = settings.film_frames / (time.perf_counter() - began)
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
            print(f"| {precision} | {pace:.2f} | {memory:.1f} GiB |", flush=True)


def wide_profile(srgb: bytes) -> bytes:
    """Return an sRGB profile with the primaries of Display P3."""
    profile = bytearray(srgb)
    for i in range(int.from_bytes(profile[128:132], "big")):  # the table of tags: name, offset, size
        name, offset = profile[132 + 12 * i : 136 + 12 * i], int.from_bytes(profile[136 + 12 * i : 140 + 12 * i], "big")
        if values := P3.get(bytes(name)):
            profile[offset + 8 : offset + 20] = struct.pack(">3i", *(round(v * 65536) for v in values))
    return bytes(profile)


def converted(rgb: np.ndarray, source: object, target: object) -> np.ndarray:
    """(H, W, 3) uint8 in one profile -> in another."""
    return np.array(ImageCms.profileToProfile(Image.fromarray(rgb), source, target))


if __name__ == "__main__":
    run_script(run, Settings(), __doc__)
