"""Image files of every kind: read as Pillow or tifffile read them, or refused; written with what was kept."""

from __future__ import annotations

import base64
import io
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from conftest import scene
from PIL import ExifTags, Image, ImageCms, ImageOps
from PIL.PngImagePlugin import PngInfo

from derain import page
from derain.image_output import like, visible, write_image
from derain.images import TURNS, DecodedImage, read_image
from networks import DARGNet
from utils import InputError

RGB = scene(1, 40, 56)[0]
RGB16 = RGB.astype(np.uint16) * 200 + np.arange(56, dtype=np.uint16)[:, None]
ALPHA = np.random.RandomState(1).randint(0, 256, RGB.shape[:2]).astype(np.uint8)
ALPHA16 = ALPHA.astype(np.uint16) * 257
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6" dc:title="Rain"/></x:xmpmeta>'


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "weights/net_latest.pth"
    path.parent.mkdir()
    torch.save(DARGNet(channels=4, groups=1).state_dict(), path)
    return path


def exif(orientation: int = 1) -> Image.Exif:
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation], tags[ExifTags.Base.Make] = orientation, "Camera"
    tags[ExifTags.Base.DateTime], tags[ExifTags.Base.ImageWidth] = "2026:01:02 03:04:05", 9999
    tags.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] = 2.0
    return tags


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = tmp_path / f"image.{suffix}"
    options = {"webp": {"lossless": True}, "jpg": {"quality": 95}}.get(suffix, {})
    Image.fromarray(RGB).save(path, exif=exif(orientation), **options)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image))
    found = read_image(path)
    assert np.abs(found.rgb - expected.astype(int)).max() <= (3 if suffix == "jpg" else 0)
    write_image(tmp_path / "out.png", found)
    with Image.open(tmp_path / "out.png") as image:
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        assert image.size == expected.shape[1::-1]


def tiff(array: np.ndarray, **options: Any) -> Callable[[Path], None]:
    return lambda path: tifffile.imwrite(path, array, **options)


