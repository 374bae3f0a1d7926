"""Photos, opened safely and prepared for an encoder.

Photos come from strangers, so this is the only place that opens them: from an allow-list of
formats, with their size checked before they are decoded, and with one clear error for everything
that can be wrong with a file. Shapes: ``H``, ``W`` are the height and width that the encoder
takes, ``h``, ``w`` those of the upright photo, ``gh``, ``gw`` those of the grid of regions.
"""

import io
import math
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from regard.errors import ModelError, PhotoError

Source = str | Path | bytes | BinaryIO | Image.Image
Placement = tuple[float, float, float, float]

_FORMATS = tuple(
    plugin.format
    for plugin in (
        JpegImagePlugin.JpegImageFile,  # and MPO, which begins with a whole JPEG
        PngImagePlugin.PngImageFile,
        WebPImagePlugin.WebPImageFile,
        GifImagePlugin.GifImageFile,
        BmpImagePlugin.BmpImageFile,
        TiffImagePlugin.TiffImageFile,
        PpmImagePlugin.PpmImageFile,
        AvifImagePlugin.AvifImageFile,
    )
)
_ACCEPTED = "JPEG, PNG, WebP, GIF, BMP, TIFF, PPM and AVIF photos can be opened"
_MOST_BYTES = 1 << 30
"""Of a file: some formats are read into the memory whole before anything is known of them. It holds
100 million pixels of up to four channels of 16 bits."""
_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_photo(source: Source, *, max_pixels: int = 100_000_000) -> Image.Image:
    """Open a photo as it should be seen: upright, in RGB, fully decoded.

    Transparency is laid on white; of an animation the first frame is taken; 16-bit photos are
    scaled to 8 bits. A file object is left open for its owner; a given image is left unchanged.

    Args:
        source: a file, its content, a file object open for reading bytes, or a Pillow image.
        max_pixels: photos with more pixels are refused before they are decoded.

    Raises:
        PhotoError: if it is no photo that can be opened, naming the file and saying why.

    """
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "The given image"
        return _decoded(source, name, max_pixels, keep=True)
    if isinstance(source, bytes | bytearray | memoryview):
        return _from_file(io.BytesIO(source), "The photo", max_pixels)
    if isinstance(source, str | Path):
        return _from_path(Path(source), str(source), max_pixels)
    given = getattr(source, "name", None)
    name = given if isinstance(given, str) and given else "The photo"
    try:
        content = source if source.seekable() else io.BytesIO(source.read())
        return _from_file(content, name, max_pixels)
    except (OSError, ValueError) as error:  # a closed or write-only file
        raise PhotoError(
            f"{name} cannot be read: {_reason(error)}. A file object must be open for reading "
            'bytes. Open it with open(path, "rb"), or give the path.'
        ) from error


def _from_path(path: Path, name: str, max_pixels: int) -> Image.Image:
    try:
        found = path.stat()
        kind = found.st_mode
        if stat.S_ISDIR(kind):
            raise PhotoError(
                f"{name} is a folder. One photo is opened at a time. Give a file inside the "
                "folder.",
                "a folder",
            )
        if not stat.S_ISREG(kind):  # opening a pipe would wait forever
            raise PhotoError(
                f"{name} is a device or a pipe, not a file. Photos are opened from files. "
                "Save it as a file first.",
                "no file",
            )
        if found.st_size > _MOST_BYTES:
            raise PhotoError(
                f"{name} has {found.st_size:,} bytes. Files of at most {_MOST_BYTES:,} are opened, "
                "because some must be read into the memory whole. Make it smaller, or leave it "
                "out.",
                "too large",
            )
        with path.open("rb") as file:
            return _from_file(file, name, max_pixels)
    except FileNotFoundError as error:
        hint = (
            "Download it first, then give the file."
            if name.startswith(("http://", "https://"))
            else f"Check the spelling; relative paths start from {Path.cwd()}."
        )
        raise PhotoError(
            f"{name} does not exist. A photo is a file on this machine. {hint}", "missing"
        ) from error
    except PermissionError as error:
        raise PhotoError(
            f"{name} may not be read by this user. Reading needs permission for the file and its "
            f'folders. Try: chmod u+r "{name}"',
            "not permitted",
        ) from error
    except (OSError, ValueError) as error:  # a name that is too long, a null byte, a failing disk
        raise PhotoError(
            f"{name!r} cannot be read: {_reason(error)}. A photo is a file on this machine. "
            "Check the path and the disk."
        ) from error


def _from_file(file: BinaryIO, name: str, max_pixels: int) -> Image.Image:
    file.seek(0)
    start = file.read(512)
    if not start:
        raise PhotoError(
            f"{name} is empty (0 bytes). {_ACCEPTED}. Copy or download it again, or leave it out.",
            "empty",
        )
    image = _identified(file, name, start, max_pixels)
    return _decoded(image, name, max_pixels)


