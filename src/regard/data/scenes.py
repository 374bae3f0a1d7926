"""Drawn scenes: small pictures of named objects whose truth is known.

A scene holds one to three objects of different shapes and colours on a textured ground, two of
them in a relation; five people describe it, each in their own way. The boxes of the objects are
kept, so that where a captioner looks while it says "star" can be checked against where the star
is.

A drawn set is a folder:

================  ==============================================================================
``images/``       ``00000.jpg`` and so on
``scenes.jsonl``  one line a scene: image, split, captions, objects with boxes, relation, ground
``scenes.json``   count, seed and version; written last
================  ==============================================================================
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from regard.errors import DataError

VERSION = 1
"""Of the drawing: the same version, seed and number give the same scene."""

WIDTH, HEIGHT = 192, 144
"""Of a scene, in pixels."""

_FINE = 3  # edges are drawn this many times larger, then shrunk

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "diamond")

COLOURS = {
    "red": (205, 38, 38),
    "green": (38, 150, 62),
    "blue": (40, 78, 200),
    "yellow": (240, 208, 40),
    "orange": (238, 126, 28),
    "purple": (128, 54, 164),
    "pink": (240, 130, 176),
    "white": (240, 240, 238),
    "black": (34, 34, 38),
}

GROUNDS = {
    # name in captions: the colours that would be lost on it
    "the grass": ("green",),
    "the sand": ("yellow", "orange", "white"),
    "the water": ("blue", "purple"),
    "the snow": ("white",),
    "a wooden floor": ("orange", "red"),
    "a brick wall": ("red", "orange", "pink"),
    "grey gravel": ("black", "white"),
}

RELATIONS = ("left of", "above", "inside", "next to")

Pixels = NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Thing:
    """One object: what it is and where, in pixels."""

    shape: str
    colour: str
    size: str
    x: float
    y: float
    radius: float
    turn: float
    """Radians."""

    def outline(self) -> list[tuple[float, float]]:
        """Its corners, in pixels, clockwise."""
        cos, sin = math.cos(self.turn), math.sin(self.turn)
        return [
            (self.x + self.radius * (cos * u - sin * v), self.y + self.radius * (sin * u + cos * v))
            for u, v in _unit_outline(self.shape)
        ]

    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right, bottom in whole pixels, right and bottom outside."""
        xs, ys = zip(*self.outline(), strict=True)
        return (
            max(0, math.floor(min(xs))), max(0, math.floor(min(ys))),
            min(WIDTH, math.ceil(max(xs))), min(HEIGHT, math.ceil(max(ys))),
        )  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """What is drawn: the things, and how the first is placed to the second."""

    ground: str
    things: tuple[Thing, ...]
    relation: str | None


def draw_scenes(
    out: Path, *, count: int, seed: int, on_progress: Callable[[int, int], None] | None = None
) -> None:
    """Draw a data set of scenes; of each ten, eight are for training, one validates, one tests.

    Scene ``i`` depends on ``seed`` and ``i`` alone. A set that is there already is kept.

    Args:
        out: the folder.
        count: scenes.
        seed: of the drawing.
        on_progress: called with scenes done and scenes in all.

    Raises:
        DataError: the folder holds something else.
    """
    made = {"version": VERSION, "count": count, "seed": seed}
    mark = out / "scenes.json"
    if mark.exists():
        if json.loads(mark.read_text(encoding="utf-8")) == made:
            return
        raise DataError(f"{out} holds other scenes. Take a new folder, or delete this one.")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file. Give a folder for the scenes.")
    known = {"images", "scenes.jsonl", "scenes.jsonl.new", "scenes.json.new"}
    if out.is_dir() and {f.name for f in out.iterdir()} - known:
        raise DataError(f"{out} holds other files already. Take a new folder for the scenes.")
    images = out / "images"
    images.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(count):
        random = np.random.default_rng((VERSION, seed, i))
        scene = compose(random)
        name = f"images/{i:05}.jpg"
        paint(scene, random).save(out / name, quality=92)
        split = {8: "val", 9: "test"}.get(i % 10, "train")
        lines.append(json.dumps({
            "image": name,
            "split": split,
            "captions": describe(scene, random),
            "objects": [
                {"name": t.shape, "colour": t.colour, "size": t.size, "box": t.box()}
                for t in scene.things
            ],
            "relation": scene.relation,
            "ground": scene.ground,
        }))  # fmt: skip
        if on_progress is not None:
            on_progress(i + 1, count)
    _write(out / "scenes.jsonl", "\n".join(lines) + "\n")
    _write(mark, json.dumps(made) + "\n")