PREMULTIPLIED = np.dstack([np.round(RGB * (ALPHA[..., None] / 255)), ALPHA]).astype(np.uint8)
GREY16 = np.ascontiguousarray(RGB16[..., 0])
# name: (writer, expected colours or one grey channel, expected alpha, largest difference)
TIFFS: dict[str, tuple[Callable[[Path], None], np.ndarray, np.ndarray | None, int]] = {
    "RGB, planar, 16 bits": (
        tiff(np.moveaxis(RGB16, 2, 0), photometric="rgb", planarconfig="separate"),
        *(RGB16, None, 0),
    ),
    "white is zero": (tiff(255 - RGB[..., 0], photometric="miniswhite"), RGB[..., 0], None, 0),
    "white is zero, 16 bits": (tiff(65535 - GREY16, photometric="miniswhite"), GREY16, None, 0),
    "straight alpha, 16 bits": (
        tiff(np.dstack([RGB16, ALPHA16]), photometric="rgb", extrasamples=["unassalpha"]),
        *(RGB16, ALPHA16, 0),
    ),
    "grey and alpha, 16 bits": (
        tiff(np.dstack([GREY16, ALPHA16]), photometric="minisblack", extrasamples=["unassalpha"]),
        *(GREY16, ALPHA16, 0),
    ),
    "premultiplied alpha": (tiff(PREMULTIPLIED, photometric="rgb", extrasamples=["assocalpha"]), RGB, ALPHA, 255),
    "tiles": (tiff(RGB, photometric="rgb", tile=(16, 16)), RGB, None, 0),
    "BigTIFF": (tiff(RGB, photometric="rgb", bigtiff=True), RGB, None, 0),
    "deflate": (tiff(RGB16, photometric="rgb", compression="zlib"), RGB16, None, 0),
    "big endian": (tiff(RGB16, photometric="rgb", byteorder=">"), RGB16, None, 0),
    "LZW": (lambda path: Image.fromarray(RGB).save(path, compression="tiff_lzw"), RGB, None, 0),
    "LZW, 16 bits": (
        lambda path: path.write_bytes(cv2.imencode(".tif", RGB16[..., ::-1])[1].tobytes()),
        *(RGB16, None, 0),
    ),
    "JPEG": (lambda path: Image.fromarray(RGB).save(path, compression="jpeg", quality=95), RGB, None, 60),
    "two colours": (
        lambda path: Image.fromarray(RGB[..., 0] > 99).save(path, compression="group4"),
        *((RGB[..., 0] > 99).astype(np.uint8) * 255, None, 0),
    ),
    "palette": (lambda path: Image.fromarray(RGB // 64 * 64).quantize(64).save(path), RGB // 64 * 64, None, 40),
}


@pytest.mark.parametrize("kind", TIFFS)
def test_tiffs(tmp_path: Path, kind: str) -> None:
    write, colours, alpha, tolerance = TIFFS[kind]
    write(tmp_path / "image.tif")
    found = read_image(tmp_path / "image.tif")
    grey = colours.ndim == 2
    expected = np.repeat(colours[..., None], 3, axis=2) if grey else colours
    assert (found.rgb.dtype, found.grey) == (colours.dtype, grey and alpha is None)
    error = np.abs(found.rgb.astype(int) - expected)
    if kind == "premultiplied alpha":  # rounding costs most where little is seen
        error = error[ALPHA > 0] * ALPHA[ALPHA > 0][:, None] / 255
        tolerance = 1
    assert error.max() <= tolerance
    assert found.alpha is None if alpha is None else np.array_equal(found.alpha, alpha)


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (tiff(RGB.astype(np.float32), photometric="rgb"), "float32"),
        (tiff(np.dstack([RGB, RGB[..., :2]]), photometric="rgb"), "5 channels"),
        (lambda path: Image.fromarray(RGB).convert("LAB").save(path), "CIELAB"),
        (lambda path: Image.fromarray(RGB[..., 0].astype(np.int32)).save(path), "int32"),
    ],
)
def test_tiffs_that_are_not_read_are_named(tmp_path: Path, write: Callable[[Path], None], text: str) -> None:
    write(tmp_path / "image.tif")
    with pytest.raises(InputError, match=r"image\.tif: .*not read; convert it to PNG") as caught:
        read_image(tmp_path / "image.tif")
    assert text in str(caught.value)


@pytest.mark.parametrize("share", [0.3, 0.99])
def test_a_tiff_that_is_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    data = io.BytesIO()
    tifffile.imwrite(data, RGB, photometric="rgb")
    whole = data.getvalue()
    (tmp_path / "image.tif").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match="cut off"):
        read_image(tmp_path / "image.tif")


@pytest.mark.parametrize("name", ["a.avif", "a.jfif", "a.jp2", "a.gif", "A.PNG", "none", "wrong.png"])
def test_the_suffix_does_not_decide(inline: Callable, tmp_path: Path, weights: Path, name: str) -> None:
    kind = {"none": "PNG", "wrong.png": "JPEG", "a.avif": "AVIF", "a.jfif": "JPEG", "a.jp2": "JPEG2000"}
    path = tmp_path / "in" / name
    path.parent.mkdir()
    Image.fromarray(RGB).save(path, kind.get(name, path.suffix[1:].upper()))
    (tmp_path / "in/README").write_text("no image")
    result = inline("test_real.py", "--data_path", "in", "--logdir", weights, "--save_path", "out")
    assert result.returncode == 0, result.stderr
    assert "own images: 1 images" in result.stdout and "left out: 1 other files" in result.stdout
    with Image.open(path) as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(read_image(path).rgb - expected).max() <= 3


def test_a_heic_photograph_names_the_package_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99))
    with pytest.raises(InputError, match=r"a\.heic: not an image.*pip install pillow-heif"):
        read_image(tmp_path / "a.heic")


