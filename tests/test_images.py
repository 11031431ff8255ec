"""Image files: read as other readers read them, or rejected; written with their metadata."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import scene
from PIL import ExifTags, Image, ImageCms, ImageOps, PngImagePlugin

from derain import images
from derain.images import DecodedImage, read_image, read_rgb, write_image
from utils import InputError

RGB = scene(1, 40, 56)[0]
RGB16 = RGB.astype(np.uint16) * 200 + np.arange(56, dtype=np.uint16)[:, None]
GREY, GREY16 = RGB[..., :1].repeat(3, 2), RGB16[..., :1].repeat(3, 2)
ALPHA = np.random.RandomState(1).randint(0, 256, RGB.shape[:2]).astype(np.uint8)
ALPHA16 = ALPHA.astype(np.uint16) * 257
RGBA, RGBA16 = np.dstack([RGB, ALPHA]), np.dstack([RGB16, ALPHA16])
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Make] = orientation, "Camera"
    tags.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.0
    for directory in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif):
        tags[directory] = 0  # without it Pillow doesn't write the directory in a TIFF
    return tags


def save(path: Path, array: np.ndarray = RGB, **options: Any) -> Path:
    """Write an image with Pillow, without loss if the format can."""
    Image.fromarray(array).save(path, **({"lossless": True} | options))
    return path


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of (H, W) or (H, W, 3) RGB with more chunks behind its header."""
    data = cv2.imencode(".png", array[..., ::-1] if array.ndim == 3 else array)[1].tobytes()
    more = b""
    for name, content in chunks:
        checksum = zlib.crc32(name + content)
        more += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return data[:33] + more + data[33:]


def crc(png: bytes) -> bytes:
    """Return the checksum of a PNG's header."""
    return struct.pack(">I", zlib.crc32(png[12:29]))


def tiff(array: np.ndarray, photometric: Any = "rgb", **options: Any) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, array, photometric=photometric, **options)
    return data.getvalue()


def pillow_tiff(tags: dict[int, Any]) -> bytes:
    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "TIFF", tiffinfo=tags)
    return data.getvalue()


def rejected(path: Path, content: bytes | None = None) -> str:
    """Return the one line that rejects a file."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_image(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


def cannot_be_written(path: Path, image: DecodedImage) -> None:
    with pytest.raises(InputError, match=f"{path.name}: .*write it as PNG"):
        write_image(path, image)
    assert not path.exists()


def assert_same(found: DecodedImage, expected: DecodedImage) -> None:
    assert found.rgb.dtype == expected.rgb.dtype and np.array_equal(found.rgb, expected.rgb)
    assert found.grey == expected.grey
    assert (found.alpha is None) == (expected.alpha is None)
    assert found.alpha is None or np.array_equal(found.alpha, expected.alpha)


# ---------------------------------------------------------------- reading


KINDS = [("png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")]
OTHERS = ("jpg", "webp", "bmp", "gif", "tif", "avif", "heic")
KINDS += [(suffix, "RGB") for suffix in OTHERS]


@pytest.mark.parametrize(("suffix", "mode"), KINDS)
def test_images_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str, mode: str) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif")
    image = Image.fromarray(RGB).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(ALPHA))
    image.save(tmp_path / f"a.{suffix}")
    (tmp_path / f"a.{suffix}").rename(tmp_path / "wrong.png")  # the content decides
    with Image.open(tmp_path / "wrong.png") as image:
        expected = np.asarray(image.convert("RGB"))
    alpha = ALPHA if "A" in mode else None
    found = read_image(tmp_path / "wrong.png")
    assert_same(found, DecodedImage(expected, alpha, grey=mode in ("1", "L")))


@pytest.mark.parametrize("name", ["a.gif", "a.png", "a.webp", "a.tif", "camera.jpg"])
def test_frames_are_counted(tmp_path: Path, name: str) -> None:
    """Those of a camera's JPEG are previews."""
    more = [Image.fromarray(scene(i, 40, 56)[0]) for i in (2, 3)]
    options = {"format": "MPO"} if name == "camera.jpg" else {}
    path = save(tmp_path / name, save_all=True, append_images=more, **options)
    assert read_image(path).frames == (1 if name == "camera.jpg" else 3)
    with Image.open(path) as image:
        assert np.array_equal(read_rgb(path), np.asarray(image.convert("RGB")))


