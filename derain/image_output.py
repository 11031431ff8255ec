"""Derained images on their way out: what of an input stays as it was, and files with the input's metadata."""

import dataclasses
import io
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from scipy.ndimage import distance_transform_edt

from derain.images import DecodedImage
from utils import InputError, write_atomically

SPACES = {2: b"GRAY", 3: b"RGB "}  # dimensions of the pixels -> the colour space that a profile has to be for


def visible(image: DecodedImage) -> np.ndarray:
    """Return the RGB image with fully transparent pixels filled from the nearest visible ones.

    Their hidden colour, often black, would otherwise affect their neighbours.
    """
    if image.alpha is None or image.alpha.all() or not image.alpha.any():
        return image.rgb
    _, nearest = distance_transform_edt(image.alpha == 0, return_indices=True)
    return image.rgb[tuple(nearest)]


def like(image: DecodedImage, derained: np.ndarray) -> DecodedImage:
    """Return the derained image as the input was: hidden pixels untouched, grey if it was without colour."""
    if image.alpha is not None:
        derained = np.where(image.alpha[..., None] == 0, image.rgb, derained)
    if (image.rgb == image.rgb[..., :1]).all():
        derained = grey_mean(derained)
    return dataclasses.replace(image, rgb=derained)


def grey_mean(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 or uint16 -> the same with each channel the rounded mean of the three."""
    mean = np.round(rgb.mean(axis=2, keepdims=True)).astype(rgb.dtype)
    return np.repeat(mean, 3, axis=2)


# ---------------------------------------------------------------- writing


def write_image(path: Path, image: DecodedImage, quality: int = 95) -> None:
    """Write PNG, JPEG or WebP, as the suffix says, with the image's depth, alpha, greyness and metadata, atomically.

    quality: of JPEG and WebP, 1 to 100. Raises InputError if the format has no such depth or no alpha.
    """
    pixels = grey_mean(image.rgb)[..., 0] if image.grey else image.rgb
    if image.alpha is not None and not image.grey:
        pixels = np.dstack([pixels, image.alpha])
    profile = image.metadata.get("icc_profile", b"")
    kept = {k: v for k, v in image.metadata.items() if k != "icc_profile" or profile[16:20] == SPACES[pixels.ndim]}
    suffix = path.suffix.lower()
    if suffix == ".png":
        bgr = pixels if pixels.ndim == 2 else pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]
        encoded, data = cv2.imencode(".png", bgr)
        if not encoded:
            raise InputError(f"{path}: an image of shape {pixels.shape} cannot be encoded as PNG")
        content = data.tobytes()
        write_atomically(path, content[:33] + _png_chunks(kept) + content[33:])  # behind the header
        return
    if suffix != ".webp" and pixels.shape[2:] == (4,) and (image.alpha == np.iinfo(pixels.dtype).max).all():
        pixels = pixels[..., :3]  # opaque
    lost = "16 bits" if pixels.dtype == np.uint16 else "alpha" if pixels.shape[2:] == (4,) and suffix != ".webp" else ""
    if lost:
        raise InputError(f"{path}: {suffix} cannot keep the input's {lost}; write it as PNG")
    buffer, options = io.BytesIO(), {k: v for k, v in kept.items() if k in ("icc_profile", "exif", "xmp", "dpi")}
    if "exif" in options:
        options["exif"] = b"Exif\0\0" + options["exif"]
    if suffix != ".webp":  # a segment of JPEG has 64 KiB
        options = {k: v for k, v in options.items() if k not in ("exif", "xmp") or len(v) < 65_500}
    try:
        Image.fromarray(pixels).save(buffer, "WEBP" if suffix == ".webp" else "JPEG", quality=quality, **options)
    except (ValueError, OSError) as error:  # too large for the format
        raise InputError(f"{path}: cannot be written as {suffix} ({error}); write it as PNG") from error
    write_atomically(path, buffer.getvalue())


def _png_chunks(metadata: Mapping[str, Any]) -> bytes:
    """Return metadata as chunks of a PNG file."""
    chunks = []
    if "icc_profile" in metadata:
        chunks.append((b"iCCP", b"ICC\0\0" + zlib.compress(metadata["icc_profile"])))
    elif "srgb" in metadata:
        chunks.append((b"sRGB", bytes([metadata["srgb"]])))
    if "gamma" in metadata:
        chunks.append((b"gAMA", struct.pack(">I", round(metadata["gamma"] * 100_000))))
    if "dpi" in metadata:
        chunks.append((b"pHYs", struct.pack(">IIB", *(round(float(d) / 0.0254) for d in metadata["dpi"]), 1)))
    if "exif" in metadata:
        chunks.append((b"eXIf", metadata["exif"]))
    if "xmp" in metadata:
        chunks.append((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata["xmp"]))
    return b"".join(struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