@pytest.mark.parametrize("suffix", ["gif", "png", "webp", "tif"])
def test_frames_that_are_left_out_are_counted(inline: Callable, tmp_path: Path, weights: Path, suffix: str) -> None:
    frames = [Image.fromarray(scene(i, 40, 56)[0]) for i in range(3)]
    path = tmp_path / f"frames.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if suffix == "webp" else {}))
    result = inline("test_real.py", "--data_path", path, "--logdir", weights, "--save_path", "out")
    assert f"{path}: the first of 3 frames or pages; the others are left out" in result.stdout
    with Image.open(path) as image:
        assert np.array_equal(read_image(path).rgb, np.asarray(image.convert("RGB")))


def test_cmyk_becomes_srgb_by_its_profile(tmp_path: Path) -> None:
    """As Pillow converts it; an RGB result does not carry the profile for CMYK."""
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", quality=100)
    with Image.open(tmp_path / "a.jpg") as image:
        expected = np.asarray(image.convert("RGB"))
    found = read_image(tmp_path / "a.jpg")
    assert np.array_equal(found.rgb, expected)
    assert "icc_profile" not in found.metadata


def test_a_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(RGB).quantize(32)
    image.info["transparency"] = 3
    image.save(tmp_path / "a.png", transparency=3)
    found = read_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        expected = np.asarray(image.convert("RGBA"))
    assert np.array_equal(found.alpha, expected[..., 3])
    assert np.array_equal(found.rgb, expected[..., :3])


@pytest.mark.parametrize("where", ["pixels", "chunk"])
def test_a_png_whose_checksums_fail_is_refused(tmp_path: Path, where: str) -> None:
    """Of 8 and of 16 bits: a reader that goes on shows rubbish below the damage."""
    for depth in (RGB, RGB16):
        data = bytearray(cv2.imencode(".png", depth[..., ::-1])[1].tobytes())
        at = data.index(b"IDAT")
        if where == "pixels":
            data[at + 200] ^= 1
        else:
            data[at : at + 4] = b"iDAT"
        (tmp_path / "a.png").write_bytes(data)
        with pytest.raises(InputError, match=r"a\.png: (the image is cut off|not an image)"):
            read_image(tmp_path / "a.png")


def test_a_16_bit_png_with_a_transparent_grey(tmp_path: Path) -> None:
    grey = np.array([[0, 7], [65535, 7]], np.uint16)
    data = cv2.imencode(".png", grey)[1].tobytes()
    chunk = b"tRNS" + (7).to_bytes(2, "big")
    chunk = (2).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (tmp_path / "a.png").write_bytes(data[:33] + chunk + data[33:])
    found = read_image(tmp_path / "a.png")
    assert np.array_equal(found.rgb[..., 1], grey)
    assert found.alpha.tolist() == [[65535, 0], [65535, 0]]


