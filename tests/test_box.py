"""The captioner in the box: small, whole, honest, and there without being asked for."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import regard
import tiny
from regard.checkpoint import IN_THE_BOX, read_model
from regard.describe import Decoding
from regard.errors import ModelError

PHOTOS = IN_THE_BOX.parent / "photos"

# What the drawn photos show, in words that a caption of each must have one of.
SHOWN = {
    "dog.jpg": "dog dogs",
    "snow.jpg": "snow snowy skier mountain",
    "surfer.jpg": "surfer surfing surfboard wave water ocean",
    "beach.jpg": "beach water ocean sand boy girl child",
}


def test_it_is_small():
    files = [path for path in IN_THE_BOX.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25_000_000
    with safe_open(IN_THE_BOX / "model.safetensors", "pt") as opened:
        tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    assert {str(t.dtype) for t in tensors.values() if t.ndim > 1} == {"torch.bfloat16"}
    assert any(name.startswith("encoder.") for name in tensors)


def test_it_is_found_by_its_name_unless_a_folder_has_it(tmp_path, monkeypatch):
    assert read_model("regard-small").folder == IN_THE_BOX
    monkeypatch.chdir(tmp_path)
    Path("regard-small").mkdir()
    with pytest.raises(ModelError, match="regard-small is no model folder"):
        read_model("regard-small")


def test_it_needs_no_network_and_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    captioner = regard.load()
    assert captioner.folder == IN_THE_BOX
    right = []
    for name, words in SHOWN.items():
        found = captioner.caption(PHOTOS / name)
        right.append(bool(set(words.split()) & set(found.words)))
        assert found.maps.shape == (len(found.words), 7, 7)
    assert sum(right) >= 3  # of the four


def test_every_command_takes_it_by_default(tmp_path):
    said = tiny.regard("caption", PHOTOS / "dog.jpg", cwd=tmp_path).stdout
    assert "dog" in said.partition(": ")[2]
    data = tiny.draw_tiny(tmp_path / "data")
    tiny.regard("evaluate", data, "--no-meteor", "--json", "x.json", "--cache", "c", cwd=tmp_path)
    evaluated = json.loads((tmp_path / "x.json").read_text())
    assert evaluated["settings"]["model"] == read_model("regard-small").weights_hash


def test_its_card_tells_what_its_config_tells():
    card = (IN_THE_BOX / "README.md").read_text()
    described = json.loads((IN_THE_BOX / "config.json").read_text())
    row = re.search(r"\| regard-small, beam 3 \|(.*)\|", card)
    assert row is not None
    measured = [float(cell) for cell in row[1].split("|")[:5]]
    names = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
    assert measured == [pytest.approx(described["scores"][name], abs=6e-4) for name in names]
    assert "research and education only" in card
    assert "not needed any\nmore" in card or "not needed any more" in card


def test_a_photo_is_captioned_alone_as_among_others():
    captioner = regard.load()
    paths = sorted(PHOTOS.glob("*.jpg"))
    together = [found.text for found in captioner.captions(paths, Decoding(beam=3))]
    assert together == [captioner.caption(path, Decoding(beam=3)).text for path in paths]


def test_it_says_of_real_photos_what_is_on_them(shared):
    """Sixty dev photos are too few for a score, but enough to see that it sees."""
    from regard.data.dataset import read_dataset
    from regard.metrics.cider import cider
    from regard.text.tokenise import tokenise

    photos = read_dataset(shared / "data" / "flickr8k").split("val")[:60]
    captioner = regard.load()
    with torch.inference_mode():
        found = [f.text for f in captioner.captions([p.path for p in photos])]
    said = [tokenise(text) for text in found]
    references = [[tokenise(c) for c in p.captions] for p in photos]
    score = cider(said, references).corpus
    shuffled = cider(said[1:] + said[:1], references).corpus
    assert score > 2.5 * shuffled
