"""Read image files with their metadata, or reject them in one line, and write the results.

Pillow does it, except that OpenCV reads 16 bits and writes PNG. The network gets the stored values,
and the result keeps their colour profile. datasets/README.md lists the kinds of files.
"""

import contextlib
import dataclasses
import io
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageOps, PngImagePlugin
from PIL.ExifTags import Base as Tag

from utils import InputError, write_atomically

with contextlib.suppress(ImportError):
    import pillow_heif

    pillow_heif.register_heif_opener()  # lets Pillow read HEIC

SUFFIXES = {".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".bmp", ".tif", ".tiff", ".webp", ".gif"}
SUFFIXES |= {".avif", ".heic", ".heif"}
MAX_PIXELS = 2**28  # 16,384 x 16,384; a few bytes of a file can claim any number
MODES = {"1", "L", "P", "RGB", "YCbCr", "LA", "PA", "RGBA"}
# EXIF about the scene, the camera and the author; the rest of the first directory is about the file
EXIF_KEPT = {Tag.ImageDescription, Tag.Make, Tag.Model, Tag.Software, Tag.DateTime, Tag.Artist}
EXIF_KEPT |= {Tag.Copyright, Tag.ExifOffset, Tag.GPSInfo}
PNG_COLOURS = {b"cICP", b"mDCV", b"cLLI", b"sRGB", b"gAMA", b"cHRM"}  # names of chunks
SRGB_PRIMARIES = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)
SRGB_VALUES = {SRGB_PRIMARIES, struct.pack(">I", 45455), b"\0", b"\1", b"\2", b"\3"}  # of chunks
# TIFF in planes, of inverted grey, with premultiplied alpha
RARE_TIFF = {Tag.PlanarConfiguration: 2, Tag.PhotometricInterpretation: 0, Tag.ExtraSamples: (1,)}
RARE = "damaged, or of a kind that is not read (datasets/README.md); save it as plain PNG"
BGR = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}  # channels -> OpenCV's order

Image.MAX_IMAGE_PIXELS = None  # MAX_PIXELS is the limit
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # XMP may exceed a megabyte
set_log_level = getattr(cv2, "setLogLevel", None) or cv2.utils.logging.setLogLevel  # OpenCV 4 or 5
set_log_level(0)  # damaged files are reported here


@dataclasses.dataclass(frozen=True)
class DecodedImage:
    """A decoded image file. rgb: (H, W, 3) uint8 or uint16; alpha: (H, W) likewise, or None.

    grey: stored with one channel. metadata: icc_profile, exif and dpi, as Pillow has them;
    png_colours, chunks by name. frames: how many the file has; `rgb` is the first.
    """

    rgb: np.ndarray
    alpha: np.ndarray | None = None
    grey: bool = False
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    frames: int = 1


