"""Any photo comes out upright and in RGB, any other file as one clear error; maps fall in place."""

import gc
import io
import json
import math
import os
import struct
import threading
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from pydantic import ValidationError

from regard.config import TrainConfig
from regard.errors import ModelError, PhotoError
from regard.images import VIEWS, Preparation, View, Viewed, open_photo, overlay_map


def noise(width: int = 37, height: int = 23, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def content(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def corner(image: Image.Image) -> tuple[int, ...]:
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    noise().save(path)
    return path


# Sources


def test_every_source_gives_the_same_photo(photo: Path) -> None:
    expected = np.asarray(noise())
    with photo.open("rb") as file, Image.open(photo) as lazy:
        file.seek(5)  # wherever it stands, the whole file is read
        for source in (photo, str(photo), photo.read_bytes(), file, lazy, noise()):
            opened = open_photo(source)
            assert opened.mode == "RGB"
            assert np.array_equal(np.asarray(opened), expected)
        assert not file.closed


def test_a_stream_without_seeking_is_read(photo: Path) -> None:
    out, into = os.pipe()
    with os.fdopen(into, "wb") as writer:
        writer.write(photo.read_bytes())
    with os.fdopen(out, "rb") as reader:
        assert open_photo(reader).size == (37, 23)


def test_a_given_image_is_neither_changed_nor_shared() -> None:
    given_image = noise()
    opened = open_photo(given_image)
    opened.putpixel((0, 0), (1, 2, 3))
    assert np.array_equal(np.asarray(given_image), np.asarray(noise()))


def test_no_file_stays_open(photo: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:200])
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        kept = [open_photo(photo) for _ in range(5)]
        for _ in range(5):
            with pytest.raises(PhotoError):
                open_photo(broken)
        if before:
            assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        del kept
        gc.collect()
    assert not [w for w in seen if issubclass(w.category, ResourceWarning)]


# Formats and modes


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("BMP", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("AVIF", {"quality": 95}),
    ],
)
def test_format(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        pytest.skip("this Pillow was built without it")
    path = tmp_path / "photo.wrong"  # what is inside counts, not the ending
    path.write_bytes(content(noise(), kind, **options))
    opened = open_photo(path)
    difference = np.asarray(opened).astype(int) - np.asarray(noise())
    assert np.abs(difference).mean() < 8  # GIF has 256 colours


def test_the_first_picture_of_a_camera_pair() -> None:
    pair = content(noise(), "MPO", save_all=True, append_images=[noise(seed=1)], quality=95)
    difference = np.asarray(open_photo(pair)).astype(int) - np.asarray(noise())
    assert np.abs(difference).mean() < 8


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    red, blue = (Image.new("RGB", (8, 8), colour) for colour in ("red", "blue"))
    moving = content(red, kind, save_all=True, append_images=[blue])
    assert np.allclose(corner(open_photo(moving)), (255, 0, 0), atol=4)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("L", 128, (128, 128, 128)),
        ("1", 1, (255, 255, 255)),
        ("1", 0, (0, 0, 0)),
        ("LA", (0, 0), (255, 255, 255)),
        ("LA", (100, 255), (100, 100, 100)),
        ("La", (0, 0), (255, 255, 255)),
        ("RGBA", (255, 0, 0, 255), (255, 0, 0)),
        ("RGBA", (0, 0, 0, 0), (255, 255, 255)),
        ("RGBA", (0, 0, 0, 128), (127, 127, 127)),
        ("RGBa", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("YCbCr", (255, 128, 128), (255, 255, 255)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("LAB", (255, 128, 128), (255, 255, 255)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 100, (100, 100, 100)),
        ("I;16B", 257 * 100, (100, 100, 100)),
        ("I;16L", 257 * 100, (100, 100, 100)),
        ("I;16N", 257 * 100, (100, 100, 100)),
        ("I", 200, (200, 200, 200)),
        ("I", 257 * 200, (200, 200, 200)),
        ("F", 0.2, (51, 51, 51)),
        ("F", 51.0, (51, 51, 51)),
        ("F", 257.0 * 51, (51, 51, 51)),
    ],
)
def test_mode(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    given_image = Image.new(mode, (3, 2), value)
    assert corner(open_photo(given_image)) == pytest.approx(expected, abs=2 * (mode == "LAB"))


def test_values_beyond_any_usual_range_are_stretched() -> None:
    values = np.array([[-1.0, 0.0, 3.0]], dtype=np.float32)
    stretched = np.asarray(open_photo(Image.fromarray(values)))[0, :, 0]
    assert stretched.tolist() == [0, 64, 255]
    values = np.array([[np.nan, np.inf, 1.0]], dtype=np.float32)
    assert np.asarray(open_photo(Image.fromarray(values)))[0, :, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_16_bit_files_are_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    opened = np.asarray(open_photo(content(Image.fromarray(ramp), kind)))[:, :, 0]
    assert np.array_equal(opened, np.rint(ramp / 257))
    dark = np.full((2, 2), 200, dtype=np.uint16)  # a dark photo stays dark
    assert corner(open_photo(content(Image.fromarray(dark), kind))) == (1, 1, 1)


def test_transparent_colours_of_palette_files_are_white() -> None:
    flat = Image.new("P", (4, 4), 1)
    flat.putpalette([0, 0, 0, 200, 10, 10])
    assert corner(open_photo(content(flat))) == (200, 10, 10)
    assert corner(open_photo(content(flat, transparency=1))) == (255, 255, 255)
    assert corner(open_photo(content(flat, transparency=bytes([0, 255])))) == (200, 10, 10)
    assert corner(open_photo(content(flat, "GIF", transparency=1))) == (255, 255, 255)
    black = Image.new("RGB", (4, 4))
    assert corner(open_photo(content(black, transparency=(0, 0, 0)))) == (255, 255, 255)


ORIENTED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[:, ::-1],
}
"""How a camera stores an upright photo for each EXIF orientation."""


def turned(upright: Image.Image, orientation: int, kind: str = "PNG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(ORIENTED[orientation](np.asarray(upright)))
    return content(Image.fromarray(stored), kind, exif=exif)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_upright(orientation: int, kind: str) -> None:
    opened = open_photo(turned(noise(), orientation, kind))
    assert np.array_equal(np.asarray(opened), np.asarray(noise()))


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_an_orientation_out_of_nowhere_changes_nothing(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    opened = open_photo(content(noise(), exif=exif))
    assert np.array_equal(np.asarray(opened), np.asarray(noise()))


def test_notes_that_cannot_be_read_do_not_cost_the_photo() -> None:
    jpeg = content(noise(), "JPEG", exif=b"Exif\0\0garbage that is no TIFF header")
    assert open_photo(jpeg).size == (37, 23)


# What cannot be opened

FTYP = b"\0\0\0\x18ftyp"


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("empty.jpg", b"", r"is empty \(0 bytes\)\. JPEG, PNG"),
        ("text.jpg", b"just a note to myself", "is text, not a photo"),
        ("drawing.png", b"<?xml version='1.0'?><svg xmlns=''>", "is an SVG drawing, not a photo"),
        ("feed.png", b"<?xml version='1.0'?><rss/>", "is an XML document"),
        ("paper.png", b"%PDF-1.7 ...", "is a PDF document, not a photo"),
        ("plot.jpg", b"%!PS-Adobe-3.0 EPSF-3.0", "is a PostScript document"),
        ("page.jpg", b"<!DOCTYPE html><html>", "is a web page"),
        ("all.jpg", b"PK\x03\x04 and more", "is a ZIP archive"),
        (
            "phone.heic",
            FTYP + b"heic\0\0\0\0mif1heic",
            "is a HEIC photo.*pillow-heif|phone.heic is damaged",
        ),
        ("clip.jpg", FTYP + b"isom\0\0\0\0", "is a video"),
        ("raw.bin", bytes(range(256)), "in a format that is not known"),
        ("latin.txt", b"caf\xe9 cr\xe8me", "in a format that is not known"),
        ("icon.png", b"\0\0\1\0\1\0\x10\x10", "is an icon"),
    ],
)
def test_files_that_are_no_photos(name: str, data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PhotoError, match=says) as caught:
        open_photo(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)


def test_a_real_icon_is_refused_though_pillow_could_open_it(tmp_path: Path) -> None:
    noise(16, 16).save(tmp_path / "icon.ico")
    Image.init()  # all of Pillow's formats are loaded, as in a program that uses them
    with pytest.raises(PhotoError, match="is an icon, not a photo"):
        open_photo(tmp_path / "icon.ico")


def test_missing_folder_pipe_and_impossible_names(tmp_path: Path) -> None:
    with pytest.raises(PhotoError, match=r"gone\.jpg does not exist\..*Check the spelling"):
        open_photo(tmp_path / "gone.jpg")
    with pytest.raises(PhotoError, match=r"https://example.org/a.jpg does not .* Download it"):
        open_photo("https://example.org/a.jpg")
    with pytest.raises(PhotoError, match="is a folder.*Give a file inside"):
        open_photo(tmp_path)
    with pytest.raises(PhotoError, match="cannot be read"):
        open_photo("a\0b.jpg")
    with pytest.raises(PhotoError, match="cannot be read: File name too long"):
        open_photo("a" * 5000)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(PhotoError, match="is a device or a pipe"):
        open_photo(tmp_path / "pipe.jpg")


def test_no_permission(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:  # the administrator may read everything
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PhotoError, match=r"photo\.png may not be read by this user.*chmod u\+r"):
        open_photo(photo)


def test_closed_and_text_files(photo: Path) -> None:
    file = photo.open("rb")
    file.close()
    with pytest.raises(PhotoError, match="cannot be read: .*closed file.*Open it with"):
        open_photo(file)
    with photo.with_suffix(".new").open("wb") as write_only, pytest.raises(PhotoError):
        open_photo(write_only)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_anywhere(kind: str, tmp_path: Path) -> None:
    whole = content(noise(64, 48), kind)
    path = tmp_path / "cut.jpg"
    for share in (0.02, 0.1, 0.3, 0.5, 0.8):
        path.write_bytes(whole[: math.ceil(len(whole) * share)])
        with pytest.raises(PhotoError, match=r"cut\.jpg") as caught:
            open_photo(path)
        assert "opy or download it again" in str(caught.value) or "not a photo" in str(caught.value)


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF"]),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), min_size=1, max_size=30),
)
def test_damage_gives_a_photo_or_a_photo_error(kind: str, changes: list[tuple[float, int]]) -> None:
    if kind in ("WEBP", "AVIF") and not features.check(kind.lower()):
        return
    data = bytearray(WHOLE.setdefault(kind, content(noise(24, 16), kind)))
    for place, value in changes:
        data[int(place * len(data))] = value
    try:
        assert open_photo(bytes(data), max_pixels=1_000_000).mode == "RGB"
    except PhotoError as error:
        told = str(error)
    else:
        told = "The photo is whole"
    assert told.startswith("The photo ")


WHOLE: dict[str, bytes] = {}


@pytest.mark.parametrize(
    "raised",
    [
        struct.error("bad"),
        SyntaxError("bad"),
        ValueError("bad"),
        zlib.error("bad"),
        EOFError("bad"),
        OSError("bad"),
        UserWarning("bad"),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("when", ["header", "pixels"])
def test_whatever_a_decoder_raises(
    raised: Exception, when: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    if when == "header":
        monkeypatch.setitem(Image.OPEN, "PNG", (fail, Image.OPEN["PNG"][1]))
        says = r"photo\.png is damaged: "
    else:
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
        says = r"photo\.png \(PNG, 37 x 23 pixels\) cannot be decoded: "
    with pytest.raises(PhotoError, match=says + (str(raised) or "MemoryError")):
        open_photo(photo)


def test_a_given_image_without_pixels() -> None:
    with pytest.raises(PhotoError, match="The given image has 0 x 5 pixels"):
        open_photo(Image.new("RGB", (0, 5)))


# Bombs


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_001, 30_000])
def test_bombs_are_refused_before_decoding(side: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    with pytest.raises(PhotoError, match=rf"bomb\.png has {side} x {side} .*At most 100,000,000"):
        open_photo(path)


def test_the_limit_is_ours_not_pillows() -> None:
    # Pillow warns above 89 million pixels, and here warnings are errors: the header must pass, so
    # that the complaint is about the missing pixels.
    for side, limit in ((9_900, 100_000_000), (20_000, 400_000_000)):
        with pytest.raises(PhotoError, match=f"{side} x {side} pixels\\) cannot be decoded"):
            open_photo(png_header(side, side), max_pixels=limit)
    assert open_photo(content(noise(10, 10)), max_pixels=100).size == (10, 10)
    with pytest.raises(PhotoError, match="has 10 x 10 pixels. At most 99 "):
        open_photo(content(noise(10, 10)), max_pixels=99)
    with pytest.raises(PhotoError, match="has 10 x 10 pixels. At most 99 "):
        open_photo(noise(10, 10), max_pixels=99)


@pytest.mark.parametrize("side", [10_000, 60_000])  # Pillow warns, Pillow raises
def test_a_frame_that_outgrows_its_header(side: int) -> None:
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    frame = b"," + struct.pack("<HHHHB", 0, 0, side, side, 0) + b"\x02\x02\x4c\x01\x00;"
    with pytest.raises(PhotoError, match="The photo has .*At most 1,000 pixels"):
        open_photo(screen + frame, max_pixels=1000)


@pytest.mark.parametrize("kind", [Image.DecompressionBombError, Image.DecompressionBombWarning])
@pytest.mark.parametrize("when", ["header", "pixels"])
def test_bombs_that_pillow_finds_itself(
    kind: type[Exception], when: str, photo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("boom")

    if when == "header":
        monkeypatch.setitem(Image.OPEN, "PNG", (fail, Image.OPEN["PNG"][1]))
    else:
        monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(PhotoError, match=r"photo\.png has an inner size beyond all reason"):
        open_photo(photo)


def test_threads_agree_on_bombs() -> None:
    bomb, fine, wrong = png_header(9_900, 9_900), content(noise()), []

    def work() -> None:
        for _ in range(20):
            try:
                open_photo(bomb, max_pixels=1000)
                wrong.append("bomb opened")
            except PhotoError as error:
                if "9900 x 9900" not in str(error):
                    wrong.append(str(error))
            if open_photo(fine).size != (37, 23):
                wrong.append("photo changed")

    limit, filters = Image.MAX_IMAGE_PIXELS, list(warnings.filters)
    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert (limit, filters) == (Image.MAX_IMAGE_PIXELS, list(warnings.filters))


# Preparation


def test_prepared_values_are_the_formula() -> None:
    preparation = Preparation((20, 30), mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    pixels = preparation.pixels(noise())
    assert (pixels.shape, pixels.dtype) == ((20, 30, 3), np.uint8)
    prepared = preparation(noise())
    assert (prepared.shape, prepared.dtype) == ((3, 20, 30), np.float32)
    assert prepared.transpose(1, 2, 0).flags.c_contiguous
    stacked = np.stack([prepared, prepared])
    assert stacked.transpose(0, 2, 3, 1).flags.c_contiguous  # as encoders want them
    expected = (pixels / 255.0 - [0.1, 0.2, 0.3]) / [0.5, 0.6, 0.7]
    np.testing.assert_allclose(prepared, expected.transpose(2, 0, 1), atol=1e-6)


def test_a_photo_of_the_right_size_is_not_resampled() -> None:
    for resize in ("squash", "crop"):
        assert np.array_equal(Preparation((23, 37), resize).pixels(noise()), np.asarray(noise()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (100, 75), (224, 224)])
def test_a_crop_is_resize_then_cut(size: tuple[int, int], interpolation: Any) -> None:
    preparation = Preparation((224, 224), "crop", 0.875, interpolation)
    image, short = noise(*size), round(224 / 0.875)
    scale = short / min(size)
    large = image.resize(
        (round(size[0] * scale), round(size[1] * scale)),
        Image.Resampling[interpolation.upper()],
    )
    left, top = round((large.width - 224) / 2), round((large.height - 224) / 2)
    cut = np.asarray(large.crop((left, top, left + 224, top + 224))).astype(int)
    assert np.abs(preparation.pixels(image) - cut).max() <= 2


def test_placement() -> None:
    assert Preparation((224, 224)).placement(640, 480) == (0, 0, 640, 480)
    assert Preparation((224, 224), "crop").placement(640, 480) == pytest.approx(
        (80, 0, 560, 480), abs=1.5
    )
    assert Preparation((224, 224), "crop", 0.875).placement(512, 256) == (144, 16, 368, 240)
    assert Preparation((100, 200), "crop").placement(400, 400) == (0, 100, 400, 300)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.tuples(st.integers(1, 400), st.integers(1, 400)),
    st.floats(0.3, 1),
)
def test_a_placement_is_within_the_photo(
    width: int, height: int, size: tuple[int, int], fraction: float
) -> None:
    left, top, right, bottom = Preparation(size, "crop", fraction).placement(width, height)
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    if width * height * max(size) < 10_000_000:
        image = Image.new("RGB", (width, height))
        assert Preparation(size, "crop", fraction).pixels(image).shape == (*size, 3)


def test_described_and_rebuilt() -> None:
    preparation = Preparation((224, 192), "crop", 0.9, "bicubic", (0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    described = preparation.as_dict()
    assert described["size"] == [224, 192]
    assert Preparation.from_dict(described) == preparation
    assert Preparation.from_dict({"size": [32, 32]}) == Preparation((32, 32))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"size": (0, 5)}, r"size is \(0, 5\); it must be two whole numbers"),
        ({"size": 224}, "size is 224"),
        ({"size": (2.5, 5)}, "size is"),
        ({"resize": "stretch"}, "resize is 'stretch'; it must be squash or crop"),
        ({"crop_fraction": 0}, "crop_fraction is 0; it must be more than 0 and at most 1"),
        ({"crop_fraction": math.nan}, "crop_fraction is nan"),
        ({"interpolation": "nearest"}, "interpolation is 'nearest'; .* bilinear or bicubic"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\); it must be three numbers"),
        ({"mean": ("a", 1, 2)}, "mean is"),
        ({"std": (0.0, 1.0, 1.0)}, "std is .* three numbers above 0"),
        ({"std": (math.inf, 1.0, 1.0)}, "std is"),
        ({"size": (0, 0), "resize": "x"}, "size is .*; resize is"),
    ],
)
def test_wrong_preparations(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says):
        Preparation(**{"size": (32, 32), **wrong})
    with pytest.raises(ModelError, match="cannot be used"):
        Preparation.from_dict({"size": [32, 32], **wrong})


def test_wrong_descriptions() -> None:
    with pytest.raises(ModelError, match="It must be a table of settings"):
        Preparation.from_dict([1, 2])  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"zoom is not a setting; size is missing\. Its settings"):
        Preparation.from_dict({"zoom": 2})


def test_two_hundred_photos_a_second() -> None:
    # 440 to 500 a second on one core; the bound leaves room for a busy machine.
    photos = [content(noise(640, 480, seed), "JPEG", quality=90) for seed in range(10)]
    preparation = Preparation((224, 224), "crop", 0.875, "bicubic")
    began = time.process_time()
    for photo in photos * 4:
        preparation(open_photo(photo))
    assert time.process_time() - began < 40 / 100


# Maps on photos


def cell(
    row: int, column: int, grid: tuple[int, int], placement: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    left, top, right, bottom = placement
    wide, high = (right - left) / grid[1], (bottom - top) / grid[0]
    return (
        left + column * wide,
        top + row * high,
        left + (column + 1) * wide,
        top + (row + 1) * high,
    )


@settings(max_examples=200, deadline=None)
@given(
    st.data(),
    st.tuples(st.integers(30, 400), st.integers(30, 400)),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.sampled_from(["squash", "crop"]),
)
def test_a_planted_peak_lands_in_its_cell(
    data: st.DataObject, size: tuple[int, int], grid: tuple[int, int], resize: Any
) -> None:
    placement = Preparation((64, 64), resize, 0.875).placement(*size)
    row = data.draw(st.integers(0, grid[0] - 1))
    column = data.draw(st.integers(0, grid[1] - 1))
    weights = np.random.default_rng(row * 100 + column).uniform(0, 0.3, grid)
    weights[row, column] = 1.0
    laid = overlay_map(weights, size, placement)
    assert (laid.shape, laid.dtype) == ((size[1], size[0]), np.float32)
    assert laid.min() >= 0
    y, x = np.unravel_index(laid.argmax(), laid.shape)
    left, top, right, bottom = cell(row, column, grid, placement)
    # A cell narrower than a pixel has its peak in the pixel that holds it.
    assert left - 0.5 <= x + 0.5 <= right + 0.5
    assert top - 0.5 <= y + 0.5 <= bottom + 0.5
    if right - left >= 2 and bottom - top >= 2:
        assert left <= x + 0.5 <= right
        assert top <= y + 0.5 <= bottom


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_from_a_bright_spot_in_a_turned_file_back_to_the_photo(
    orientation: int, resize: Any
) -> None:
    # A whole journey: file, upright photo, pixels, grid, map. A swap of height and width or a
    # missed turn puts the peak elsewhere, as the spot is off every axis of symmetry.
    upright = np.zeros((90, 170, 3), dtype=np.uint8)
    upright[14:24, 100:115] = 255
    photo = open_photo(turned(Image.fromarray(upright), orientation))
    preparation = Preparation((70, 70), resize)
    grid = preparation.pixels(photo).mean(2).reshape(7, 10, 7, 10).mean((1, 3))
    laid = overlay_map(grid, photo.size, preparation.placement(*photo.size))
    y, x = np.unravel_index(laid.argmax(), laid.shape)
    assert 10 <= y < 28
    assert 93 <= x < 122


def test_nothing_is_seen_outside_a_crop() -> None:
    placement = Preparation((64, 64), "crop").placement(200, 100)
    laid = overlay_map(np.ones((7, 7)), (200, 100), placement)
    assert not laid[:, :50].any()
    assert not laid[:, 150:].any()
    np.testing.assert_allclose(laid[:, 50:150], 1, atol=1e-5)


def test_an_even_map_stays_even() -> None:
    laid = overlay_map(np.full((3, 5), 0.25), (41, 17), (0, 0, 41, 17))
    np.testing.assert_allclose(laid, 0.25, atol=1e-6)


def test_a_map_has_two_sides() -> None:
    wrong: Callable[[tuple[int, ...]], np.ndarray] = np.ones
    for shape in ((49,), (1, 7, 7), (0, 7)):
        with pytest.raises(ValueError, match="a map has a height and a width"):
            overlay_map(wrong(shape), (10, 10), (0, 0, 10, 10))


def test_a_view_is_a_part_of_the_photo_perhaps_mirrored():
    pixels = np.arange(10 * 20 * 3, dtype=np.uint8).reshape(10, 20, 3)
    image = Image.fromarray(pixels)
    np.testing.assert_array_equal(np.asarray(VIEWS[0](image)), pixels)
    np.testing.assert_array_equal(np.asarray(VIEWS[1](image)), pixels[:, ::-1])
    part = View((0.25, 0.5, 1.0, 1.0), mirrored=True)
    np.testing.assert_array_equal(np.asarray(part(image)), pixels[5:, 5:][:, ::-1])
    assert View((0.5, 0.5, 0.5, 0.5))(image).size == (1, 1)  # never nothing


def test_the_setting_for_views_goes_up_to_all_of_them():
    assert TrainConfig(views=len(VIEWS)).views == len(set(VIEWS))
    with pytest.raises(ValidationError):
        TrainConfig(views=len(VIEWS) + 1)


def test_each_view_has_a_preparation_of_its_own():
    plain = Preparation((4, 4))
    described = {json.dumps(Viewed(plain, view).as_dict()) for view in VIEWS}
    assert len(described) == len(VIEWS)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8))
    np.testing.assert_allclose(Viewed(plain, VIEWS[1])(image), plain(image)[:, :, ::-1], atol=0.02)
