r"""Flickr30k Entities: which words of a photo's captions name which boxes in it.

Source: Plummer et al., "Flickr30k Entities: collecting region-to-phrase correspondences for richer
image-to-sentence models" (International Journal of Computer Vision 123, 2017), in the format of
its own release:

- ``Sentences/ID.txt``: a caption a line. Phrases stand in brackets, as in ``[/EN#6/people A man]
  in [/EN#7/clothing a blue shirt]``; phrases of one chain, 6 say, speak of the same thing in all
  captions of the photo. Chain 0 is what nobody was asked to find.
- ``Annotations/ID.xml``: each ``object`` has the chains it belongs to, one ``name`` or several, and
  either a ``bndbox`` or marks that it has none (it is the whole scene, or not to be seen). Its
  pixels are counted from 1 and the last ones belong to the box.

The captions and boxes are of Flickr's own photo numbers. Flickr8k's names begin with the same
numbers, so that the photos it shares with Flickr30k have boxes too.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from regard.errors import DataError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels, right and bottom outside."""

_PHRASE = re.compile(r"\[/EN#(?P<chain>\d+)(?:/\S*)?\s+(?P<text>[^\]]*)\]")
_NOBODY_ASKED = "0"


class Piece(NamedTuple):
    """A part of a caption: a phrase, or what stands between two of them."""

    text: str
    chain: str | None
    """The chain of a phrase; none between phrases and for phrases of no chain."""


@dataclass(frozen=True)
class Annotation:
    """What is known of one photo."""

    photo: str
    """Its number."""
    width: int
    """Of the photo that was annotated, in pixels."""
    height: int
    """Likewise."""
    boxes: Mapping[str, tuple[Box, ...]]
    """For each chain that has any."""
    captions: tuple[tuple[Piece, ...], ...]
    """The captions in pieces, whose texts in their order are the caption."""

    def boxes_on(self, size: tuple[int, int]) -> dict[str, tuple[Box, ...]]:
        """The boxes in the pixels of a copy of the photo of this width and height.

        Raises:
            DataError: it has other proportions, so it is no copy of the whole photo.
        """
        across, down = size[0] / self.width, size[1] / self.height
        # Sides are whole pixels: a side may be off by one.
        if abs(across - down) > max(1 / self.width, 1 / self.height):
            raise DataError(
                f"Photo {self.photo} has {size[0]} x {size[1]} pixels, but its boxes are for "
                f"{self.width} x {self.height}: it is cut, turned or another photo. Take the "
                "photo as Flickr30k has it."
            )
        return {
            chain: tuple((a * across, b * down, c * across, d * down) for a, b, c, d in boxes)
            for chain, boxes in self.boxes.items()
        }


class Entities:
    """The annotations of a folder.

    Args:
        folder: with ``Annotations`` and ``Sentences`` in it.

    Raises:
        DataError: it lacks one of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        lacking = [name for name in ("Annotations", "Sentences") if not (folder / name).is_dir()]
        if lacking:
            raise DataError(
                f"{folder} (--boxes) has no folder {' and no folder '.join(lacking)}. Give the "
                "folder into which annotations.zip of Flickr30k Entities was unpacked."
            )

    def read(self, photo: Path) -> Annotation | None:
        """What is known of a photo, by its file's name; none if it was not annotated.

        Raises:
            DataError: a file of it is damaged, or only one of the two is there.
        """
        number = photo.stem.partition("_")[0]
        drawn = self._folder / "Annotations" / f"{number}.xml"
        said = self._folder / "Sentences" / f"{number}.txt"
        if not drawn.exists() and not said.exists():
            return None
        try:
            width, height, boxes = _read_boxes(drawn)
            lines = said.read_text(encoding="utf-8").splitlines()
        except (OSError, ValueError, ElementTree.ParseError) as error:
            raise DataError(
                f"The annotation of photo {number} in {self._folder} cannot be read: {error}. "
                "Unpack annotations.zip again."
            ) from error
        captions = tuple(_pieces(line) for line in lines if line.strip())
        return Annotation(number, width, height, boxes, captions)


def _read_boxes(file: Path) -> tuple[int, int, dict[str, tuple[Box, ...]]]:
    """Width, height, and the boxes of each chain."""
    root = ElementTree.parse(file).getroot()
    boxes: defaultdict[str, list[Box]] = defaultdict(list)
    for thing in root.iter("object"):
        frame = thing.find("bndbox")
        if frame is None:
            continue
        left, top, right, bottom = (_number(frame, k) for k in ("xmin", "ymin", "xmax", "ymax"))
        for name in thing.iter("name"):
            boxes[(name.text or "").strip()].append((left - 1, top - 1, right, bottom))
    width, height = _number(root, "size/width"), _number(root, "size/height")
    if min(width, height) < 1:
        raise ValueError(f"{file.name} is of a photo of {width} x {height} pixels")
    return width, height, {chain: tuple(found) for chain, found in boxes.items()}


def _number(element: ElementTree.Element, path: str) -> int:
    text = element.findtext(path)
    if text is None:
        raise ValueError(f"a {element.tag} has no {path}")
    return int(text)


def _pieces(caption: str) -> tuple[Piece, ...]:
    pieces, end = [], 0
    for phrase in _PHRASE.finditer(caption):
        chain = phrase["chain"]
        pieces.append(Piece(caption[end : phrase.start()].strip(), None))
        pieces.append(Piece(phrase["text"].strip(), None if chain == _NOBODY_ASKED else chain))
        end = phrase.end()
    pieces.append(Piece(caption[end:].strip(), None))
    return tuple(piece for piece in pieces if piece.text)
