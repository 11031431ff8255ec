"""Image files: decoded or refused with a one-line error, and written with their metadata.

Pillow reads them, but for TIFF, which tifffile reads, and PNG of 16 bits, which OpenCV does. The network gets a file's
values as they are; its colour profile goes to the result. datasets/README.md has a table.
"""

import contextlib
import dataclasses
import io
import logging
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from utils import InputError

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()  # which lets Pillow read HEIC

MOST_PIXELS = 2**28  # 16,384 x 16,384 of an image; a few bytes of a file can claim any number
SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"}
SUFFIXES |= {".avif", ".jp2", ".heic", ".heif"}
HAVE_FRAMES = {"GIF", "PNG", "WEBP", "TIFF", "AVIF"}
# What EXIF says of the scene, the camera and the author. The rest of the first directory is about the file.
EXIF_KEPT = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298, 0x8769, 0x8825}
TURNS = {  # by EXIF orientation: how the stored pixels become upright
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}

logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # damaged files are reported here
Image.MAX_IMAGE_PIXELS = None  # the limit here is MOST_PIXELS
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # a megabyte is not enough for every XMP and profile


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """A decoded image file. rgb: (H, W, 3) uint8 or uint16; alpha: (H, W) of the same type, or None.

    grey: stored with one colour channel. metadata: icc_profile, exif, xmp (bytes), dpi, gamma, srgb, as Pillow's info
    has them. frames: how many the file has; `rgb` is the first.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: int = 1


def is_image(path: Path) -> bool:
    """Whether a file is an image by its suffix, or, if it has none, by its first bytes."""
    if path.suffix or not path.is_file():  # opening a pipe would wait for ever
        return path.suffix.lower() in SUFFIXES
    try:
        with Image.open(path):
            return True
    except Exception:  # of any kind, for what is no image
        return False


def read_image(path: Path) -> DecodedImage:
    """Read an image of 8 or 16 bits: grey, colour, palette or CMYK, with or without alpha (which makes grey colour).

    It is turned upright by its EXIF data. Raises InputError, naming the path, if the file is missing, cut off, no
    image, or of a kind that is not read.
    """
    try:
        if path.is_fifo() or path.is_char_device():  # reading one could wait for ever
            raise InputError(f"{path}: not a file; remove it")
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    # Some readers fill in what is missing with grey or black, or show rubbish from a damaged place on.
    if (data[:4] == b"\x89PNG" and not _png_is_whole(data)) or (data[:2] == b"\xff\xd8" and not _jpeg_is_whole(data)):
        raise InputError(f"{path}: the image is cut off after {len(data)} bytes, or damaged; get it again")
    try:
        found = _decode(data)
    except InputError as error:
        raise InputError(f"{path}: {error}; convert it to PNG") from None
    except MemoryError as error:
        raise InputError(f"{path}: too little memory to read it; close other programs, or make it smaller") from error
    except Exception:  # what the readers raise for damaged files is of any kind
        found = None
    if found is None:
        hint = "pip install pillow-heif, or convert" if data[4:8] == b"ftyp" else "convert"
        raise InputError(f"{path}: not an image that can be read, or too large; {hint} it to PNG, or remove it")
    return found


def _decode(data: bytes) -> DecodedImage | None:
    """Return the image; None if nothing reads it. Raises InputError saying which kind is not read."""
    header: Image.Image | None = None
    with contextlib.suppress(Exception):  # of any kind, for damaged files
        header = Image.open(io.BytesIO(data))
    metadata, frames, found = {}, 1, None
    if header is not None:
        if header.width * header.height > MOST_PIXELS:
            return None
        metadata = _metadata(header)
        frames = getattr(header, "n_frames", 1) if header.format in HAVE_FRAMES else 1
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        found = _by_tifffile(data)
    elif header is not None and header.format == "PNG" and data[24] == 16:  # bits, of which Pillow keeps 8
        found = _png_of_16_bits(header, data)
    if found is None and header is not None:
        found = _by_pillow(header, metadata.get("icc_profile"))
        if header.mode == "CMYK":
            metadata.pop("icc_profile", None)  # the pixels are sRGB now
    return found and dataclasses.replace(found, metadata=metadata, frames=frames)


def _by_opencv(data: bytes) -> np.ndarray:
    """Return the pixels, (H, W, C) uint16: grey, RGB or RGBA. OpenCV turns TIFF upright, and nothing else."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.dtype != np.uint16:
        raise InputError("a file of this kind is not read")
    if pixels.ndim == 2:
        return pixels[..., None]
    return pixels[..., [2, 1, 0, 3][: pixels.shape[2]]]


