"""Figures: what they show is checked on their pixels."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from regard.errors import RegardError
from regard.plots import gallery_figure, gaze_figure, loss_figure

PHOTO = Image.new("RGB", (240, 160), (200, 200, 200))
WHOLE = (0.0, 0.0, 240.0, 160.0)


def bright(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"), dtype=float)


def corners(file) -> np.ndarray:
    """Mean light of the four quarters of the second panel of a figure with two panels."""
    pixels = bright(Image.open(file))
    pixels = pixels[:, pixels.shape[1] // 2 + 12 : -25]
    rows = np.where((pixels < 245).mean(1) > 0.9)[0]
    panel = pixels[rows[0] + 3 : rows[-1] - 3]
    h, w = panel.shape[0] // 2, panel.shape[1] // 2
    return np.array(
        [panel[:h, :w].mean(), panel[:h, w:].mean(), panel[h:, :w].mean(), panel[h:, w:].mean()]
    )


@pytest.mark.parametrize("corner", range(4))
def test_the_place_looked_at_is_lit(corner, tmp_path):
    maps = np.zeros((1, 2, 2))
    maps.reshape(-1)[corner] = 1
    gaze_figure(PHOTO, ["dog"], maps, WHOLE, tmp_path / "g.png")
    light = corners(tmp_path / "g.png")
    assert light.argmax() == corner
    assert light[corner] > 1.25 * np.delete(light, corner).max()


def test_what_the_encoder_did_not_see_is_dark(tmp_path):
    # Only the right half was seen: all the attention there is on it.
    gaze_figure(
        PHOTO, ["dog"], np.full((1, 2, 2), 0.25), (120.0, 0.0, 240.0, 160.0), tmp_path / "g.png"
    )
    light = corners(tmp_path / "g.png")
    assert light[[1, 3]].min() > 1.25 * light[[0, 2]].max()


@pytest.mark.parametrize("size", [(240, 160), (160, 240), (1200, 80), (60, 900), (5, 5)])
@pytest.mark.parametrize("count", [1, 6, 25])
def test_any_shape_and_length_fits(size, count, tmp_path):
    maps = np.random.default_rng(0).random((count, 7, 7))
    words = [f"word{i}" for i in range(count - 1)] + ["incomprehensibilities"]
    photo = Image.new("RGB", size, (90, 120, 200))
    out = tmp_path / "folder" / "g.png"
    gaze_figure(
        photo, words, maps, (0, 0, *map(float, size)), out, caption="$x$ " + " ".join(words)
    )
    with Image.open(out) as figure:
        assert 100 < figure.width < 4000
        assert 100 < figure.height < 12000


@pytest.mark.parametrize("ending", [".png", ".svg", ".pdf"])
def test_formats(ending, tmp_path):
    out = tmp_path / f"g{ending}"
    gaze_figure(PHOTO, ["dog"], np.ones((1, 7, 7)) / 49, WHOLE, out)
    start = {".png": b"\x89PNG", ".svg": b"<?xml", ".pdf": b"%PDF"}[ending]
    assert out.read_bytes().startswith(start)
    assert [f.name for f in tmp_path.iterdir()] == [out.name]


def test_wrong_input_says_so(tmp_path):
    with pytest.raises(ValueError, match="one map"):
        gaze_figure(PHOTO, ["a", "dog"], np.ones((1, 7, 7)), WHOLE, tmp_path / "g.png")
    with pytest.raises(RegardError, match=r"\.png"):
        gaze_figure(PHOTO, ["dog"], np.ones((1, 7, 7)), WHOLE, tmp_path / "g.doc")


def steps(count):
    return [{"iteration": i, "loss": 9 / (i + 1), "learning_rate": 1e-3} for i in range(count)]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_losses_with_gaps_are_drawn(count, tmp_path):
    epochs = [
        {"epoch": 0, "train_loss": 4.0, "val_loss": float("nan")},
        {"epoch": 1, "train_loss": 3.0, "CIDEr": 0.4},
    ]
    loss_figure(steps(count), epochs[: count and 2], tmp_path / "loss.png")
    with Image.open(tmp_path / "loss.png") as figure:
        assert figure.width > figure.height > 300


def test_the_gallery_grows_with_its_photos(tmp_path):
    row = (PHOTO, "a dog", ("A dog runs .", "The dog ."))
    heights = []
    for count in (1, 3):
        gallery_figure([row] * count, tmp_path / "gallery.png")
        with Image.open(tmp_path / "gallery.png") as figure:
            heights.append(figure.height)
    assert heights[1] > 2.5 * heights[0]
    gallery_figure([(PHOTO, "", ())], tmp_path / "gallery.png")


def test_threads_draw_beside_each_other(tmp_path):
    def draw(i: int) -> None:
        maps = np.zeros((1, 2, 2))
        maps.reshape(-1)[i % 4] = 1
        gaze_figure(PHOTO, ["dog"], maps, WHOLE, tmp_path / f"{i}.png")

    threads = [threading.Thread(target=draw, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(8):
        assert corners(tmp_path / f"{i}.png").argmax() == i % 4
