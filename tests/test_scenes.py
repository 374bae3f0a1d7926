"""Drawn scenes: deterministic, true, and what they say is where the boxes are."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

from regard.data.dataset import read_dataset
from regard.data.scenes import COLOURS, HEIGHT, RELATIONS, SHAPES, WIDTH, draw_scenes
from regard.errors import DataError


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    out = tmp_path_factory.mktemp("drawn") / "scenes"
    draw_scenes(out, count=60, seed=3)
    return out


def rows(folder):
    return [json.loads(line) for line in (folder / "scenes.jsonl").read_text().splitlines()]


def test_the_same_seed_draws_the_same_and_a_scene_does_not_depend_on_the_count(scenes, tmp_path):
    draw_scenes(tmp_path / "again", count=12, seed=3)
    assert rows(tmp_path / "again") == rows(scenes)[:12]
    for i in range(12):
        name = f"images/{i:05}.jpg"
        assert (tmp_path / "again" / name).read_bytes() == (scenes / name).read_bytes()
    draw_scenes(tmp_path / "other", count=12, seed=4)
    assert rows(tmp_path / "other") != rows(scenes)[:12]


def test_it_is_a_data_set_with_boxes(scenes):
    dataset = read_dataset(scenes)
    assert dataset.layout == "scenes"
    assert [len(dataset.split(s)) for s in ("train", "val", "test")] == [48, 6, 6]
    for photo in dataset.photos:
        assert len(set(photo.captions)) == 5
        assert photo.boxes
        for name, (left, top, right, bottom) in photo.boxes:
            assert name in SHAPES
            assert 0 <= left < right <= WIDTH
            assert 0 <= top < bottom <= HEIGHT


def test_there_is_variety(scenes):
    drawn = rows(scenes)
    objects = [o for row in drawn for o in row["objects"]]
    assert {row["relation"] for row in drawn} == {None, *RELATIONS}
    assert {o["name"] for o in objects} == set(SHAPES)
    assert {o["colour"] for o in objects} == set(COLOURS)
    assert {o["size"] for o in objects} == {"small", "large"}
    assert {len(row["objects"]) for row in drawn} == {1, 2, 3}
    assert len({row["ground"] for row in drawn}) > 5


def middle(box):
    left, top, right, bottom = box
    return (left + right) / 2, (top + bottom) / 2


def test_the_relations_hold(scenes):
    for row in rows(scenes):
        if row["relation"] is None:
            continue
        a, b = row["objects"][0]["box"], row["objects"][1]["box"]
        (ax, ay), (bx, by) = middle(a), middle(b)
        if row["relation"] == "left of":
            assert ax < bx
            assert abs(ax - bx) > abs(ay - by)
        elif row["relation"] == "above":
            assert ay < by
            assert abs(ay - by) > abs(ax - bx)
        elif row["relation"] == "inside":
            assert b[0] < a[0] < a[2] < b[2]
            assert b[1] < a[1] < a[3] < b[3]
        else:
            assert abs(ay - by) < 15
            assert abs(ax - bx) > abs(ay - by)


def test_captions_speak_of_what_is_there(scenes):
    for row in rows(scenes):
        there = {(o["colour"], o["name"]) for o in row["objects"]}
        sizes = {
            o["name"]: {"small": {"small"}, "large": {"large", "big"}}[o["size"]]
            for o in row["objects"]
        }
        for caption in row["captions"]:
            said = re.findall(
                rf"(?:(small|large|big) )?({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})", caption
            )
            assert said
            assert {(colour, shape) for _, colour, shape in said} <= there
            assert all(not size or size in sizes[shape] for size, _, shape in said)


def test_the_colours_are_where_the_boxes_are(scenes):
    for row in rows(scenes):
        if row["relation"] == "inside":
            continue
        pixels = np.asarray(Image.open(scenes / row["image"]), dtype=float)
        for thing in row["objects"]:
            x, y = (int(v) for v in middle(thing["box"]))
            seen = pixels[y - 2 : y + 3, x - 2 : x + 3].mean((0, 1))
            distances = {c: np.abs(seen - rgb).sum() for c, rgb in COLOURS.items()}
            assert distances[thing["colour"]] < 130, (row["image"], thing, seen)


def test_a_drawn_set_is_kept_and_another_is_not_overwritten(scenes, tmp_path):
    before = (scenes / "images" / "00000.jpg").stat().st_mtime_ns
    draw_scenes(scenes, count=60, seed=3)
    assert (scenes / "images" / "00000.jpg").stat().st_mtime_ns == before
    with pytest.raises(DataError, match="other scenes"):
        draw_scenes(scenes, count=61, seed=3)
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        draw_scenes(tmp_path, count=2, seed=0)
    with pytest.raises(DataError, match="is a file"):
        draw_scenes(tmp_path / "letter.txt", count=2, seed=0)


def test_an_interrupted_drawing_is_finished(tmp_path):
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_scenes(tmp_path / "s", count=10, seed=1, on_progress=stop)
    assert not (tmp_path / "s" / "scenes.jsonl").exists()
    draw_scenes(tmp_path / "s", count=10, seed=1)
    assert len(read_dataset(tmp_path / "s").photos) == 10
