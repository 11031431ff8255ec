"""Image files: read as other readers read them, or rejected; written with their metadata."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
from conftest import ROOT, scene
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from derain import page
from derain.images import (
    DecodedImage,
    network_input,
    network_output,
    read_image,
    read_rgb,
    write_image,
)
from utils import InputError

RGB = scene(1, 40, 56)[0]
RGB16 = RGB.astype(np.uint16) * 200 + np.arange(56, dtype=np.uint16)[:, None]
GREY16 = np.ascontiguousarray(RGB16[..., 0])
ALPHA = np.random.RandomState(1).randint(0, 256, RGB.shape[:2]).astype(np.uint8)
ALPHA16 = ALPHA.astype(np.uint16) * 257
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf dc:title="Rain"/></x:xmpmeta>'
FORMATS = ("jpg", "jfif", "webp", "bmp", "ppm", "gif", "tif", "avif", "jp2", "heic", "PNG")
LOSSLESS: dict[str, dict[str, Any]] = {"webp": {"lossless": True}, "jp2": {}, "tif": {}, "png": {}}


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Make] = orientation, "Camera"
    tags[ExifTags.Base.DateTime] = "2026:01:02 03:04:05"
    tags.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.0
    return tags


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


def png(array: np.ndarray, *chunks: tuple[bytes, bytes]) -> bytes:
    """Return a PNG of (H, W) or (H, W, 3 or 4) RGB with more chunks behind its header."""
    bgr = array if array.ndim == 2 else array[..., [2, 1, 0, 3][: array.shape[2]]]
    data = cv2.imencode(".png", bgr)[1].tobytes()
    more = b""
    for name, content in chunks:
        checksum = zlib.crc32(name + content)
        more += struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    return data[:33] + more + data[33:]


def rejected(path: Path) -> str:
    """Return the one line that rejects a file."""
    with pytest.raises(InputError) as caught:
        read_image(path)
    line = str(caught.value)
    assert str(path) in line and "\n" not in line
    return line


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_pngs_are_read_as_pillow_reads_them(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    if "A" in mode:
        image.putalpha(Image.fromarray(ALPHA))
    image.save(tmp_path / "a.png")
    found = read_image(tmp_path / "a.png")
    assert np.array_equal(found.rgb, np.asarray(image.convert("RGB")))
    assert found.grey == (mode in ("1", "L"))
    assert (found.alpha is not None) == ("A" in mode)
    assert found.alpha is None or np.array_equal(found.alpha, ALPHA)


@pytest.mark.parametrize("suffix", FORMATS)
def test_formats_are_read_as_pillow_reads_them(tmp_path: Path, suffix: str) -> None:
    if suffix == "heic":
        pytest.importorskip("pillow_heif")
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as image:
        assert np.array_equal(read_rgb(path), np.asarray(image.convert("RGB")))
    path.rename(tmp_path / "wrong.png")  # the content decides
    assert read_rgb(tmp_path / "wrong.png").shape == RGB.shape


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(RGB).save(path, exif=exif(orientation), **LOSSLESS.get(suffix, {}))
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert np.array_equal(found.rgb, expected)
    write_image(tmp_path / "out.png", found)
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1


def test_frames_are_counted(tmp_path: Path) -> None:
    frames = [Image.fromarray(scene(i, 40, 56)[0]) for i in range(3)]
    for suffix in ("gif", "png", "webp", "tif"):
        path = tmp_path / f"a.{suffix}"
        options = LOSSLESS.get(suffix, {})
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        found = read_image(path)
        assert found.frames == 3
        with Image.open(path) as image:
            assert np.array_equal(found.rgb, np.asarray(image.convert("RGB")))
    frames[0].save(tmp_path / "camera.jpg", "MPO", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "camera.jpg").frames == 1


def test_cmyk_becomes_srgb(tmp_path: Path) -> None:
    """Without a CMYK profile as Pillow does it; an RGB profile on it is ignored, and not kept."""
    for options in ({}, {"icc_profile": PROFILE}):
        Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100, **options)
        found = read_image(tmp_path / "a.jpg")
        with Image.open(tmp_path / "a.jpg") as image:
            assert np.array_equal(found.rgb, np.asarray(image.convert("RGB")))


def exchanged_profile() -> bytes:
    """Return a profile whose red and green are exchanged."""
    profile = bytearray(PROFILE)
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = b"gXYZ", b"rXYZ"
    return bytes(profile)


def test_the_page_shows_colours_by_their_profile() -> None:
    red = np.full((16, 16, 3), (200, 0, 0), np.uint8)
    uri = page.data_uri(red, exchanged_profile())
    assert uri == page.data_uri(red[..., [1, 0, 2]])
    assert uri != page.data_uri(red)


def test_a_ppm_is_scaled_and_a_bmp_has_no_alpha(tmp_path: Path) -> None:
    values = RGB.astype(int) * 100 // 255
    header = b"P6\n56 40\n100\n"
    (tmp_path / "a.ppm").write_bytes(header + values.astype(np.uint8).tobytes())
    assert np.abs(read_rgb(tmp_path / "a.ppm") - values * 2.55).max() <= 1
    # The fourth byte of a BMP's pixel is padding, often 0.
    pixels = np.dstack([RGB[..., ::-1], np.zeros_like(ALPHA)])[::-1].tobytes()
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    header = struct.pack("<IiiHHIIiiII", 40, 56, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    start = b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66)
    (tmp_path / "a.bmp").write_bytes(start + header + masks + pixels)
    found = read_image(tmp_path / "a.bmp")
    assert found.alpha is None and np.array_equal(found.rgb, RGB)


# ---------------------------------------------------------------- TIFF, raw files and 16 bits


def tiff(array: np.ndarray, photometric: Any = "rgb", **options: Any) -> bytes:
    data = io.BytesIO()
    tifffile.imwrite(data, array, photometric=photometric, **options)
    return data.getvalue()


RGBA, RGBA16 = np.dstack([RGB, ALPHA]), np.dstack([RGB16, ALPHA16])
UNUSED, STRAIGHT, PREMULTIPLIED = (
    {"extrasamples": [name]} for name in ("unspecified", "unassalpha", "assocalpha")
)
# kind: (file, expected colours or grey, expected alpha)
TIFFS: dict[str, tuple[bytes, np.ndarray, np.ndarray | None]] = {
    "big endian": (tiff(RGB16, byteorder=">"), RGB16, None),
    "deflate": (tiff(RGB16, compression="zlib", predictor=True), RGB16, None),
    "tiles": (tiff(RGB, tile=(16, 16)), RGB, None),
    "BigTIFF": (tiff(RGB16, bigtiff=True), RGB16, None),
    "LZW, 16 bits": (cv2.imencode(".tif", RGB16[..., ::-1])[1].tobytes(), RGB16, None),
    "LZW": (encoded(Image.fromarray(RGB), "TIFF", compression="tiff_lzw"), RGB, None),
    "grey, 16 bits": (tiff(GREY16, "minisblack"), GREY16, None),
    "straight alpha": (tiff(RGBA, **STRAIGHT), RGB, ALPHA),
    "straight alpha, 16 bits": (tiff(RGBA16, **STRAIGHT), RGB16, ALPHA16),
    "infrared": (tiff(RGBA, **UNUSED), RGB, None),
    "white is zero": (tiff(255 - RGB[..., 0], "miniswhite"), RGB[..., 0], None),
    "planar": (tiff(np.moveaxis(RGB, 2, 0), planarconfig="separate"), RGB, None),
}
REJECTED_TIFFS = {
    "planar, 16 bits": tiff(np.moveaxis(RGB16, 2, 0), planarconfig="separate"),
    "white is zero, 16 bits": tiff(GREY16, "miniswhite"),
    "premultiplied, 16 bits": tiff(RGBA16, **PREMULTIPLIED),
    "infrared, 16 bits": tiff(RGBA16, **UNUSED),
    "grey and alpha, 16 bits": tiff(np.dstack([GREY16, ALPHA16]), "minisblack", **STRAIGHT),
    "five channels": tiff(np.dstack([RGBA, ALPHA])),
    "Lab": encoded(Image.fromarray(RGB).convert("LAB"), "TIFF"),
    "32 bits": encoded(Image.fromarray(RGB[..., 0].astype(np.int32)), "TIFF"),
    "float": tiff(RGB.astype(np.float32)),
    "cut off": tiff(RGB)[:5000],
    "cut off, 16 bits": tiff(RGB16)[:-999],
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiffs(tmp_path: Path, kind: str) -> None:
    content, colours, alpha = TIFFS[kind]
    (tmp_path / "a.tif").write_bytes(content)
    found = read_image(tmp_path / "a.tif")
    expected = np.repeat(colours[..., None], 3, axis=2) if colours.ndim == 2 else colours
    assert found.rgb.dtype == colours.dtype and np.array_equal(found.rgb, expected)
    assert found.grey == (colours.ndim == 2)
    assert found.alpha is None if alpha is None else np.array_equal(found.alpha, alpha)


@pytest.mark.parametrize("kind", REJECTED_TIFFS)
def test_tiffs_that_are_not_read(tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.tif").write_bytes(REJECTED_TIFFS[kind])
    rejected(tmp_path / "a.tif")


def raw(tags: list[tuple[int, str, int, Any, bool]], subfiletype: int, subifds: int) -> bytes:
    """Return a small RGB page that is followed by a larger one in colour-filter form."""
    data = io.BytesIO()
    with tifffile.TiffWriter(data) as file:
        options: dict[str, Any] = {"metadata": None, "extratags": tags}
        small = np.ascontiguousarray(RGB[::4, ::4])
        file.write(small, photometric="rgb", subfiletype=subfiletype, subifds=subifds, **options)
        pattern = [(33421, "H", 2, (2, 2), True), (33422, "B", 4, bytes([0, 1, 1, 2]), True)]
        file.write(GREY16, photometric="cfa", metadata=None, extratags=pattern)
    return data.getvalue()


MAKE = (271, "s", 0, "Camera", True)
CR2 = b"II*\0\x10\0\0\0CR\x02\0" + bytes(4)  # a TIFF's header, and Canon's
CR2_TAGS = [
    (256, 1),
    (257, 1),
    (258, 8),
    (259, 1),
    (262, 1),
    (273, 8),
    (277, 1),
    (278, 1),
    (279, 1),
]
CR2 += struct.pack("<H", len(CR2_TAGS))
CR2 += b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in CR2_TAGS) + bytes(4)


@pytest.mark.parametrize(
    "content",
    [
        raw([(50706, "B", 4, bytes([1, 4, 0, 0]), True), MAKE], 1, 1),
        raw([(50706, "B", 4, bytes([1, 4, 0, 0]), True)], 0, 0),
        raw([MAKE], 1, 1),
        raw([MAKE], 0, 1),
        raw([], 1, 0),
        CR2,
    ],
    ids=["DNG", "DNG without reduced page", "NEF, ARW", "SRW", "scan after its thumbnail", "CR2"],
)
@pytest.mark.parametrize("name", ["photo.dng", "photo.tif", "photo.jpg"])
def test_raw_files_are_never_read_as_their_thumbnail(
    tmp_path: Path, content: bytes, name: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with Image.open(tmp_path / name) as image:  # Pillow reads it
        image.load()
    assert "raw file" in rejected(tmp_path / name)


@pytest.mark.parametrize(
    "image",
    [
        DecodedImage(RGB16),
        DecodedImage(RGB16, ALPHA16),
        DecodedImage(np.repeat(GREY16[..., None], 3, axis=2), grey=True),
        DecodedImage(RGB, ALPHA),
        DecodedImage(RGB[:1, :1]),
        DecodedImage(np.repeat(RGB[:1, :1, :1], 3, axis=2), grey=True),
    ],
    ids=["16 bits", "16 bits, alpha", "16 bits, grey", "alpha", "1x1", "1x1, grey"],
)
def test_pngs_come_back_as_they_were(tmp_path: Path, image: DecodedImage) -> None:
    path = tmp_path / "été" / "雨 %d [1] 'x'.png"
    write_image(path, image)
    found = read_image(path)
    assert found.rgb.dtype == image.rgb.dtype and np.array_equal(found.rgb, image.rgb)
    assert found.grey == image.grey
    assert image.alpha is None or np.array_equal(found.alpha, image.alpha)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert np.array_equal(
        read_rgb(path), np.round(image.rgb / (257 if image.rgb.dtype == np.uint16 else 1))
    )


def test_16_bits_that_are_not_read(tmp_path: Path) -> None:
    """A transparent colour, and an orientation, which OpenCV ignores."""
    turned = exif(6).tobytes()[6:]
    for content in (
        png(GREY16, (b"tRNS", b"\0\7")),
        png(RGB16, (b"tRNS", b"\0\7\0\7\0\7")),
        png(RGB16, (b"eXIf", turned)),
    ):
        (tmp_path / "a.png").write_bytes(content)
        assert "16 bits" in rejected(tmp_path / "a.png")
    (tmp_path / "a.tif").write_bytes(tiff(RGB16, extratags=[(274, "H", 1, 6, True)]))
    assert np.array_equal(read_image(tmp_path / "a.tif").rgb, np.rot90(RGB16, -1))


# ---------------------------------------------------------------- damaged files


@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"quality": 30}])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_without_end_mark(tmp_path: Path, options: dict[str, int], mode: str) -> None:
    """Read if its lines are complete; never with lines that are made up."""
    image = Image.fromarray(RGB).convert(mode)
    whole = encoded(image, "JPEG", **options)
    path = tmp_path / "a.jpg"
    path.write_bytes(whole)
    expected = read_rgb(path)
    for complete in (whole[:-2], whole[:-1], whole + b"\0 film \xff\xda and more"):
        path.write_bytes(complete)
        assert np.array_equal(read_rgb(path), expected)
    for missing in (4, 5, 6, 7, 20, 100, len(whole) // 2):
        path.write_bytes(whole[:-missing])
        if missing > 4 or b"\xff\x00" not in whole[-5:]:
            rejected(path)
    thumbnail = b"\xff\xe1" + struct.pack(">H", len(whole) + 2) + whole  # with an end of its own
    path.write_bytes(whole[:2] + thumbnail + whole[2:-200])
    rejected(path)


def test_jpegs_in_several_parts_need_their_end(tmp_path: Path) -> None:
    for options in ({"progressive": True}, {"restart_marker_rows": 1}):
        whole = encoded(Image.fromarray(RGB), "JPEG", **options)
        (tmp_path / "a.jpg").write_bytes(whole[: whole.rindex(b"\xff", 0, -2)])
        rejected(tmp_path / "a.jpg")


@pytest.mark.parametrize("array", [RGB, RGB16], ids=["8 bits", "16 bits"])
def test_a_png_with_a_wrong_checksum(tmp_path: Path, array: np.ndarray) -> None:
    data = bytearray(png(array))
    data[data.index(b"IDAT") + 200] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    rejected(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(png(array).replace(b"IDAT", b"iDAT"))
    rejected(tmp_path / "a.png")


@given(
    suffix=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP", "WEBP"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=8),
    length=st.one_of(st.just(1.0), st.floats(0, 1)),
)
@settings(max_examples=100, deadline=None)
def test_damaged_files(suffix: str, changes: list[tuple[float, int]], length: float) -> None:
    """An image or InputError; never another error, never a crash."""
    data = bytearray(encoded(Image.fromarray(RGB[:12, :17]), suffix))
    for place, value in changes:
        data[int(place * (len(data) - 1))] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(data[: int(length * len(data))])
        try:
            assert read_image(path).rgb.ndim == 3
        except InputError as error:
            assert str(path) in str(error)


def test_other_things_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("rain")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "loop.png").symlink_to("loop.png")
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.png")
    for name in ("missing.png", "n" * 300, *[p.name for p in tmp_path.iterdir()]):
        rejected(tmp_path / name)
    assert "pip install pillow-heif" in rejected(tmp_path / "a.heic")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="resource is not on Windows")
def test_a_bomb_is_rejected_without_its_memory(tmp_path: Path) -> None:
    bomb = bytearray(png(RGB))
    bomb[16:24] = struct.pack(">II", 60_000, 60_000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    (tmp_path / "bomb.png").write_bytes(bomb)
    code = """