def test_large_photographs_and_large_metadata_keep_their_orientation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow refuses them by itself: 179 megapixels, and a megabyte of text."""
    assert Image.MAX_IMAGE_PIXELS is None
    text = PngInfo()
    text.add_itxt("XML:com.adobe.xmp", "x" * 2_000_000, zip=True)
    Image.fromarray(RGB).save(tmp_path / "a.png", exif=exif(6), pnginfo=text, icc_profile=PROFILE)
    found = read_image(tmp_path / "a.png")
    assert found.rgb.shape == (56, 40, 3)
    assert found.metadata["icc_profile"] == PROFILE
    monkeypatch.setattr("derain.images.MOST_PIXELS", 1000)
    with pytest.raises(InputError, match="too large"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_16_bit_tiff_that_opencv_reads_is_turned_once(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "a.tif"
    Image.fromarray(GREY16).save(path, compression="tiff_lzw", tiffinfo={ExifTags.Base.Orientation: orientation})
    expected = TURNS.get(orientation, lambda a: a)(GREY16)
    assert np.array_equal(read_image(path).rgb[..., 0], expected)


def test_kinds_of_tiff_that_would_be_read_wrongly(tmp_path: Path) -> None:
    """16 bits in a compression that tifffile lacks: with alpha not made 8 bits, with white as zero not a negative."""
    path = tmp_path / "a.tif"
    path.write_bytes(cv2.imencode(".tif", np.dstack([RGB16, ALPHA16]))[1].tobytes())
    with pytest.raises(InputError, match="16 bits, RGB, 4 channels, LZW"):
        read_image(path)
    path.write_bytes(cv2.imencode(".tif", GREY16)[1].tobytes())
    with tifffile.TiffFile(path, mode="r+b") as file:
        file.pages.first.tags["PhotometricInterpretation"].overwrite(0)
    with pytest.raises(InputError, match="MINISWHITE"):
        read_image(path)
    tifffile.imwrite(path, np.dstack([RGB, ALPHA]), photometric="rgb", extrasamples=["unspecified"])
    found = read_image(path)  # the fourth channel may be infrared
    assert found.alpha is None and np.array_equal(found.rgb, RGB)


def test_a_tiff_that_claims_a_depth(tmp_path: Path) -> None:
    """Of many planes, which no memory would hold; and whatever else takes too much names the image."""
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", extratags=[(32997, 4, 1, 2**27, True)])
    assert np.array_equal(read_image(tmp_path / "a.tif").rgb, RGB)


def test_an_image_for_which_memory_is_lacking_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(_: bytes) -> None:
        raise MemoryError

    Image.fromarray(RGB).save(tmp_path / "a.png")
    monkeypatch.setattr("derain.images._decode", decode)
    with pytest.raises(InputError, match=r"a\.png: too little memory to read it"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("most", [100, 255])
def test_a_ppm_is_scaled_by_its_largest_value(tmp_path: Path, most: int) -> None:
    values = RGB.astype(int) * most // 255
    (tmp_path / "a.ppm").write_bytes(b"P6\n56 40\n%d\n" % most + values.astype(np.uint8).tobytes())
    assert np.abs(read_image(tmp_path / "a.ppm").rgb - values * (255 / most)).max() <= 1


def test_a_bmp_of_32_bits_has_no_alpha_unless_it_says_so(tmp_path: Path) -> None:
    """Its fourth byte is padding, often 0: not an image that nobody can see."""
    pixels = np.dstack([RGB[..., ::-1], np.zeros_like(RGB[..., 0])])[::-1].tobytes()
    masks = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    header = struct.pack("<IiiHHIIiiII", 40, 56, 40, 1, 32, 3, len(pixels), 0, 0, 0, 0)
    start = b"BM" + struct.pack("<IHHI", 66 + len(pixels), 0, 0, 66)
    (tmp_path / "a.bmp").write_bytes(start + header + masks + pixels)
    found = read_image(tmp_path / "a.bmp")
    assert found.alpha is None and np.array_equal(found.rgb, RGB)


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("target", ["jpg", "png", "webp"])
def test_metadata_travel(inline: Callable, tmp_path: Path, weights: Path, source: str, target: str) -> None:
    """Read by Pillow: profile, camera, date, place, XMP, resolution, and an orientation that is upright."""
    options: dict[str, Any] = {"icc_profile": PROFILE, "exif": exif(6), "xmp": XMP, "dpi": (300, 300)}
    if source == "png":
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", options.pop("xmp").decode())
    if source == "tif":
        options["exif"][700] = options.pop("xmp")
        del options["exif"][ExifTags.Base.ImageWidth]  # the file's own
        for directory in (ExifTags.IFD.GPSInfo, ExifTags.IFD.Exif):
            options["exif"][directory] = 0  # without an entry for it Pillow does not write a directory
    Image.fromarray(RGB).save(tmp_path / f"in.{source}", **options)
    result = inline(
        "test_real.py", "--data_path", f"in.{source}", "--logdir", weights, "--out", f"out.{target}", "--quality", "100"
    )
    assert result.returncode == 0, result.stderr
    with Image.open(tmp_path / f"out.{target}") as image:
        assert image.size == (40, 56)  # turned
        assert image.info["icc_profile"] == PROFILE
        tags = image.getexif()
        assert dict(tags).keys() <= {*tags, ExifTags.Base.Make, ExifTags.Base.DateTime}
        assert tags[ExifTags.Base.Make] == "Camera"
        assert tags[ExifTags.Base.DateTime] == "2026:01:02 03:04:05"
        assert tags.get(ExifTags.Base.Orientation, 1) == 1
        assert ExifTags.Base.ImageWidth not in tags
        assert tags.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert tags.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.FNumber] == 2.0
        xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp", "").encode()
        assert xmp == XMP.replace(b'"6"', b'"1"')
        if target != "webp" and source != "webp":  # WebP has no resolution
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_a_png_keeps_its_gamma_and_16_bits_their_profile(tmp_path: Path) -> None:
    metadata = {"gamma": 0.45455, "icc_profile": PROFILE, "dpi": (72, 72)}
    write_image(tmp_path / "a.png", DecodedImage(RGB16, ALPHA16, metadata=metadata))
    found = read_image(tmp_path / "a.png")
    assert found.metadata["gamma"] == pytest.approx(0.45455)
    assert found.metadata["icc_profile"] == PROFILE
    assert np.array_equal(found.rgb, RGB16) and np.array_equal(found.alpha, ALPHA16)


def test_metadata_that_a_format_cannot_hold(tmp_path: Path) -> None:
    """Senseless resolutions and text beyond JPEG's 64 KiB are left out; images beyond a format's size get one line."""
    Image.fromarray(RGB).save(tmp_path / "a.tif", dpi=(300, 300))
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+b") as file:
        file.pages.first.tags["XResolution"].overwrite((0, 0))
    assert "dpi" not in read_image(tmp_path / "a.tif").metadata
    metadata = {"xmp": b"x" * 70_000, "icc_profile": PROFILE, "srgb": 0}
    write_image(tmp_path / "a.jpg", DecodedImage(RGB, metadata=metadata))
    found = read_image(tmp_path / "a.jpg").metadata
    assert found["icc_profile"] == PROFILE and "xmp" not in found
    write_image(tmp_path / "b.png", DecodedImage(RGB, metadata={"srgb": 0}))
    assert read_image(tmp_path / "b.png").metadata["srgb"] == 0
    wide = DecodedImage(np.zeros((2, 17_000, 3), np.uint8))
    with pytest.raises(InputError, match=r"b\.webp: cannot be written as \.webp .*; write it as PNG"):
        write_image(tmp_path / "b.webp", wide)
    assert not (tmp_path / "b.webp").exists()
    opaque = DecodedImage(RGB, np.full_like(ALPHA, 255))
    write_image(tmp_path / "c.jpg", opaque)
    assert read_image(tmp_path / "c.jpg").alpha is None


def test_one_odd_tag_does_not_cost_the_profile(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(RGB).save(data, "JPEG", icc_profile=PROFILE, exif=exif())
    number, text = (b"\x01\x12\x00" + kind for kind in (b"\x03", b"\x02"))  # the type of the orientation
    assert number in data.getvalue()
    (tmp_path / "a.jpg").write_bytes(data.getvalue().replace(number, text))
    assert read_image(tmp_path / "a.jpg").metadata["icc_profile"] == PROFILE


def test_a_cmyk_image_with_an_unfit_profile_is_read(tmp_path: Path) -> None:
    Image.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg", icc_profile=PROFILE)
    with Image.open(tmp_path / "a.jpg") as image:
        assert np.array_equal(read_image(tmp_path / "a.jpg").rgb, np.asarray(image.convert("RGB")))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes there")
def test_a_pipe_without_suffix_is_passed_over(inline: Callable, tmp_path: Path, weights: Path) -> None:
    write_image(tmp_path / "in/a.png", DecodedImage(RGB))
    os.mkfifo(tmp_path / "in/pipe")
    result = inline("test_real.py", "--data_path", "in", "--logdir", weights, "--save_path", "out")
    assert result.returncode == 0, result.stderr
    assert "left out: 1 other files" in result.stdout


def test_a_profile_for_another_colour_space_is_left_out(tmp_path: Path) -> None:
    grey = DecodedImage(np.repeat(RGB[..., :1], 3, axis=2), grey=True, metadata={"icc_profile": PROFILE})
    write_image(tmp_path / "a.png", grey)
    assert "icc_profile" not in read_image(tmp_path / "a.png").metadata


def test_hidden_colours_neither_bleed_nor_change(inline: Callable, tmp_path: Path, weights: Path) -> None:
    """What is wholly transparent has no influence on what is seen, and keeps its own colours."""
    alpha = np.full(RGB.shape[:2], 255, np.uint8)
    alpha[10:30, 20:40] = 0
    results = []
    for hidden in (0, 255):
        rgb = np.where(alpha[..., None] == 0, hidden, RGB).astype(np.uint8)
        write_image(tmp_path / "in.png", DecodedImage(rgb, alpha))
        inline("test_real.py", "--data_path", "in.png", "--logdir", weights, "--out", "out.png")
        results.append(read_image(tmp_path / "out.png"))
        assert (results[-1].rgb[alpha == 0] == hidden).all()
    assert np.array_equal(results[0].rgb[alpha > 0], results[1].rgb[alpha > 0])
    assert np.array_equal(results[0].alpha, alpha)
    wholly = DecodedImage(RGB, np.zeros_like(alpha))
    assert np.array_equal(visible(wholly), RGB) and np.array_equal(like(wholly, RGB + 1).rgb, RGB)


@pytest.mark.parametrize("mode", ["L", "LA", "RGB"])
def test_what_has_no_colour_comes_back_without(inline: Callable, tmp_path: Path, weights: Path, mode: str) -> None:
    image = Image.fromarray(RGB[..., 0])
    if mode == "LA":
        image.putalpha(Image.fromarray(ALPHA))
    image.convert(mode).save(tmp_path / "in.png")
    inline("test_real.py", "--data_path", "in.png", "--logdir", weights, "--out", "out.png")
    with Image.open(tmp_path / "out.png") as image:
        assert image.mode == {"L": "L", "LA": "RGBA", "RGB": "RGB"}[mode]
        pixels = np.asarray(image.convert("RGBA"))
    assert (pixels[..., :1] == pixels[..., :3]).all()
    assert np.array_equal(pixels[..., 3], ALPHA if mode == "LA" else np.full_like(ALPHA, 255))


def test_the_page_shows_wide_gamut_as_it_is(tmp_path: Path) -> None:
    """A profile whose red and green are exchanged: on the page, which has no profile, red is green."""
    exchanged = bytearray(PROFILE)
    count = int.from_bytes(exchanged[128:132], "big")
    tags = {bytes(exchanged[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = tags[b"rXYZ"], tags[b"gXYZ"]
    exchanged[red : red + 4], exchanged[green : green + 4] = b"gXYZ", b"rXYZ"
    shown = np.full((16, 16, 3), (200, 0, 0), np.uint8)
    small = page.thumbnails(shown, shown, None, bytes(exchanged))
    with Image.open(io.BytesIO(base64.b64decode(small["derained"].split(",")[1]))) as image:
        pixel = np.asarray(image.convert("RGB"))[8, 8].astype(int)
    assert np.abs(pixel - (0, 200, 0)).max() < 20
    assert small["derained"] != page.thumbnails(shown, shown, None)["derained"]


def test_exiftool_reads_what_was_kept(tmp_path: Path) -> None:
    """Another reader than Pillow, where it is installed."""
    Image.fromarray(RGB).save(tmp_path / "in.jpg", icc_profile=PROFILE, exif=exif(6), dpi=(300, 300))
    write_image(tmp_path / "out.png", read_image(tmp_path / "in.jpg"))
    try:
        command = ["exiftool", "-s", "-Make", "-XResolution", "-ProfileDescription", tmp_path / "out.png"]
        found = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        pytest.skip("no exiftool here; the tests above read with Pillow")
    assert "Camera" in found and "sRGB" in found