STRAIGHT, PREMULTIPLIED = {"extrasamples": ["unassalpha"]}, {"extrasamples": ["assocalpha"]}
TURNED = DecodedImage(np.rot90(RGB16, -1))
READ = {
    "big endian, 16": (tiff(RGB16, byteorder=">"), DecodedImage(RGB16)),
    "LZW, 16": (cv2.imencode(".tif", RGB16[..., ::-1])[1].tobytes(), DecodedImage(RGB16)),
    "turned, 16": (tiff(RGB16, extratags=[(274, "H", 1, 6, True)]), TURNED),
    "grey, 16": (tiff(GREY16[..., 0], "minisblack"), DecodedImage(GREY16, grey=True)),
    "alpha, 16": (tiff(RGBA16, **STRAIGHT), DecodedImage(RGB16, ALPHA16)),
    "tiles": (tiff(RGB, tile=(16, 16)), DecodedImage(RGB)),
    "alpha": (tiff(RGBA, **STRAIGHT), DecodedImage(RGB, ALPHA)),
    "five channels": (tiff(np.dstack([RGBA, ALPHA])), DecodedImage(RGB)),
}


@pytest.mark.parametrize("kind", READ)
def test_tiff_and_16_bits(tmp_path: Path, kind: str) -> None:
    content, expected = READ[kind]
    (tmp_path / "a.tif").write_bytes(content)
    assert_same(read_image(tmp_path / "a.tif"), expected)


WRITTEN = [
    *(DecodedImage(RGB), DecodedImage(RGB, ALPHA), DecodedImage(GREY, grey=True)),
    *(DecodedImage(RGB16), DecodedImage(RGB16, ALPHA16), DecodedImage(GREY16, grey=True)),
]


@pytest.mark.parametrize("image", WRITTEN, ids=range(len(WRITTEN)))
def test_pngs_come_back_as_they_were(tmp_path: Path, image: DecodedImage) -> None:
    path = tmp_path / "été" / "雨 %d [1] 'x'.png"
    write_image(path, image)
    assert_same(read_image(path), image)
    most = np.iinfo(image.rgb.dtype).max
    assert np.array_equal(read_rgb(path), np.round(image.rgb / (most / 255)))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    if image.alpha is None and not image.grey:
        assert path.read_bytes() == png(image.rgb)  # as OpenCV writes it


# ---------------------------------------------------------------- files that are rejected


def changed(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


FEW_BITS = changed(png(GREY[..., 0], (b"tRNS", b"\0\7")), 24, b"\4")
HUGE = changed(png(RGB), 16, struct.pack(">II", 60_000, 60_000))
REJECTED = {  # content, words of the error
    "DNG": (pillow_tiff({50706: bytes([1, 4, 0, 0])}), "raw file"),
    "NEF, ARW, SRW": (pillow_tiff({271: "Camera", 330: 8}), "raw file"),
    "CR2": (b"II*\0\x10\0\0\0CR\2" + bytes(5) + tiff(GREY[..., 0], 1)[8:], "raw file"),
    "scan behind its thumbnail": (tiff(RGB, subfiletype=1), "begins with a preview"),
    "planar": (tiff(np.moveaxis(RGB, 2, 0), planarconfig="separate"), "plain PNG"),
    "white is zero, 16": (tiff(GREY16[..., 0], "miniswhite"), "plain PNG"),
    "premultiplied, 16": (tiff(RGBA16, **PREMULTIPLIED), "plain PNG"),
    "infrared, 16": (tiff(RGBA16, extrasamples=["unspecified"]), "plain PNG"),
    "grey and alpha, 16": (tiff(RGBA16[..., 2:].copy(), 1, **STRAIGHT), "PNG"),
    "CMYK": (tiff(RGBA, "separated"), "plain PNG"),
    "32 bits": (tiff(GREY[..., 0].astype(np.int32), "minisblack"), "plain PNG"),
    "float": (tiff(RGB.astype(np.float32)), "PNG"),
    "PPM": (b"P6 56 40 65535 " + RGB16.tobytes(), "plain PNG"),
    "JPEG 2000": (cv2.imencode(".jp2", RGB16)[1].tobytes(), "plain PNG"),
    "TIFF, cut off": (tiff(RGB)[:5000], "get it again"),
    "TIFF, cut off, 16": (tiff(RGB16)[:-999], "damaged"),
    "transparent grey, 4": (changed(FEW_BITS, 29, crc(FEW_BITS)), "plain PNG"),
    "transparent grey, 16": (png(GREY16[..., 0], (b"tRNS", b"\0\7")), "plain PNG"),
    "turned PNG, 16": (png(RGB16, (b"eXIf", exif(6).tobytes()[6:])), "plain PNG"),
    "wrong checksum": (changed(png(RGB), -16, b"rain"), "get it again"),
    "no data": (png(RGB).replace(b"IDAT", b"iDAT"), "get it again"),
    "too large": (changed(HUGE, 29, crc(HUGE)), "too large"),
    "HEIC": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "pip install pillow-heif"),
    "empty": (b"", "get it again"),
}