def _write(file: Path, text: str) -> None:
    beside = file.with_name(file.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(file)


# ----------------------------------------------------------------------------------------------
# What is there


def compose(random: np.random.Generator) -> Scene:
    """Choose a ground and place one to three things on it."""
    ground = str(random.choice(list(GROUNDS)))
    number = int(random.choice((1, 2, 3), p=(0.15, 0.6, 0.25)))
    relation = str(random.choice(RELATIONS)) if number > 1 else None
    while True:
        shapes = random.choice(SHAPES, number, replace=False)
        visible = [c for c in COLOURS if c not in GROUNDS[ground]]
        colours = random.choice(visible, number, replace=False)
        sizes = random.choice(("small", "large"), number)
        if relation == "inside":
            if shapes[1] not in ("circle", "square", "diamond"):
                continue
            sizes[:2] = ("small", "large")
        placed = _place(relation, [str(size) for size in sizes], random)
        if placed is not None:
            break
    things = tuple(
        Thing(str(shape), str(colour), str(size), x, y, radius, float(random.uniform(-0.2, 0.2)))
        for shape, colour, size, (x, y, radius) in zip(shapes, colours, sizes, placed, strict=True)
    )
    return Scene(ground, things, relation)


def _place(
    relation: str | None, sizes: Sequence[str], random: np.random.Generator
) -> list[tuple[float, float, float]] | None:
    """Centres and radii that keep the relation, or ``None`` if this draw does not."""
    radii = [
        float(random.uniform(13, 18) if size == "small" else random.uniform(26, 34))
        for size in sizes
    ]
    if relation == "inside":
        radii[1] = float(random.uniform(36, 48))
        radii[0] = radii[1] * float(random.uniform(0.3, 0.38))
    centres = [
        (float(random.uniform(r + 4, WIDTH - r - 4)), float(random.uniform(r + 4, HEIGHT - r - 4)))
        for r in radii
    ]
    if relation is not None:
        (x, y), near = centres[1], radii[0] + radii[1]
        swing = float(random.uniform(-1, 1))
        gap = float(random.uniform(14, 50))
        if relation == "left of":
            x, y = x - near - gap, y + 0.4 * (near + gap) * swing
        elif relation == "above":
            x, y = x + 0.4 * (near + gap) * swing, y - near - gap
        elif relation == "next to":
            x, y = (
                x - math.copysign(near + 2 + gap / 12, swing),
                y + 6 * float(random.uniform(-1, 1)),
            )
        else:
            x, y = x + 0.1 * radii[1] * swing, y + 0.1 * radii[1] * float(random.uniform(-1, 1))
        centres[0] = x, y
    for i, ((x, y), r) in enumerate(zip(centres, radii, strict=True)):
        if not (r + 2 <= x <= WIDTH - r - 2 and r + 2 <= y <= HEIGHT - r - 2):
            return None
        for j in range(2 if relation else 0, i):
            if math.dist((x, y), centres[j]) < r + radii[j] + 8:
                return None
        if i == 2 and any(math.dist((x, y), centres[j]) < r + radii[j] + 12 for j in (0, 1)):
            return None
    return [(*centre, r) for centre, r in zip(centres, radii, strict=True)]


# ----------------------------------------------------------------------------------------------
# What five people say


def describe(scene: Scene, random: np.random.Generator) -> list[str]:
    """Five different captions of a scene, all of them true."""
    captions: dict[str, None] = {}
    while len(captions) < 5:
        text = _sentence(scene, random)
        captions[text[0].upper() + text[1:] + "."] = None
    return list(captions)


def _sentence(scene: Scene, random: np.random.Generator) -> str:
    def one(*ways: str) -> str:
        return str(random.choice(ways))

    ground = f"on {scene.ground}"
    first, *others = (_phrase(t, random) for t in scene.things)
    if scene.relation is None:
        place = _whereabouts(scene.things[0])
        return one(
            f"{first} {ground}",
            f"{first} lies {ground}",
            f"there is {first} {place} of the picture",
            f"{ground} there is {first}",
            f"{first} is {place}",
            f"a picture of {first} {ground}",
        )
    second = others[0]
    subject, relation, object_ = {
        "left of": [
            (first, one("left of", "to the left of"), second),
            (second, one("right of", "to the right of"), first),
        ],
        "above": [
            (first, one("above", "over"), second),
            (second, one("below", "under"), first),
        ],
        "inside": [(first, "inside", second), (first, "in the middle of", second)],
        "next to": [
            (first, one("next to", "beside"), second),
            (second, one("next to", "beside"), first),
        ],
    }[scene.relation][int(random.integers(2))]  # fmt: skip
    also = ""
    if len(others) > 1 and random.random() < 0.7:
        also = one(f", and {others[1]}", f" with {others[1]} {_whereabouts(scene.things[2])}")
    ways = [
        f"{subject} {relation} {object_}{also}",
        f"{subject} is {relation} {object_}{also}",
        f"{subject} lies {relation} {object_} {ground}{also}",
        f"there is {subject} {relation} {object_}{also}",
        f"{ground} there is {subject} {relation} {object_}{also}",
    ]
    if scene.relation != "inside":
        both = ", ".join([first, *others[:-1]]) + f" and {others[-1]}"
        ways.append(f"{both} {ground}")
    else:
        ways.append(f"{second} with {first} inside it{also}")
    return str(random.choice(ways))


def _phrase(thing: Thing, random: np.random.Generator) -> str:
    words = [thing.colour, thing.shape]
    if random.random() < 0.35:
        words.insert(0, {"large": str(random.choice(("large", "big")))}.get(thing.size, thing.size))
    return ("an " if words[0][0] in "aeiou" else "a ") + " ".join(words)


def _whereabouts(thing: Thing) -> str:
    x, y = thing.x / WIDTH - 0.5, thing.y / HEIGHT - 0.5
    if max(abs(x), abs(y)) < 0.13:
        return "in the middle"
    if abs(x) >= abs(y):
        return "on the left" if x < 0 else "on the right"
    return "at the top" if y < 0 else "at the bottom"


# ----------------------------------------------------------------------------------------------
# How it looks


def paint(scene: Scene, random: np.random.Generator) -> Image.Image:
    """The scene as a picture, RGB, ``WIDTH`` by ``HEIGHT`` pixels."""
    canvas = _ground(scene.ground, random)  # (HEIGHT, WIDTH, 3)
    # What encloses another thing is painted before it.
    for thing in sorted(scene.things, key=lambda t: -t.radius):
        cover = Image.new("L", (WIDTH * _FINE, HEIGHT * _FINE))
        ImageDraw.Draw(cover).polygon(
            [(x * _FINE, y * _FINE) for x, y in thing.outline()], fill=255
        )
        mask = cover.resize((WIDTH, HEIGHT), Image.Resampling.BOX)
        shadow = mask.filter(ImageFilter.GaussianBlur(3.5))
        dark = np.roll(np.asarray(shadow, np.float32) / 255, (4, 3), axis=(0, 1))[..., None]
        canvas = canvas * (1 - 0.45 * dark)
        amount = np.asarray(mask, np.float32)[..., None] / 255
        canvas = canvas * (1 - amount) + _surface(thing, random) * amount
    light = 0.88 + 0.24 * _noise(random, 2)[..., None]  # the light is not the same everywhere
    grain = random.normal(0, 2.5, canvas.shape).astype(np.float32)
    return Image.fromarray(np.clip(canvas * light + grain, 0, 255).astype(np.uint8))


def _surface(thing: Thing, random: np.random.Generator) -> Pixels:
    """The colour of a thing, lit from the upper left."""
    rows, columns = _grid()
    slope = ((columns - thing.x) + (rows - thing.y)) / thing.radius
    light = np.clip(1.06 - 0.16 * slope, 0.7, 1.3) + 0.08 * (_noise(random, 24) - 0.5)
    colour = np.array(COLOURS[thing.colour]) + random.uniform(-14, 14, 3)
    surface: Pixels = (colour * light[..., None]).astype(np.float32)
    return surface


def _ground(name: str, random: np.random.Generator) -> Pixels:
    """The texture of a ground, (HEIGHT, WIDTH, 3), 0 to 255."""
    rows, columns = _grid()
    coarse, fine = _noise(random, 6), _noise(random, 60)
    if name == "the grass":
        blades = _noise(random, 90, 22)
        base, amount = (84, 132, 52), 0.45 * blades + 0.25 * coarse + 0.2 * fine
    elif name == "the sand":
        ripples = 0.5 + 0.5 * np.sin(rows * random.uniform(0.25, 0.4) + 9 * coarse + columns * 0.03)
        base, amount = (222, 196, 146), 0.12 * ripples + 0.22 * fine + 0.2 * coarse
    elif name == "the water":
        waves = 0.5 + 0.5 * np.sin(rows * random.uniform(0.4, 0.6) + 14 * _noise(random, 5, 12))
        base, amount = (64, 128, 176), 0.3 * waves + 0.3 * coarse + 0.1 * fine
    elif name == "the snow":
        base, amount = (236, 240, 247), 0.1 * coarse + 0.08 * fine
    elif name == "a wooden floor":
        plank = np.floor(rows / random.uniform(18, 26))
        seam = (np.diff(plank, axis=0, prepend=plank[:1]) != 0).astype(np.float32)
        streaks = _noise(random, 3, 70)
        base, amount = (150, 104, 62), 0.35 * streaks + 0.12 * (plank % 2) + 0.15 * fine
        amount = amount - 0.45 * seam
    elif name == "a brick wall":
        high, wide = 14.0, 34.0
        course = np.floor(rows / high)
        shifted = columns + (course % 2) * wide / 2
        brick = np.sin(course * 12.9 + np.floor(shifted / wide) * 78.2) * 0.5 + 0.5
        mortar = (rows % high < 2) | (shifted % wide < 2)
        base, amount = (148, 74, 58), 0.25 * brick + 0.2 * fine + 0.1 * coarse
        texture: Pixels = _tinted(base, amount)
        texture[mortar] = 176 + 24 * (fine[mortar][:, None] - 0.5)
        return texture
    else:
        stones = _noise(random, 34)
        base, amount = (134, 134, 136), 0.55 * stones + 0.3 * fine
    return _tinted(base, amount)


def _tinted(base: tuple[int, int, int], amount: Pixels) -> Pixels:
    """A colour made brighter and darker by ``amount``, whose mean becomes 1."""
    light = 1 + amount - amount.mean()
    tinted: Pixels = (np.array(base, np.float32) * light[..., None]).astype(np.float32)
    return tinted


def _noise(random: np.random.Generator, across: int, down: int | None = None) -> Pixels:
    """Smooth noise, (HEIGHT, WIDTH), 0 to 1, with this many hills across and down."""
    down = down or max(2, across * HEIGHT // WIDTH)
    small = Image.fromarray((random.random((down, across)) * 255).astype(np.uint8))
    large = small.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    return np.asarray(large, np.float32) / 255


def _grid() -> tuple[Pixels, Pixels]:
    """Row and column of each pixel's centre, both (HEIGHT, WIDTH)."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(np.float32) + 0.5
    return rows, columns


def _unit_outline(shape: str) -> list[tuple[float, float]]:
    """The corners of a shape around the origin, within a circle of radius 1; y grows downwards."""

    def around(number: int, start: float = 0.0) -> list[tuple[float, float]]:
        angles = (start + 2 * math.pi * i / number for i in range(number))
        return [(math.cos(a), math.sin(a)) for a in angles]

    if shape == "circle":
        return around(64)
    if shape == "square":
        return [(u * 1.2, v * 1.2) for u, v in around(4, math.pi / 4)]
    if shape == "diamond":
        return [(u * 0.78, v * 1.05) for u, v in around(4)]
    if shape == "triangle":
        return around(3, -math.pi / 2)
    if shape == "star":
        points = around(10, -math.pi / 2)
        return [(u, v) if i % 2 == 0 else (0.42 * u, 0.42 * v) for i, (u, v) in enumerate(points)]
    if shape == "cross":
        a = 0.33
        return [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a),
                (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a), (-a, -a)]  # fmt: skip
    curve = (2 * math.pi * i / 64 for i in range(64))  # the heart
    return [
        (
            16 * math.sin(t) ** 3 / 17,
            -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)) / 16,
        )
        for t in curve
    ]