import resource, sys
from pathlib import Path
from derain.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_image(Path(sys.argv[1]))
except Exception as error:
    assert type(error).__name__ == "InputError" and "too large" in str(error)
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
"""
    subprocess.run([sys.executable, "-c", code, tmp_path / "bomb.png"], check=True, cwd=ROOT)


# ---------------------------------------------------------------- metadata and results


@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp"])
def test_metadata_travel(tmp_path: Path, source: str, target: str) -> None:
    """Profile, camera, date, place, XMP, resolution; the orientation becomes upright."""
    turned_xmp = XMP.replace(b"dc:title", b'tiff:Orientation="6" dc:title')
    options: dict[str, Any] = {"icc_profile": PROFILE, "exif": exif(6), "dpi": (300, 300)}
    options["exif"][ExifTags.Base.ImageWidth] = 9999
    if source == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", turned_xmp.decode())
    elif source == "tif":
        options["exif"][700] = turned_xmp
        del options["exif"][ExifTags.Base.ImageWidth]  # the file's own
        for directory in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif):
            options["exif"][directory] = 0  # Pillow writes a directory only if it has an entry
    else:
        options["xmp"] = turned_xmp
    Image.fromarray(RGB).save(tmp_path / f"in.{source}", **options)
    write_image(tmp_path / f"out.{target}", read_image(tmp_path / f"in.{source}"))
    with Image.open(tmp_path / f"out.{target}") as image:
        assert image.size == (40, 56)
        assert image.info["icc_profile"] == PROFILE
        tags = image.getexif()
        assert tags[ExifTags.Base.Make] == "Camera"
        assert tags[ExifTags.Base.DateTime] == "2026:01:02 03:04:05"
        assert tags.get(ExifTags.Base.Orientation, 1) == 1
        assert ExifTags.Base.ImageWidth not in tags
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.0
        assert b"Rain" in image.info["xmp"] and b'"6"' not in image.info["xmp"]
        if target != "webp" and source != "webp":  # WebP has no resolution
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


@pytest.mark.parametrize(
    ("namespace", "kept"),
    [
        ("http://ns.adobe.com/hdr-gain-map/1.0/", False),
        ("http://ns.apple.com/HDRGainMap/1.0/", False),
        ("http://ns.google.com/photos/1.0/container/", False),
        ("http://ns.google.com/photos/1.0/camera/", False),
        ("http://ns.google.com/photos/dd/1.0/device/", False),
        ("xmpNote:HasExtendedXMP", False),
        ("http://ns.google.com/photos/1.0/panorama/", True),
    ],
)
def test_xmp_about_parts_that_the_result_lacks(tmp_path: Path, namespace: str, kept: bool) -> None:
    xmp = XMP.replace(b"dc:title", f'xmlns:a="{namespace}" dc:title'.encode())
    Image.fromarray(RGB).save(tmp_path / "a.jpg", xmp=xmp, exif=exif())
    found = read_image(tmp_path / "a.jpg").metadata
    assert ("xmp" in found) == kept and "exif" in found


def primaries(green: tuple[int, int]) -> bytes:
    return struct.pack(">8I", 31270, 32900, 64000, 33000, *green, 15000, 6000)


GAMMA = (b"gAMA", struct.pack(">I", 45455))
ADOBE = [(b"gAMA", struct.pack(">I", 45470)), (b"cHRM", primaries((21000, 71000)))]
HDR = [(b"cICP", bytes([9, 16, 0, 1])), (b"cLLI", struct.pack(">II", 10_000_000, 4_000_000))]
P3 = [(b"cICP", bytes([12, 13, 0, 1]))]
SRGB = [(b"sRGB", b"\0"), GAMMA, (b"cHRM", primaries((30000, 60000)))]


@pytest.mark.parametrize("array", [RGB, RGB16], ids=["8 bits", "16 bits"])
@pytest.mark.parametrize("chunks", [ADOBE, HDR, P3, SRGB], ids=["Adobe RGB", "PQ", "P3", "sRGB"])
def test_the_colours_of_a_png_are_kept(
    tmp_path: Path, array: np.ndarray, chunks: list[tuple[bytes, bytes]]
) -> None:
    """As they are, and never lost: a JPEG of colours that it can't describe is rejected."""
    (tmp_path / "in.png").write_bytes(png(array, *chunks))
    image = read_image(tmp_path / "in.png")
    assert np.array_equal(image.rgb, array)
    write_image(tmp_path / "out.png", image)
    assert (tmp_path / "out.png").read_bytes() == (tmp_path / "in.png").read_bytes()
    for suffix in ("jpg", "webp"):
        if chunks == SRGB and array is RGB:
            write_image(tmp_path / f"out.{suffix}", image)
            continue
        with pytest.raises(InputError, match=f"out.{suffix}"):
            write_image(tmp_path / f"out.{suffix}", image)
        assert not (tmp_path / f"out.{suffix}").exists()