def test_the_orientation_in_xmp_is_ignored(tmp_path: Path) -> None:
    """As viewers ignore it."""
    xmp = b'<rdf:Description tiff:Orientation="6"/>'
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", xmp.decode())
    for name, options in (("a.jpg", {"xmp": xmp}), ("a.png", {"pnginfo": text})):
        Image.fromarray(RGB).save(tmp_path / name, **options)
        assert read_image(tmp_path / name).rgb.shape == RGB.shape


@pytest.mark.parametrize("kind", REJECTED)
def test_files_that_are_rejected(tmp_path: Path, kind: str) -> None:
    content, words = REJECTED[kind]
    assert words in rejected(tmp_path / "photo.tif", content)


def test_paths_that_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    for name in ("missing.png", "n" * 300, "folder.png", "loop.png", "pipe.png"):
        rejected(tmp_path / name)


@pytest.mark.parametrize(
    ("array", "options"), [(RGB, {"exif": exif(6)}), (GREY[..., 0], {"quality": 30})]
)
def test_a_jpeg_without_end_mark(tmp_path: Path, array: Any, options: dict[str, int]) -> None:
    """Read if its lines are complete, and never with lines that the decoder made up."""
    path = save(tmp_path / "a.jpg", array, **options)
    whole, expected = path.read_bytes(), read_rgb(path)
    for complete in (whole[:-2], whole[:-1], whole + b"\0 video \xff\xda and more"):
        path.write_bytes(complete)
        assert np.array_equal(read_rgb(path), expected)
    for missing in range(4, len(whole) // 2, 7):
        rejected(path, whole[:-missing])
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(whole) + 2) + whole  # with an end of its own
    rejected(path, whole[:2] + thumbnail + whole[2:-200])


def test_jpegs_of_several_parts_need_their_end(tmp_path: Path) -> None:
    """Because a cut between two parts can't be seen."""
    for options in ({"progressive": True}, {"restart_marker_rows": 1}):
        whole = save(tmp_path / "a.jpg", **options).read_bytes()
        rejected(tmp_path / "a.jpg", whole[: whole.rindex(b"\xff", 0, -2)])


# ---------------------------------------------------------------- metadata and results


@pytest.mark.parametrize(
    ("source", "target"), [("jpg", "jpg"), ("png", "png"), ("tif", "png"), ("webp", "webp")]
)
def test_metadata_travel(tmp_path: Path, source: str, target: str) -> None:
    """Profile, camera, place, resolution; not XMP. The image becomes upright."""
    tags = exif(6)
    tags[ExifTags.Base.ImageWidth] = 9999
    options = {"icc_profile": PROFILE, "exif": tags, "dpi": (300, 300), "xmp": b"<x:xmpmeta/>"}
    path = save(tmp_path / f"in.{source}", **options)
    found = read_image(path)
    with Image.open(path) as image:
        assert np.array_equal(found.rgb, ImageOps.exif_transpose(image))
    write_image(tmp_path / f"out.{target}", found)
    with Image.open(tmp_path / f"out.{target}") as image:
        assert image.info["icc_profile"] == PROFILE
        assert "xmp" not in image.info
        tags = image.getexif()
        assert tags[ExifTags.Base.Make] == "Camera"
        assert tags.get(ExifTags.Base.Orientation, 1) == 1
        assert ExifTags.Base.ImageWidth not in tags
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.0
        if target != "webp":  # which has no resolution
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def described(gamma: int, *green: int) -> list[tuple[bytes, bytes]]:
    primaries = struct.pack(">8I", 31270, 32900, 64000, 33000, *green, 15000, 6000)
    return [(b"gAMA", struct.pack(">I", gamma)), (b"cHRM", primaries)]


