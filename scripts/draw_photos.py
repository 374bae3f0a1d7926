"""Draw the photos that ship with the package, for the demo: no one's photos, so anyone's to use.

    python scripts/draw_photos.py [FOLDER]

They are of what Flickr's photos are mostly of: a dog on grass, a person in snow, a surfer, a child
on a beach.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

import regard

SIZE = (480, 360)
SCALE = 2
"""Drawn larger, then reduced, so that edges are soft."""

Colour = tuple[int, int, int]


class Canvas:
    """A picture that is drawn on in shapes with a texture."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.size = SIZE[0] * SCALE, SIZE[1] * SCALE
        self.image = Image.new("RGB", self.size)

    def texture(self, low: Colour, high: Colour, grain: float, stretch: float = 1.0) -> Image.Image:
        """Noise of several sizes between two colours."""
        width, height = self.size
        total = np.zeros((height, width), np.float32)
        for octave in range(6):
            step = grain * 2**octave
            shape = max(2, int(height / step * stretch)), max(2, int(width / step))
            noise = Image.fromarray(self.rng.random(shape, np.float32))
            total += np.asarray(noise.resize(self.size, Image.Resampling.BICUBIC)) * 2**octave / 63
        total = (total - total.min()) / (total.max() - total.min())
        mixed = np.array(low) + (np.array(high) - np.array(low)) * total[..., None]
        return Image.fromarray(mixed.astype(np.uint8))

    def gradient(self, top: Colour, bottom: Colour) -> Image.Image:
        """From one colour down to another."""
        rows = np.linspace(0, 1, self.size[1])[:, None, None]
        mixed = np.array(top) + (np.array(bottom) - np.array(top)) * rows
        return Image.fromarray(np.broadcast_to(mixed, (*self.size[::-1], 3)).astype(np.uint8))

    def fill(
        self, picture: Image.Image, shape: Callable[[ImageDraw.ImageDraw], None], soft: float = 1.5
    ) -> None:
        """Lay a picture where a shape is."""
        mask = Image.new("L", self.size)
        shape(ImageDraw.Draw(mask))
        self.image.paste(picture, mask=mask.filter(ImageFilter.GaussianBlur(soft * SCALE)))

    def body(
        self,
        low: Colour,
        high: Colour,
        shape: Callable[[ImageDraw.ImageDraw], None],
        grain: float = 5,
    ) -> None:
        """A shape with a texture, lighter above and darker below."""
        mask = Image.new("L", self.size)
        shape(ImageDraw.Draw(mask))
        shade = ImageChops.offset(mask.filter(ImageFilter.GaussianBlur(12 * SCALE)), 0, -9 * SCALE)
        dark = Image.fromarray((np.asarray(shade) * 0.35 + 160).clip(0, 255).astype(np.uint8))
        lit = ImageChops.multiply(self.texture(low, high, grain), Image.merge("RGB", [dark] * 3))
        self.image.paste(lit, mask=mask.filter(ImageFilter.GaussianBlur(0.8 * SCALE)))

    def shadow(self, box: tuple[float, float, float, float], strength: int = 110) -> None:
        """A soft dark ellipse."""
        mask = Image.new("L", self.size)
        ImageDraw.Draw(mask).ellipse(scaled(*box), fill=strength)
        self.image.paste((20, 25, 20), mask=mask.filter(ImageFilter.GaussianBlur(6 * SCALE)))

    def save(self, file: Path) -> None:
        """Reduced, with the grain of a sensor."""
        small = np.asarray(self.image.resize(SIZE, Image.Resampling.LANCZOS)).astype(np.float32)
        grain = self.rng.normal(0, 4, small.shape[:2])[..., None]
        Image.fromarray((small + grain).clip(0, 255).astype(np.uint8)).save(file, quality=88)


def scaled(*numbers: float) -> list[float]:
    """Numbers in pixels of the finished picture."""
    return [n * SCALE for n in numbers]