def _identified(file: BinaryIO, name: str, start: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """The photo with its header read.

    This is ``Image.open(file, formats=...)`` without its check of the size, which asks a global of
    Pillow's and warns. Silencing a warning is not safe among threads, and where warnings are
    errors, ``max_pixels`` could never be larger than the global. Our own check follows at once.
    """
    problem: Exception | None = None
    for factory in _accepting(start):
        file.seek(0)
        try:
            return factory(file, "")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise _too_large(name, "an inner size beyond all reason", max_pixels) from error
        except Exception as error:  # a decoder that reads garbage can raise anything
            problem = error
    looks = _looks_like(start)
    if problem is not None:
        raise PhotoError(
            f"{name} is damaged: {_reason(problem)}. A photo must be complete from its first byte "
            "to its last. Copy or download it again, or leave it out.",
            "damaged",
        ) from problem
    if looks == "HEIC":
        raise PhotoError(
            f"{name} is a HEIC photo, which Pillow cannot open without the package pillow-heif. "
            f'{_ACCEPTED}. Install it with: pip install "regard[heic]"; or convert it to JPEG.',
            "HEIC without pillow-heif",
        )
    raise PhotoError(
        f"{name} is {looks}, not a photo. {_ACCEPTED}. Convert it to one of these, or leave it "
        "out.",
        "not a photo",
    )


def _accepting(start: bytes) -> Iterator[Callable[..., ImageFile.ImageFile]]:
    """What can open a file that begins so; for HEIC the package pillow-heif, where it is there."""
    for known in _FORMATS:
        factory, accept = Image.OPEN[known]
        accepted = accept is None or accept(start[:16])
        if accepted is True:  # a text says that this Pillow was built without the format
            yield factory
    if start[4:8] == b"ftyp" and start[8:12] in _HEIC_BRANDS:
        try:
            import pillow_heif
        except ImportError:
            return
        pillow_heif.register_heif_opener()
        yield Image.OPEN["HEIF"][0]


def _decoded(image: Image.Image, name: str, max_pixels: int, *, keep: bool = False) -> Image.Image:
    """The image decoded, upright and in RGB; with ``keep`` never the given object itself."""
    width, height = image.size
    if width * height > max_pixels:
        raise _too_large(name, f"{width} x {height} pixels", max_pixels)
    if not width * height:
        raise PhotoError(
            f"{name} has {width} x {height} pixels. A photo has at least one. Leave it out.",
            "damaged",
        )
    try:
        image.load()
        if image.size[0] * image.size[1] > max_pixels:  # a frame that outgrows its header
            raise _too_large(name, f"{image.size[0]} x {image.size[1]} pixels", max_pixels)
        upright = _upright(image)
        rgb = _rgb(upright)
        return rgb.copy() if keep and rgb is image else rgb
    except PhotoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(name, "an inner size beyond all reason", max_pixels) from error
    except Exception as error:  # a decoder that reads garbage can raise anything
        raise PhotoError(
            f"{name} ({image.format or 'image'}, {width} x {height} pixels) cannot be decoded: "
            f"{_reason(error)}. A photo must be complete from its first byte to its last. "
            "Copy or download it again, or leave it out.",
            "damaged",
        ) from error


def _too_large(name: str, size: str, max_pixels: int) -> PhotoError:
    return PhotoError(
        f"{name} has {size}. At most {max_pixels:,} pixels are decoded, because a small file can "
        "hold a picture that fills the memory. Make it smaller, or raise max_pixels for photos "
        "that you trust.",
        "too large",
    )


def _reason(error: Exception) -> str:
    said = str(error.strerror if isinstance(error, OSError) and error.strerror else error)
    return said.strip().rstrip(".") or type(error).__name__


def _looks_like(start: bytes) -> str:
    """What a file that is no photo seems to be."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start[4:8] == b"ftyp":
        return "HEIC" if start[8:12] in _HEIC_BRANDS else "a video or an image in a video's clothes"
    if b"<svg" in text:
        return "an SVG drawing"
    for beginning, what in _OTHERS.items():
        if text.startswith(beginning):
            return what
    if b"\0" not in start and not any(byte < 9 for byte in start):
        try:
            start.decode("ascii")
            return "text"
        except UnicodeDecodeError:
            pass
    return "in a format that is not known"


_HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}
_OTHERS = {
    b"%pdf": "a PDF document",
    b"%!ps": "a PostScript document",
    b"<?xml": "an XML document",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
    b"pk\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "a gzip archive",
    b"8bps": "a Photoshop document",
    b"\x00\x00\x01\x00": "an icon",
    b"\x00\x00\x00\x0cjp": "a JPEG 2000 picture",
}


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # notes that cannot be read are no reason to refuse the photo
        return image
    how = _UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if how is None else image.transpose(how)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        # Pillow has no direct way from grey with premultiplied alpha.
        seen = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
        white = Image.new("RGB", seen.size, "white")
        white.paste(seen, mask=seen.getchannel("A"))
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey values of more than 8 bits, scaled to 0..255 rather than clipped as Pillow does.

    The modes ``I`` and ``F`` do not say what white is. Whole numbers from PNG and PPM files have
    16 bits; for the rest, the smallest usual range that holds all values is taken.
    """
    values = np.asarray(image).astype(np.float64)
    values = np.where(np.isfinite(values), values, 0)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or image.format in ("PNG", "PPM"):
        white = 65535.0
    else:
        usual = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
        white = next((limit for limit in usual if low >= 0 and high <= limit), 0.0)
    start, scale = (0.0, white) if white else (low, max(high - low, 1e-12))
    eight: NDArray[np.uint8] = np.rint(((values - start) * (255 / scale)).clip(0, 255)).astype(
        np.uint8
    )
    return eight


@dataclass(frozen=True, slots=True)
class Preparation:
    """How a photo becomes the input of an encoder."""

    size: tuple[int, int]
    """H and W."""
    resize: Literal["squash", "crop"] = "squash"
    """``squash`` shows the whole photo; ``crop`` keeps its proportions and cuts the edges off."""
    crop_fraction: float = 1.0
    """With ``crop``: how much of the shorter side is kept."""
    interpolation: Literal["bilinear", "bicubic"] = "bilinear"
    """How pixels are resampled."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from red, green and blue, which are in 0..1."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """What red, green and blue are then divided by."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {value!r}; it must be {right}"
            for name, value, right, good in (
                ("size", self.size, "two whole numbers from 1 to 16384", _is_size(self.size)),
                ("resize", self.resize, "squash or crop", self.resize in ("squash", "crop")),
                (
                    "crop_fraction",
                    self.crop_fraction,
                    "more than 0 and at most 1",
                    _is_number(self.crop_fraction) and 0 < self.crop_fraction <= 1,
                ),
                (
                    "interpolation",
                    self.interpolation,
                    "bilinear or bicubic",
                    self.interpolation in ("bilinear", "bicubic"),
                ),
                ("mean", self.mean, "three numbers", _is_colour(self.mean)),
                (
                    "std",
                    self.std,
                    "three numbers above 0",
                    _is_colour(self.std) and min(self.std) > 0,
                ),
            )
            if not good
        ]
        if problems:
            raise ModelError(
                f"The preparation of photos cannot be used: {'; '.join(problems)}. "
                "Correct the encoder's description, or load the encoder anew."
            )

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """What the encoder sees of an RGB photo, before normalisation: ``(H, W, 3)``, 0..255."""
        height, width = self.size
        seen = self.placement(*image.size)
        if seen == (0.0, 0.0, float(width), float(height)) and image.size == (width, height):
            return np.asarray(image)
        # Resampling within a box looks at the pixels around it too, as resize-then-crop does.
        how = Image.Resampling[self.interpolation.upper()]
        return np.asarray(image.resize((width, height), how, box=seen))

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The input of the encoder for an RGB photo: ``(3, H, W)``.

        In memory its channels come last, as encoders want them; so they do in a stack of photos.
        """
        height, width = self.size
        pixels = self.pixels(image).reshape(height, 3 * width)  # rows are long enough to be quick
        prepared = pixels.astype(np.float32)
        prepared /= np.float32(255)
        prepared -= np.tile(np.array(self.mean, np.float32), width)
        prepared /= np.tile(np.array(self.std, np.float32), width)
        return prepared.reshape(height, width, 3).transpose(2, 0, 1)

    def placement(self, width: int, height: int) -> Placement:
        """What the encoder sees of an upright photo: left, top, right, bottom, in its pixels.

        A crop is timm's: the shorter side becomes ``size / crop_fraction``, then the centre is cut
        out. Where H and W differ, the photo is made just large enough for both.
        """
        if self.resize == "squash":
            return (0.0, 0.0, float(width), float(height))
        seen_height, seen_width = self.size
        scale = max(
            round(seen_width / self.crop_fraction) / width,
            round(seen_height / self.crop_fraction) / height,
        )
        large_width = max(seen_width, round(width * scale))
        large_height = max(seen_height, round(height * scale))
        left = round((large_width - seen_width) / 2)
        top = round((large_height - seen_height) / 2)
        return (
            left * width / large_width,
            top * height / large_height,
            min(float(width), (left + seen_width) * width / large_width),
            min(float(height), (top + seen_height) * height / large_height),
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> "Preparation":
        """What :meth:`as_dict` described.

        Raises:
            ModelError: if it describes no preparation, saying all that is wrong.

        """
        if not isinstance(description, Mapping):
            raise ModelError(
                f"The preparation of photos is {description!r}. It must be a table of settings. "
                "Load the encoder anew."
            )
        known = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in set(description) - known)
        if unknown or "size" not in description:
            wrong = [f"{name} is not a setting" for name in unknown]
            wrong += ["size is missing"] if "size" not in description else []
            raise ModelError(
                f"The preparation of photos cannot be used: {'; '.join(wrong)}. Its settings are "
                f"{', '.join(sorted(known))}. Load the encoder anew, or update this package."
            )
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in description.items()
        }
        return cls(**values)


@dataclass(frozen=True)
class View:
    """One way of looking at a photo: a part of it, perhaps as in a mirror."""

    box: tuple[float, float, float, float] = (0.0, 0.0, 1.0, 1.0)
    """Left, top, right and bottom of the part, as shares of the photo's width and height."""
    mirrored: bool = False
    """Whether left and right change places."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """What is seen of a photo."""
        if self.box != (0.0, 0.0, 1.0, 1.0):
            sides = (*image.size, *image.size)
            left, top, right, bottom = (
                round(b * side) for b, side in zip(self.box, sides, strict=True)
            )
            image = image.crop((left, top, max(right, left + 1), max(bottom, top + 1)))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if self.mirrored else image


VIEWS = (
    View(),
    View(mirrored=True),
    View((0.0, 0.0, 0.85, 0.85)),
    View((0.15, 0.15, 1.0, 1.0), mirrored=True),
    View((0.15, 0.0, 1.0, 0.85)),
    View((0.0, 0.15, 0.85, 1.0), mirrored=True),
    View((0.0, 0.0, 0.85, 0.85), mirrored=True),
    View((0.15, 0.15, 1.0, 1.0)),
    View((0.0, 0.0, 0.7, 1.0)),
    View((0.3, 0.0, 1.0, 1.0), mirrored=True),
    View((0.15, 0.15, 0.85, 0.85)),
    View((0.1, 0.1, 0.8, 0.8), mirrored=True),
)
"""What training may see of a photo, the whole photo first; the first six are the mildest."""


@dataclass(frozen=True)
class Viewed:
    """The preparation of one view of each photo."""

    preparation: Preparation
    view: View

    def __call__(self, image: Image.Image) -> NDArray[np.float32]:
        """The input of the encoder for an RGB photo, as :class:`Preparation`."""
        return self.preparation(self.view(image))

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        view = {"box": list(self.view.box), "mirrored": self.view.mirrored}
        return {**self.preparation.as_dict(), "view": view}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_size(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and all(type(side) is int and 1 <= side <= 16384 for side in value)
    )


def _is_colour(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 3 and all(map(_is_number, value))


def overlay_map(
    weights: NDArray[np.floating[Any]], photo_size: tuple[int, int], placement: Placement
) -> NDArray[np.float32]:
    """Lay a map of the grid over the photo, smoothly: ``(h, w)``, not below 0.

    Args:
        weights: one weight for each region, ``(gh, gw)``.
        photo_size: w and h of the upright photo.
        placement: what the encoder saw of it, from :meth:`Preparation.placement`. The rest of the
            photo was not looked at: the map is 0 there.

    """
    weights = np.asarray(weights, dtype=np.float32)
    if weights.ndim != 2 or not weights.size:
        raise ValueError(f"a map has a height and a width, got the shape {weights.shape}")
    left, top, right, bottom = placement
    width, height = photo_size
    down = _upsampling(weights.shape[0], height, top, bottom)  # (h, gh)
    across = _upsampling(weights.shape[1], width, left, right)  # (w, gw)
    laid: NDArray[np.float32] = np.maximum(down @ weights @ across.T, 0)  # (h, w)
    return laid


def _upsampling(cells: int, pixels: int, start: float, end: float) -> NDArray[np.float32]:
    """How much each pixel takes from each cell, ``(pixels, cells)``: Keys' cubic, edges repeated.

    The cells share ``start``..``end``, so a weight peaks at the middle of its own cell, whatever
    the photo's proportions. Pixels outside take nothing.
    """
    centres = np.arange(pixels) + 0.5
    position = (centres - start) / (end - start) * cells - 0.5
    first = np.floor(position).astype(int) - 1
    rows = np.arange(pixels)
    matrix = np.zeros((pixels, cells))
    for step in range(4):
        away = np.abs(position - (first + step))
        near = (1.5 * away - 2.5) * away**2 + 1
        far = ((-0.5 * away + 2.5) * away - 4) * away + 2
        share = np.where(away <= 1, near, far)
        np.add.at(matrix, (rows, (first + step).clip(0, cells - 1)), share)
    matrix[(centres < start) | (centres > end)] = 0
    return matrix.astype(np.float32)
