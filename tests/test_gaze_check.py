"""Does the gaze lie where the thing is: on the photo's own pixels, for the word that names it?"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional

from regard.captioner import Captioner
from regard.checkpoint import Model
from regard.config import make_config
from regard.data.dataset import Dataset, Photo, read_dataset
from regard.data.features import build_features
from regard.data.layouts import NamedBox
from regard.data.scenes import draw_scenes
from regard.describe import Decoding
from regard.errors import DataError
from regard.gaze_check import GazeCheck, Thing, check_gaze, render, things_named
from regard.images import Preparation, open_photo, overlay_map
from regard.metrics.pointing import peak, point
from regard.models.encoders import Encoder
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.text.subwords import Subwords
from regard.text.vocabulary import Vocabulary
from test_images import turned

GREEDY = Decoding(beam=1)


class MeanColours(nn.Module):
    """A backbone that sees nothing but the mean colour of each region."""

    stride, width = 16, 3
    architecture = identity = "colours"

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def grid(self, height: int, width: int) -> tuple[int, int]:
        return height // self.stride, width // self.stride

    def forward(self, images: Tensor) -> Tensor:
        return self.scale * functional.avg_pool2d(images, self.stride)  # (B, 3, H, W)


def colour_encoder(resize: Any = "squash") -> Encoder:
    preparation = Preparation((224, 224), resize)
    return Encoder(id="colours", backbone=MeanColours(), preparation=preparation, frozen=True)  # type: ignore[arg-type]


def lamp_finder(resize: Any = "squash") -> Model:
    """A captioner that says "lamp" and, by its weights, must look at the brightest region."""
    words = Vocabulary(["lamp", "table"])
    decoder = LstmDecoder(
        vocabulary_size=len(words), feature_width=3,
        embedding_width=2, hidden_width=4, attention_width=1,
    )  # fmt: skip
    with torch.no_grad():
        decoder.attention.of_region.weight.fill_(1 / 3)  # brightness
        decoder.attention.of_region.bias.zero_()
        decoder.attention.of_hidden.weight.zero_()
        decoder.attention.score.weight.fill_(30)
        decoder.output.weight.zero_()
        decoder.output.bias[words.id("lamp")] = 5
        decoder.output.bias[words.end] = 9  # never first
    return Model(make_config(), words, colour_encoder(resize), decoder.eval(), "by hand", {})


def dark_room(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """A dark photo with a lamp."""
    photo = Image.new("RGB", size, (12, 10, 14))
    photo.paste((250, 245, 235), box)
    return photo


PLANTED = {
    # Two regions wide and high and a bit, within the crop, and off every axis of symmetry.
    (500, 200): ((165, 130, 245, 170), (255, 25, 335, 65)),
    (120, 400): ((15, 141, 45, 199), (75, 202, 105, 260)),
}


@pytest.mark.parametrize("resize", ["squash", "crop"])
@pytest.mark.parametrize("size", PLANTED)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_gaze_lies_on_the_planted_thing(orientation, size, resize):
    """File, orientation, preparation, regions, attention, caption, map: the peak is in the box.

    Would a side be swapped, a turn missed, or the crop's place forgotten, the peak would be
    elsewhere: no box overlaps its mirror images.
    """
    captioner = Captioner(lamp_finder(resize), device="cpu")
    for box in PLANTED[size]:
        found = captioner.caption(turned(dark_room(size, box), orientation))
        assert found.words == ("lamp",)
        gaze = found.gaze(0)
        assert gaze.shape == size[::-1]
        row, column = np.unravel_index(gaze.argmax(), gaze.shape)
        left, top, right, bottom = box
        assert left <= column < right
        assert top <= row < bottom
        assert gaze[top:bottom, left:right].sum() > 0.6 * gaze.sum()


# What a word means

RED = Thing("star", frozenset({"red", "small"}), ((0, 0, 9, 9),))
BLUE = Thing("star", frozenset({"blue"}), ((50, 0, 59, 9),))
HEART = Thing("heart", frozenset({"red"}), ((20, 20, 30, 30),))


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a red star and a blue star", {2: RED.boxes, 6: BLUE.boxes}),
        ("a blue star above a small red star", {2: BLUE.boxes, 7: RED.boxes}),
        ("a star", {1: RED.boxes + BLUE.boxes}),  # either is right
        ("a green star", {2: RED.boxes + BLUE.boxes}),
        ("a red heart and a star", {2: HEART.boxes, 5: RED.boxes + BLUE.boxes}),  # not the red one
        ("a heart", {1: HEART.boxes}),
        ("a red circle", {}),
    ],
)
def test_two_things_of_one_name_are_told_apart_by_what_is_said_before(caption, expected):
    assert things_named(caption.split(), [RED, BLUE, HEART]) == expected


def test_one_thing_under_several_names_has_its_boxes_once():
    names = [
        Thing("man", frozenset({"old"}), ((1, 1, 5, 5),)),
        Thing("man", frozenset({"tall", "old"}), ((1, 1, 5, 5),)),
        Thing("guy", frozenset(), ((1, 1, 5, 5),)),
        Thing("sky", frozenset(), ()),
    ]
    named = things_named("an old man under the sky".split(), names)
    assert named == {2: ((1, 1, 5, 5),), 5: ()}


# A split


def photo(folder: Path, name: str, lamp: tuple[int, int, int, int], *boxes: Any) -> Photo:
    dark_room((160, 120), lamp).save(folder / name)
    captions = ("A table under a lamp .", "There is a lamp .")
    return Photo(name, folder / name, captions, "test", tuple(NamedBox(*b) for b in boxes))


@pytest.fixture
def rooms(tmp_path: Path) -> Dataset:
    lamp, elsewhere, table = (20, 30, 60, 60), (100, 70, 150, 110), (60, 80, 160, 120)
    photos = (
        photo(tmp_path, "100_a.png", lamp, ("lamp", lamp), ("table", table)),
        photo(tmp_path, "200_b.png", lamp, ("lamp", elsewhere)),
        photo(tmp_path, "300_c.png", lamp, ("table", table)),
        photo(tmp_path, "400_d.png", lamp),
    )
    return Dataset("rooms", "by hand", tmp_path, photos, (), "by hand")


def check(dataset: Dataset, model: Model | None = None, **options: Any) -> GazeCheck:
    options.setdefault("cache", dataset.root / "cache")
    return check_gaze(dataset, "test", model or lamp_finder(), GREEDY, **options)


def test_what_is_judged_and_what_is_only_counted(rooms):
    found = check(rooms)
    assert found.counts == {
        "photos": 3, "photos without": 1, "captions": 3, "judged": 2, "no box": 0, "not there": 1,
    }  # fmt: skip
    assert [(look.photo, look.word, look.pointing.hit) for look in found.looks] == [
        ("100_a.png", "lamp", 1.0),
        ("200_b.png", "lamp", 0.0),
    ]
    assert found.measures["hit"].mean == 0.5
    x, y = found.looks[0].peak
    assert 20 <= x < 60
    assert 30 <= y < 60
    assert found.looks[0].pointing.chance == pytest.approx(40 * 30 / (160 * 120))


def test_peoples_captions_can_be_read_to_it(rooms):
    found = check(rooms, forced=True)
    # table, lamp, lamp; lamp, lamp; table: and the lamps of the photo that has none are not there.
    assert found.counts["captions"] == 6
    assert found.counts["judged"] == 3 + 2 + 1
    assert found.counts["not there"] == 1 + 2
    assert found.by_word["lamp"][0] == 4
    assert found.by_word["table"][1]["hit"].mean == 0  # it always looks at the lamp


def test_reading_its_own_captions_to_it_gives_the_maps_it_said_them_with(tmp_path):
    """Were the maps one word late or early, or the captions of a photo mixed, they would differ."""
    draw_scenes(tmp_path / "scenes", count=30, seed=2)
    words = Vocabulary("a red blue star heart on sand".split())
    torch.manual_seed(1)
    decoder = LstmDecoder(
        vocabulary_size=len(words), feature_width=3,
        embedding_width=8, hidden_width=16, attention_width=8,
    ).eval()  # fmt: skip
    with torch.no_grad():  # decided, so that it says and looks at something else each time
        decoder.output.weight.mul_(60)
        decoder.attention.of_hidden.weight.mul_(10)
        decoder.attention.score.weight.mul_(10)
    config = make_config(settings=["train.precision=float32"])  # at once = step by step, closely
    model = Model(config, words, colour_encoder(), decoder, "random", {})
    drawn = read_dataset(tmp_path / "scenes").split("test")
    captioner = Captioner(model, device="cpu")
    decoding = Decoding(beam=1, max_length=7)
    boxes = tuple(NamedBox(word, (20.0, 30.0, 90.0, 80.0)) for word in words.words)
    photos = tuple(
        Photo(p.id, p.path, (captioner.caption(p.path, decoding).text,), "test", boxes)
        for p in drawn
    )
    dataset = Dataset("own", "by hand", tmp_path, photos, (), "by hand")
    said, read = (
        check_gaze(dataset, "test", model, decoding, cache=tmp_path / "cache", forced=forced)
        for forced in (False, True)
    )
    assert len({look.caption for look in said.looks}) > 1
    assert len({look.peak for look in said.looks}) > 5
    assert [(x.photo, x.caption, x.position, x.peak) for x in said.looks] == [
        (x.photo, x.caption, x.position, x.peak) for x in read.looks
    ]
    np.testing.assert_allclose(
        [x.pointing for x in said.looks], [x.pointing for x in read.looks], atol=1e-4
    )


def test_a_word_of_several_pieces_looks_where_they_look_on_average(tmp_path):
    draw_scenes(tmp_path / "scenes", count=20, seed=5)
    drawn = read_dataset(tmp_path / "scenes").split("test")
    pieces = Subwords.from_captions([["a", "lamp", "a", "shade"]] * 9, size=275)
    torch.manual_seed(2)
    decoder = TransformerDecoder(
        vocabulary_size=len(pieces), feature_width=3, embedding_width=8, hidden_width=8,
        layers=2, heads=2, feed_forward_width=8,
    ).eval()  # fmt: skip
    with torch.no_grad():
        decoder.layers[-1].query.weight.mul_(30)  # each piece looks firmly, and elsewhere
    encoder = colour_encoder()
    model = Model(make_config(), pieces, encoder, decoder, "random", {})
    box = NamedBox("lampshades", (20.0, 30.0, 90.0, 80.0))
    photos = tuple(Photo(p.id, p.path, ("A lampshades .",), "test", (box,)) for p in drawn)
    dataset = Dataset("own", "by hand", tmp_path, photos, (), "by hand")
    found = check_gaze(dataset, "test", model, GREEDY, cache=tmp_path / "cache", forced=True)
    (a,), several = pieces.pieces(["a", "lampshades"])
    assert len(several) > 2
    said = torch.tensor([[[pieces.start, a, *several]]])[..., :-1]
    for photo, look in zip(sorted(photos, key=lambda p: p.id), found.looks, strict=True):
        image = open_photo(photo.path)
        store = build_features([photo.path], encoder, tmp_path / "cache")
        regions = torch.from_numpy(store.read([photo.path])).float()
        with torch.inference_mode():
            looked = decoder.read(regions, said).attention[0, 0, 1:]  # (pieces, L)
        weights = looked.mean(0).numpy().reshape(encoder.grid)
        placement = encoder.preparation.placement(*image.size)
        laid = overlay_map(weights, image.size, placement)
        # Alone and in a batch differ in the last bits: of two pixels as bright, one or the other.
        np.testing.assert_allclose(look.peak, peak(laid), atol=2)
        expected = point(weights, laid, look.boxes, placement)
        assert look.pointing.mass == pytest.approx(expected.mass, rel=1e-3)
        assert (look.word, look.position) == ("lampshades", 1)


def test_the_drawn_scenes_are_judged_by_their_shapes(tmp_path):
    draw_scenes(tmp_path / "scenes", count=40, seed=5)
    dataset = read_dataset(tmp_path / "scenes")
    found = check(dataset, forced=True)
    named = sum(
        1
        for p in dataset.split("test")
        for c in p.captions
        for word in c.strip(".").lower().replace(",", "").split()
        if word in {b.name for b in p.boxes}
    )
    assert found.counts["judged"] == named > 30
    assert found.counts["no box"] == found.counts["not there"] == 0  # people say the truth
    for look in found.looks:
        boxes = {b.name: b.box for b in next(p for p in dataset.photos if p.id == look.photo).boxes}
        assert look.boxes == (tuple(boxes[look.word]),)


# Flickr30k Entities


@pytest.fixture
def entities(tmp_path: Path) -> Path:
    """Annotations of photo 100: one lamp of two with a box, a table without, a scene."""
    for name in ("Annotations", "Sentences"):
        (tmp_path / "entities" / name).mkdir(parents=True)
    (tmp_path / "entities" / "Sentences" / "100.txt").write_text(
        "[/EN#1/other A bright lamp] is above [/EN#2/other the table] in [/EN#3/scene a room] .\n"
        "[/EN#0/notvisual It] shows [/EN#1/other a lamp] .\n"
    )
    (tmp_path / "entities" / "Annotations" / "100.xml").write_text(
        "<annotation><size><width>320</width><height>240</height><depth>3</depth></size>"
        "<object><name>1</name><bndbox><xmin>41</xmin><ymin>61</ymin><xmax>120</xmax>"
        "<ymax>120</ymax></bndbox></object>"
        "<object><name>2</name><scene>0</scene><nobndbox>1</nobndbox></object>"
        "<object><name>3</name><scene>1</scene><nobndbox>0</nobndbox></object></annotation>"
    )
    return tmp_path / "entities"


def test_entities_of_a_smaller_copy(rooms, entities):
    found = check(rooms, entities=entities)
    assert found.counts == {
        "photos": 1, "photos without": 3, "captions": 1, "judged": 1, "no box": 0, "not there": 0,
    }  # fmt: skip
    assert found.looks[0].boxes == ((20, 30, 60, 60),)
    assert found.looks[0].pointing.hit == 1
    assert found.settings["boxes"] == "Flickr30k Entities"


def test_with_forcing_a_word_means_what_the_annotation_says(rooms, entities):
    found = check(rooms, entities=entities, forced=True)
    assert [(x.caption[x.position - 1], x.word) for x in found.looks] == [
        ("bright", "lamp"), ("a", "lamp"),
    ]  # fmt: skip
    assert found.looks[1].caption == ("it", "shows", "a", "lamp")
    assert found.counts["no box"] == 2  # the table and the room
    assert found.counts["captions"] == 2


# What a person gets


def test_the_record_and_the_table(rooms, tmp_path):
    found = check(rooms)
    found.write(tmp_path / "out" / "gaze.json")
    record = json.loads((tmp_path / "out" / "gaze.json").read_text())
    assert record["measures"]["hit"] == {"mean": 0.5, "low": 0.0, "high": 1.0}
    assert record["by_word"]["lamp"]["judged"] == 2
    assert record["looks"][0]["word"] == "lamp"
    assert record["looks"][0]["pointing"]["hit"] == 1
    assert record["settings"]["captions"] == "its own"
    printed = io.StringIO()
    Console(file=printed, width=120).print(render(found))
    text = printed.getvalue()
    assert "0.500" in text
    assert "2 were judged" in text
    assert "1 what is not there" in text
    assert "3 photos with boxes (1 without)" in text
    assert "hit" in text
    assert "100_a.png: [lamp]" in text


def test_what_cannot_be_judged_is_said(rooms, tmp_path, entities):
    bare = Dataset("rooms", "table", tmp_path, rooms.photos[3:], (), "by hand")
    with pytest.raises(DataError, match=r"rooms \(table\) has no boxes.*--boxes"):
        check(bare)
    with pytest.raises(DataError, match="has no annotation for any photo of test of rooms"):
        check(bare, entities=entities)
    tables = Dataset("rooms", "by hand", tmp_path, rooms.photos[2:3], (), "by hand")
    with pytest.raises(DataError, match="None of 1 captions of test names a thing"):
        check(tables)