def ellipses(*boxes: tuple[float, float, float, float]) -> Callable[[ImageDraw.ImageDraw], None]:
    """A shape of ellipses."""

    def draw(on: ImageDraw.ImageDraw) -> None:
        for box in boxes:
            on.ellipse(scaled(*box), fill=255)

    return draw


def polygon(*points: tuple[float, float]) -> Callable[[ImageDraw.ImageDraw], None]:
    """A shape of straight sides."""
    return lambda on: on.polygon([(x * SCALE, y * SCALE) for x, y in points], fill=255)


def limbs(
    *lines: tuple[float, float, float, float], width: float
) -> Callable[[ImageDraw.ImageDraw], None]:
    """A shape of thick lines with round ends."""

    def draw(on: ImageDraw.ImageDraw) -> None:
        for x0, y0, x1, y1 in lines:
            on.line(scaled(x0, y0, x1, y1), fill=255, width=int(width * SCALE))
            for x, y in ((x0, y0), (x1, y1)):
                on.ellipse(
                    scaled(x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255
                )

    return draw


def dog_on_grass(file: Path) -> None:
    """A brown dog runs to the right, trees behind."""
    c = Canvas(1)
    c.image.paste(c.texture((58, 120, 40), (120, 178, 70), 2.5, 0.5))
    c.fill(
        c.texture((22, 52, 26), (70, 104, 58), 8),
        polygon((0, 0), (480, 0), (480, 120), (0, 132)),
        6,
    )
    c.shadow((120, 262, 375, 302))
    fur = (118, 74, 34), (172, 116, 62)
    c.body(
        *fur,
        limbs(
            (170, 215, 140, 275),
            (190, 220, 176, 282),
            (300, 215, 330, 278),
            (318, 208, 356, 262),
            width=17,
        ),
    )
    c.body(*fur, ellipses((150, 160, 335, 238), (272, 142, 340, 232)))
    c.body(*fur, limbs((158, 178, 110, 142), width=12))
    c.body(*fur, limbs((318, 170, 345, 146), width=40))
    c.body(*fur, ellipses((322, 112, 386, 170), (356, 132, 410, 162)))
    c.body((70, 40, 20), (100, 62, 34), ellipses((326, 116, 350, 166)))
    c.body((20, 16, 16), (40, 34, 34), ellipses((400, 136, 413, 148), (366, 126, 374, 134)))
    c.body((190, 90, 96), (214, 116, 120), ellipses((384, 156, 398, 178)))
    c.save(file)


def skier(file: Path) -> None:
    """A person in a red jacket stands in the snow before mountains."""
    c = Canvas(2)
    c.image.paste(c.gradient((70, 130, 205), (178, 208, 236)))
    c.fill(
        c.texture((120, 134, 158), (226, 232, 242), 6),
        polygon(
            (0, 210),
            (70, 110),
            (130, 165),
            (225, 70),
            (310, 160),
            (385, 105),
            (480, 190),
            (480, 260),
            (0, 260),
        ),
        1,
    )
    c.fill(
        c.texture((222, 228, 238), (252, 253, 255), 10, 0.5),
        polygon((0, 208), (180, 226), (480, 196), (480, 360), (0, 360)),
        2,
    )
    c.shadow((205, 318, 330, 338), 70)
    c.body((28, 32, 48), (54, 60, 80), limbs((232, 236, 226, 320), (254, 236, 262, 320), width=21))
    c.body((170, 26, 30), (212, 50, 50), polygon((216, 158), (270, 158), (278, 246), (210, 246)))
    c.body(
        (170, 26, 30), (212, 50, 50), limbs((222, 168, 190, 222), (264, 168, 296, 222), width=18)
    )
    c.body((196, 150, 124), (224, 180, 152), ellipses((226, 116, 260, 160)))
    c.body((28, 60, 130), (50, 90, 170), ellipses((223, 108, 263, 138)))
    c.body((20, 20, 24), (60, 60, 66), ellipses((228, 132, 258, 143)))
    c.body((40, 40, 46), (80, 80, 86), limbs((190, 222, 176, 330), (296, 222, 312, 330), width=3))
    c.body(
        (220, 180, 40), (244, 208, 70), limbs((196, 328, 250, 324), (246, 330, 300, 324), width=6)
    )
    c.save(file)


def surfer(file: Path) -> None:
    """A surfer on a wave."""
    c = Canvas(3)
    c.image.paste(c.texture((18, 82, 118), (70, 150, 178), 5, 2.4))
    c.fill(
        c.texture((150, 200, 214), (252, 254, 255), 3),
        polygon(
            (0, 96),
            (130, 70),
            (250, 92),
            (330, 150),
            (480, 170),
            (480, 205),
            (330, 196),
            (220, 146),
            (0, 150),
        ),
        9,
    )
    c.fill(
        c.texture((16, 96, 120), (60, 158, 170), 6, 2),
        polygon((0, 150), (220, 146), (330, 196), (480, 205), (480, 290), (0, 300)),
        6,
    )
    c.fill(
        c.texture((190, 222, 230), (255, 255, 255), 3),
        polygon((0, 292), (200, 270), (480, 284), (480, 322), (0, 330)),
        10,
    )
    c.body((226, 222, 206), (250, 248, 240), ellipses((150, 262, 338, 284)))
    c.body((18, 20, 26), (44, 46, 56), limbs((222, 214, 200, 266), (250, 216, 276, 264), width=17))
    c.body((18, 20, 26), (44, 46, 56), limbs((238, 164, 238, 216), width=32))
    c.body((18, 20, 26), (44, 46, 56), limbs((230, 168, 172, 186), (248, 168, 304, 150), width=12))
    c.body(
        (190, 140, 112),
        (216, 168, 140),
        ellipses((226, 122, 254, 158), (162, 180, 176, 192), (298, 143, 312, 156)),
    )
    c.body((50, 34, 22), (84, 60, 40), ellipses((224, 118, 256, 138)))
    c.save(file)


def beach(file: Path) -> None:
    """A child in a blue shirt plays on the sand by the sea."""
    c = Canvas(4)
    c.image.paste(c.gradient((120, 176, 226), (206, 226, 240)))
    c.fill(
        c.texture((38, 104, 150), (104, 164, 192), 4, 3),
        polygon((0, 130), (480, 126), (480, 236), (0, 236)),
        1,
    )
    c.fill(
        c.texture((214, 230, 236), (255, 255, 255), 3, 2),
        polygon((0, 206), (480, 196), (480, 226), (0, 234)),
        5,
    )
    c.fill(
        c.texture((176, 148, 108), (222, 198, 156), 2),
        polygon((0, 224), (480, 214), (480, 360), (0, 360)),
        3,
    )
    c.shadow((170, 316, 330, 340), 90)
    skin = (200, 150, 120), (228, 182, 152)
    c.body(*skin, limbs((226, 262, 218, 326), (252, 262, 262, 326), width=17))
    c.body(
        (200, 190, 60), (226, 214, 90), limbs((228, 250, 224, 280), (250, 250, 256, 280), width=24)
    )
    c.body((40, 90, 180), (76, 130, 214), polygon((214, 182), (264, 182), (268, 258), (210, 258)))
    c.body(*skin, limbs((218, 190, 182, 236), (260, 190, 300, 228), width=12))
    c.body(*skin, ellipses((220, 136, 260, 184)))
    c.body((150, 110, 50), (196, 156, 86), ellipses((217, 130, 263, 156)))
    c.body((190, 30, 34), (224, 60, 60), polygon((290, 226), (322, 226), (316, 262), (296, 262)))
    c.save(file)


def main() -> None:
    """Draw all of them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    usual = Path(regard.__file__).parent / "box" / "photos"
    parser.add_argument("folder", type=Path, nargs="?", default=usual)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in (
        ("dog.jpg", dog_on_grass), ("snow.jpg", skier), ("surfer.jpg", surfer), ("beach.jpg", beach)
    ):  # fmt: skip
        draw(folder / name)


if __name__ == "__main__":
    main()