COLOURS = {
    "sRGB": [(b"sRGB", b"\0"), *described(45455, 30000, 60000)],
    "Adobe RGB": described(45470, 21000, 71000),
    "HDR": [(b"cICP", bytes([9, 16, 0, 1])), (b"cLLI", struct.pack(">II", 9**7, 9**6))],
}


@pytest.mark.parametrize("name", COLOURS)
def test_the_colours_of_a_png_are_kept(tmp_path: Path, name: str) -> None:
    """As they are, or the format that can't keep them is rejected."""
    content = png(RGB, *COLOURS[name])
    (tmp_path / "in.png").write_bytes(content)
    image = read_image(tmp_path / "in.png")
    assert np.array_equal(image.rgb, RGB)
    write_image(tmp_path / "out.png", image)
    assert (tmp_path / "out.png").read_bytes() == content
    if name == "sRGB":
        write_image(tmp_path / "out.jpg", image)
    else:
        cannot_be_written(tmp_path / "out.jpg", image)


def test_quality_95_has_full_chroma(tmp_path: Path) -> None:
    sizes = []
    for quality, sampling in ((100, 1), (95, 1), (94, 2)):
        write_image(tmp_path / "a.jpg", DecodedImage(RGB), quality)
        with Image.open(tmp_path / "a.jpg") as image:
            assert image.layer[0][1:3] == (sampling, sampling)  # luma samples for one of chroma
        sizes.append((tmp_path / "a.jpg").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]
    write_image(tmp_path / "grey.jpg", DecodedImage(GREY, grey=True))
    assert read_image(tmp_path / "grey.jpg").grey


def test_metadata_that_do_not_fit(tmp_path: Path) -> None:
    """A profile for other colours, a senseless resolution and broken EXIF are left out."""
    grey = save(tmp_path / "a.png", GREY[..., 0], icc_profile=PROFILE)
    assert "icc_profile" not in read_image(grey).metadata
    with tifffile.TiffFile(save(tmp_path / "a.tif", dpi=(300, 300)), mode="r+b") as file:
        file.pages.first.tags["XResolution"].overwrite((0, 0))
    for path in (tmp_path / "a.tif", save(tmp_path / "b.tif")):
        assert "dpi" not in read_image(path).metadata
    path = save(tmp_path / "a.jpg", icc_profile=PROFILE, exif=exif())
    as_number, as_text = b"\x01\x12\x00\x03", b"\x01\x12\x00\x02"  # the type of the orientation
    path.write_bytes(path.read_bytes().replace(as_number, as_text))
    assert read_image(path).metadata["icc_profile"] == PROFILE


def test_images_that_a_format_cannot_hold(tmp_path: Path) -> None:
    cannot_be_written(tmp_path / "a.webp", DecodedImage(np.zeros((2, 17_000, 3), np.uint8)))
    cannot_be_written(tmp_path / "a.jpg", DecodedImage(RGB, ALPHA))
    cannot_be_written(tmp_path / "a.jpg", DecodedImage(RGB16))
    write_image(tmp_path / "opaque.jpg", DecodedImage(RGB, np.full_like(ALPHA, 255)))
    assert read_image(tmp_path / "opaque.jpg").alpha is None


def test_hidden_colours_stay() -> None:
    alpha = np.full_like(ALPHA, 255)
    alpha[10:30, 20:40] = 0
    output = images.like_input(DecodedImage(RGB, alpha), RGB // 2).rgb
    assert np.array_equal(output, np.where(alpha[..., None] == 0, RGB, RGB // 2))


def test_images_without_colour_stay_so() -> None:
    output = images.like_input(DecodedImage(GREY), RGB).rgb
    assert np.array_equal(output, np.round(RGB.mean(axis=2, keepdims=True)).repeat(3, 2))