def test_a_png_without_metadata_is_opencvs(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", DecodedImage(RGB))
    assert (tmp_path / "a.png").read_bytes() == png(RGB)


def test_quality_95_and_more_keeps_the_colours_resolution(tmp_path: Path) -> None:
    for quality, sampling in ((100, 1), (95, 1), (94, 2)):
        write_image(tmp_path / "a.jpg", DecodedImage(RGB), quality)
        with Image.open(tmp_path / "a.jpg") as image:
            assert image.layer[0][1:3] == (sampling, sampling)  # of luma, in units of chroma
    write_image(tmp_path / "grey.jpg", DecodedImage(RGB[..., :1].repeat(3, 2), grey=True))
    assert read_image(tmp_path / "grey.jpg").grey


def test_metadata_that_do_not_fit(tmp_path: Path) -> None:
    """A profile for other colours, a senseless resolution and broken EXIF are left out."""
    grey = DecodedImage(RGB[..., :1].repeat(3, 2), grey=True, metadata={"icc_profile": PROFILE})
    write_image(tmp_path / "a.png", grey)
    assert "icc_profile" not in read_image(tmp_path / "a.png").metadata
    Image.fromarray(RGB).save(tmp_path / "a.tif", dpi=(300, 300))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages.first.tags["XResolution"].overwrite((0, 0))
    assert "dpi" not in read_image(tmp_path / "a.tif").metadata
    data = encoded(Image.fromarray(RGB), "JPEG", icc_profile=PROFILE, exif=exif())
    number, text = (b"\x01\x12\x00" + kind for kind in (b"\x03", b"\x02"))  # type of orientation
    assert number in data
    (tmp_path / "a.jpg").write_bytes(data.replace(number, text))
    assert read_image(tmp_path / "a.jpg").metadata["icc_profile"] == PROFILE


def test_images_that_a_format_cannot_hold(tmp_path: Path) -> None:
    wide = DecodedImage(np.zeros((2, 17_000, 3), np.uint8))
    images = {"a.webp": wide, "b.jpg": DecodedImage(RGB, ALPHA), "c.webp": DecodedImage(RGB16)}
    for name, image in images.items():
        with pytest.raises(InputError, match=f"{name}: .*write it as PNG"):
            write_image(tmp_path / name, image)
        assert not (tmp_path / name).exists()
    write_image(tmp_path / "opaque.jpg", DecodedImage(RGB, np.full_like(ALPHA, 255)))
    assert read_image(tmp_path / "opaque.jpg").alpha is None


def test_hidden_colours_neither_bleed_nor_change() -> None:
    """Fully transparent pixels have no influence on the others, and keep their own colours."""
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[10:30, 20:40] = 0
    inputs = []
    for hidden in (0, 255):
        image = DecodedImage(np.where(alpha[..., None] == 0, hidden, RGB).astype(np.uint8), alpha)
        inputs.append(network_input(image))
        output = network_output(image, inputs[-1] // 2)
        assert (output.rgb[alpha == 0] == hidden).all()
        assert np.array_equal(output.rgb[alpha > 0], RGB[alpha > 0] // 2)
    assert np.array_equal(*inputs)
    wholly = DecodedImage(RGB, np.zeros_like(alpha))
    assert np.array_equal(network_input(wholly), RGB)
    assert np.array_equal(network_output(wholly, RGB + 1).rgb, RGB)


def test_images_without_colour_stay_so() -> None:
    image = DecodedImage(RGB[..., :1].repeat(3, 2))
    output = network_output(image, RGB).rgb
    assert np.array_equal(output, np.round(RGB.mean(axis=2, keepdims=True)).repeat(3, 2))