def _png_of_16_bits(header: Image.Image, data: bytes) -> DecodedImage:
    pixels = _by_opencv(data)
    if pixels.shape[2] == 1 and "transparency" in header.info:  # a grey level that stands for transparent
        pixels = np.dstack([pixels, np.where(pixels == header.info["transparency"], 0, 65535).astype(np.uint16)])
    return _image(pixels, header.getexif().get(ExifTags.Base.Orientation, 1))


def _by_tifffile(data: bytes) -> DecodedImage | None:
    """Read a TIFF's first page, if it is plain grey or RGB and no codec is missing; None if Pillow has to."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page: Any = file.pages.first
        kind, planes = page.photometric.name, page.samplesperpixel
        colours = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3}.get(kind)
        if page.imagewidth * page.imagelength * page.imagedepth > MOST_PIXELS:
            return None
        if colours and planes - colours > 1:
            raise InputError(f"a TIFF of {planes} channels is not read")
        if page.sampleformat != 1 or kind in ("CIELAB", "ICCLAB"):
            raise InputError(f"a TIFF of this kind ({kind}, {page.dtype}) is not read")
        if colours is None or page.dtype not in (np.uint8, np.uint16):
            return None
        if any(offset + size > len(data) for offset, size in zip(page.dataoffsets, page.databytecounts, strict=True)):
            raise InputError("the image is cut off")
        try:
            pixels = page.asarray()
        except (ValueError, ImportError, KeyError, NotImplementedError):  # compressed as LZW, JPEG, ZSTD, ...
            if page.dtype == np.uint8:
                return None
            if colours != planes or page.planarconfig != 1 or kind == "MINISWHITE":
                how = f"16 bits, {kind}, {planes} channels, {page.compression.name}"
                raise InputError(f"a TIFF of this kind ({how}) is not read") from None
            return _image(_by_opencv(data))
        if page.planarconfig == 2 and planes > 1:
            pixels = np.moveaxis(pixels, 0, -1)
        pixels = pixels.reshape(page.imagelength, page.imagewidth, planes)
        if kind == "MINISWHITE":
            pixels = np.dstack([np.iinfo(pixels.dtype).max - pixels[..., :1], pixels[..., 1:]])
        extra = page.extrasamples[0] if page.extrasamples else None
        if extra == 0:  # of no known meaning, such as infrared
            pixels = pixels[..., :colours]
        elif extra == 1:  # colours are multiplied by alpha
            alpha, most = pixels[..., colours:].astype(np.float64), np.iinfo(pixels.dtype).max
            straight = np.where(alpha > 0, pixels[..., :colours] / np.maximum(alpha, 1) * most, 0)
            pixels = np.dstack([np.minimum(most, np.round(straight)).astype(pixels.dtype), pixels[..., colours:]])
        orientation = page.tags.get("Orientation")
        return _image(pixels, int(orientation.value) if orientation else 1)


def _by_pillow(image: Image.Image, profile: bytes | None) -> DecodedImage:
    format, mode = image.format, image.mode
    transparent = "transparency" in image.info or mode in ("LA", "La", "PA", "RGBA", "RGBa")
    if mode not in ("1", "L", "P", "I;16", "I;16B", "RGB", "YCbCr", "CMYK", "LA", "La", "PA", "RGBA", "RGBa"):
        raise InputError(f"{format} of this kind ({mode}) is not read")
    image = ImageOps.exif_transpose(image)
    if mode.startswith("I;16"):
        return _image(np.asarray(image).astype(np.uint16)[..., None])
    if mode in ("1", "L") and not transparent:
        return _image(np.asarray(image.convert("L"))[..., None])
    if mode == "CMYK":
        image = to_srgb(image, profile)
    return _image(np.asarray(image.convert("RGBA" if transparent else "RGB")))


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an RGB or CMYK image in sRGB; unchanged without a profile of its kind that can be used."""
    if not profile or profile[16:20] != {"RGB": b"RGB ", "CMYK": b"CMYK"}[image.mode]:
        return image
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(image, source, target, outputMode="RGB") or image
    except (OSError, ImageCms.PyCMSError):
        return image


