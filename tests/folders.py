"""A captioner without a network, for tests of what is around it."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from regard.apps.photos import Outputs, Tally, caption_photos
from regard.captioner import AnyCaptioner, Describer
from regard.describe import Caption, Decoding
from regard.errors import PhotoError
from regard.images import Placement

WORDS = "a man dog child is running sitting on grass beach red blue ball".split()


class Mute(AnyCaptioner):
    """Says of each photo what its pixels spell, after some seconds.

    Args:
        seconds: that a batch takes.
        identity: of its captions.
    """

    no_gaze = None
    folder = None
    grid = (2, 3)

    def __init__(self, seconds: float = 0.0, identity: str = "mute") -> None:
        self.seconds, self._identity, self.seen = seconds, identity, 0

    @property
    def identity(self) -> str:
        return self._identity

    def placement(self, size: tuple[int, int]) -> Placement:
        return 0, 0, *size

    def _prepare(self, photo: Image.Image) -> bytes:
        return photo.tobytes()

    def _describer(self, photos: int, batch_size: int) -> Describer:
        return self._say

    def _say(self, prepared: Sequence[bytes], decoding: Decoding) -> list[list[Caption]]:
        time.sleep(self.seconds)
        self.seen += len(prepared)
        return [[spelled(pixels)] for pixels in prepared]


def spelled(pixels: bytes) -> Caption:
    digest = hashlib.sha256(pixels).digest()
    words = tuple(WORDS[byte % len(WORDS)] for byte in digest[: 3 + digest[9] % 5])
    maps = np.frombuffer((digest * 8)[: 6 * len(words)], np.uint8).reshape(-1, 2, 3)
    maps = (maps + 1.0) / (maps + 1.0).sum((1, 2), keepdims=True)
    return Caption(" ".join(words), words, (-0.5,) * len(words), maps.astype("f4"), -1.0, False)


class Ear:
    """A listener that remembers."""

    def __init__(self) -> None:
        self.said: dict[str, str] = {}
        self.errors: dict[str, PhotoError] = {}
        self.lefts: dict[str, str] = {}
        self.asked: list[str] = []
        self.total: int | None = -1
        self.tally = Tally()

    def begin(self, total):
        self.total = total

    def captioned(self, path, found, alt):
        self.said[path] = alt or found.text

    def would(self, path):
        self.asked.append(path)

    def failed(self, path, error):
        self.errors[path] = error

    def left(self, file, why):
        self.lefts[str(file)] = why

    def going(self, tally):
        pass

    def end(self, tally):
        self.tally = tally


def run(photos, outputs: Outputs | None = None, captioner: Mute | None = None, **options) -> Ear:
    ear = Ear()
    caption_photos(captioner or Mute(), photos, Decoding(), outputs or Outputs(), ear, **options)
    return ear


def photo(seed: int = 0, size: tuple[int, int] = (30, 20), kind: str = "PNG") -> bytes:
    """The file of a photo unlike others."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def draw(file: Path, seed: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """A photo unlike others, of the kind that its name says."""
    file.parent.mkdir(parents=True, exist_ok=True)
    kind = "JPEG" if file.suffix.lower() == ".jpg" else "PNG"
    file.write_bytes(photo(seed, size, kind))
    return file