def read_rgb(path: Path) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, without alpha. Raises InputError as read_image does."""
    return to_8_bits(read_image(path).rgb)


def to_8_bits(rgb: np.ndarray) -> np.ndarray:
    """Convert uint8 or uint16 RGB to uint8."""
    if rgb.dtype == np.uint16:
        rgb = np.round(rgb / 257).astype(np.uint8)
    return rgb


def read_image(path: Path) -> DecodedImage:
    """Read an image of 8 or 16 bits, upright: grey, colour or palette, also with alpha.

    Raises InputError, naming the path, if the file is missing, damaged, or of another kind.
    """
    try:
        if not path.is_file():
            raise InputError("no such image file; check its spelling")
        data = path.read_bytes()
        Image.open(io.BytesIO(data)).verify()  # the checksums of PNG, which decoding ignores
        image: Any = Image.open(io.BytesIO(data))
        for name in ("xmp", "XML:com.adobe.xmp"):  # viewers ignore its orientation, Pillow doesn't
            image.info.pop(name, None)
        if image.width * image.height > MAX_PIXELS:
            raise InputError(f"too large ({image.width} x {image.height} pixels); make it smaller")
        few_bits = image.format == "PNG" and image.mode == "L" and data[24] in (2, 4)
        if image.format in ("PPM", "JPEG2000") or (few_bits and "transparency" in image.info):
            raise InputError(RARE)  # of which Pillow loses bits, or the transparency
        has_16_bits = image.format == "PNG" and data[24] == 16
        if image.format == "TIFF":
            _check_tiff(image.tag_v2, data)
            has_16_bits = 16 in image.tag_v2.get(Tag.BitsPerSample, ())
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # MPO: previews
        pixels = _decode_16_bits(image, data) if has_16_bits else _decode_8_bits(image, data)
        metadata = _metadata(image, data, grey=pixels.shape[2] == 1)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # decoders raise errors of any type for damaged files
        advice = "get it again, or convert it to PNG (HEIC: pip install pillow-heif)"
        raise InputError(f"{path}: not readable ({type(error).__name__}); {advice}") from error
    height, width, channels = pixels.shape
    rgb = np.broadcast_to(pixels[..., :3], (height, width, 3)).copy()
    alpha = pixels[..., 3].copy() if channels == 4 else None
    return DecodedImage(rgb, alpha, channels == 1, metadata, frames)


def _check_tiff(tags: Mapping[int, Any], data: bytes) -> None:
    """Raise InputError for raw files of cameras, which are TIFFs too, and for rare kinds."""
    is_raw = Tag.DNGVersion in tags or {Tag.Make, Tag.SubIFDs} <= set(tags)
    is_cr2 = data.startswith(b"II*\0\x10\0\0\0CR")
    if is_raw or is_cr2 or tags.get(Tag.NewSubfileType, 0) & 1:  # 1: reduced image
        raise InputError("a raw file, or a TIFF that begins with a preview; save the image as PNG")
    for tag, value in RARE_TIFF.items():
        if tags.get(tag) == value:
            raise InputError(RARE)


def _decode_16_bits(image: Any, data: bytes) -> np.ndarray:
    """Decode PNG or TIFF with OpenCV, because Pillow keeps 8 bits: (H, W, C) uint16."""
    pixels = np.atleast_3d(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED))
    channels = {"I": 1, "I;16": 1, "RGB": 3, "RGBA": 4, "LA": 4}.get(image.mode)  # LA as RGBA
    is_turned = image.getexif().get(Tag.Orientation, 1) != 1  # OpenCV obeys it only in TIFF
    ignored = "transparency" in image.info or (is_turned and image.format == "PNG")
    if ignored or pixels.dtype != np.uint16 or pixels.shape[2] != channels:
        raise InputError(RARE)
    return pixels[..., BGR[channels]]


def _decode_8_bits(image: Any, data: bytes) -> np.ndarray:
    """Decode with Pillow, upright: (H, W, C) uint8, grey, RGB or RGBA."""
    if image.mode not in MODES:
        raise InputError(RARE)
    mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.has_transparency_data:
        mode = "RGBA"
    try:
        upright = ImageOps.exif_transpose(image)
    except OSError:
        upright = ImageOps.exif_transpose(_jpeg_without_end(data))
    return np.atleast_3d(np.asarray(upright.convert(mode)))


def _jpeg_without_end(data: bytes) -> Image.Image:
    """Decode a JPEG that lacks only its end mark. Raises OSError if lines are missing as well.

    The decoder replaces missing bits by zeros. If ones give another image, bits are missing.
    """
    data = data.rstrip(b"\xff")
    image = Image.open(io.BytesIO(data + b"\xff\xd9"), formats=["JPEG"])
    with_ones = Image.open(io.BytesIO(data + b"\xfe" * 4096 + b"\xff\xd9"))
    has_parts = "progressive" in image.info or b"\xff\xdd" in data  # restart intervals
    if has_parts or image.tobytes() != with_ones.tobytes():
        raise OSError("the image is cut off")
    return image


def _metadata(image: Image.Image, data: bytes, grey: bool) -> dict[str, Any]:
    """Return the metadata to keep, without parts that are damaged or don't fit the pixels."""
    info = image.info
    found = {name: info[name] for name in ("icc_profile", "dpi") if info.get(name)}
    if found.get("icc_profile", b"")[16:20] != (b"GRAY" if grey else b"RGB "):
        found.pop("icc_profile", None)
    if not all(1 < value < 1e7 for value in found.get("dpi", ())):  # 1: Pillow, if TIFF has none
        del found["dpi"]
    with contextlib.suppress(Exception):  # Pillow raises errors of any type for damaged EXIF
        exif = image.getexif()
        for tag in set(exif) - EXIF_KEPT:
            del exif[tag]
        if exif:
            found["exif"] = exif.tobytes()
    start, name, colours = 8, b"", {}
    while image.format == "PNG" and name != b"IDAT":
        size, name = struct.unpack_from(">I4s", data, start)
        if name in PNG_COLOURS:
            colours[name] = data[start + 8 : start + 8 + size]
        start += 12 + size
    return found | {"png_colours": colours}