def _image(pixels: np.ndarray, orientation: int = 1) -> DecodedImage:
    """(H, W, C) grey, grey and alpha, RGB or RGBA, and what EXIF calls their orientation -> the upright image."""
    pixels = TURNS[orientation](pixels) if orientation in TURNS else pixels
    colours = 1 if pixels.shape[2] < 3 else 3
    alpha = np.ascontiguousarray(pixels[..., colours]) if pixels.shape[2] > colours else None
    rgb = pixels[..., :colours]
    rgb = np.repeat(rgb, 3, axis=2) if colours == 1 else np.array(rgb, order="C")  # which can be written to
    return DecodedImage(rgb, alpha, grey=colours == 1 and alpha is None)


def _metadata(image: Image.Image) -> dict[str, Any]:
    """Return what is to be kept of an image's metadata; what is damaged is left out."""
    info = {key: image.info[key] for key in ("icc_profile", "gamma", "srgb") if image.info.get(key) is not None}
    with contextlib.suppress(Exception):  # of any kind, for damaged metadata
        dpi = tuple(float(value) for value in image.info["dpi"])
        info |= {"dpi": dpi} if all(0 < value < 1e7 for value in dpi) else {}
    with contextlib.suppress(Exception):
        exif = Image.Exif()
        exif.load(image.getexif().tobytes())  # a copy: the image's own still has its orientation
        for tag in set(exif) - EXIF_KEPT:
            del exif[tag]
        info |= {"exif": exif.tobytes().removeprefix(b"Exif\0\0")} if exif else {}
    with contextlib.suppress(Exception):
        if xmp := image.info.get("xmp") or image.info.get("XML:com.adobe.xmp"):
            text = xmp if isinstance(xmp, bytes) else xmp.encode()
            info["xmp"] = re.sub(rb'(tiff:Orientation[=>]"?)[2-8]', rb"\g<1>1", text)  # the pixels are upright now
    return info


def _png_is_whole(data: bytes) -> bool:
    """Whether the chunks that hold the pixels are all there, up to the last one, with the right checksums."""
    at, names = 8, set()
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            names.add(name)
            if data[end : end + 4] != zlib.crc32(memoryview(data)[at + 4 : end]).to_bytes(4, "big"):
                return False
        if name == b"IEND":
            return names >= {b"IHDR", b"IDAT"}
        at = end + 4
    return False


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether a JPEG's first scan is followed by an end mark; cameras may append anything behind that."""
    at = 2
    while data[at : at + 1] == b"\xff" and data[at + 1 : at + 2] != b"\xda":  # segments before the scan
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big") if data[at + 1 : at + 2] != b"\xff" else 1
    return data.find(b"\xff\xd9", at) >= 0


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB: alpha dropped, 16 bits rounded to 8. Raises as read_image does."""
    rgb = read_image(path).rgb
    return rgb if rgb.dtype == np.uint8 else np.round(rgb / 257).astype(np.uint8)