def like_input(image: DecodedImage, derained: np.ndarray) -> DecodedImage:
    """Return the derained image with the input's hidden pixels, and grey if the input is."""
    if image.alpha is not None:
        derained = np.where(image.alpha[..., None] == 0, image.rgb, derained)
    if (image.rgb == image.rgb[..., :1]).all():
        mean = np.round(derained.mean(axis=2, keepdims=True)).astype(derained.dtype)
        derained = np.repeat(mean, 3, axis=2)
    return dataclasses.replace(image, rgb=derained)


def write_image(path: Path, image: DecodedImage, quality: int = 95) -> None:
    """Write PNG, JPEG or WebP, by the suffix, with depth, alpha, greyness and metadata, atomically.

    quality: 1 to 100, of JPEG and WebP; a JPEG of 95 or more has 4:4:4 chroma. Raises InputError if
    the format cannot hold the image.
    """
    suffix = path.suffix.lower()
    pixels = image.rgb
    if image.grey:
        pixels = image.rgb[..., 0]
    elif image.alpha is not None and (suffix == ".png" or image.alpha.min() < 255):
        pixels = np.dstack([image.rgb, image.alpha])
    if suffix == ".png":
        write_atomically(path, _encode_png(pixels, image.metadata))
        return
    colours = image.metadata.get("png_colours", {}).values()
    if pixels.dtype == np.uint16 or set(colours) - SRGB_VALUES:
        lost = "16 bits, or the colours given by cICP, cHRM or gAMA"
        raise InputError(f"{path}: this format loses the input's {lost}; write it as PNG")
    options = {"quality": quality, **image.metadata}
    if quality >= 95:
        options["subsampling"] = 0  # 4:4:4
    file = io.BytesIO()
    try:
        image_format = "WEBP" if suffix == ".webp" else "JPEG"
        Image.fromarray(pixels).save(file, image_format, **options)
    except (OSError, ValueError) as error:  # alpha in JPEG, or too large for the format
        raise InputError(f"{path}: {error}; write it as PNG") from error
    write_atomically(path, file.getvalue())


def _encode_png(pixels: np.ndarray, metadata: Mapping[str, Any]) -> bytes:
    """Encode (H, W) or (H, W, 3 or 4) by OpenCV, which has 16 bits, and the metadata by Pillow."""
    pixels = np.atleast_3d(pixels)
    encoded = cv2.imencode(".png", pixels[..., BGR[pixels.shape[2]]])[1].tobytes()
    file = io.BytesIO()
    file.write(encoded[:33])  # signature and header
    for name, content in metadata.get("png_colours", {}).items():
        PngImagePlugin.putchunk(file, name, content)
    for name, content, _ in PngImagePlugin.getchunks(Image.new("L", (1, 1)), **metadata):
        if name in (b"iCCP", b"pHYs", b"eXIf"):
            PngImagePlugin.putchunk(file, name, content)
    return file.getvalue() + encoded[33:]
