"""Candidates ordered by a CLIP: the most similar first, both scores kept."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import foreign
import tiny
from regard.describe import Caption
from regard.metrics.clipscore import PROMPT
from regard.rerank import rerank

transformers = pytest.importorskip("transformers", reason="transformers is not installed")


class Judge:
    """A CLIP of two directions: dogs and cats."""

    def embed_photos(self, photos):
        return np.stack([np.eye(2, dtype=np.float32)[int(photo == "cat.jpg")] for photo in photos])

    def embed_texts(self, texts):
        assert all(text.startswith(PROMPT) for text in texts)
        return np.stack([np.eye(2, dtype=np.float32)[int("cat" in text)] for text in texts])


def caption(text: str, score: float) -> Caption:
    words = tuple(text.split())
    return Caption(text, words, (0.0,) * len(words), np.zeros((len(words), 1, 1)), score, False)


def test_the_most_similar_comes_first_and_the_score_decides_between_equals():
    group = [caption("a dog", -1.0), caption("one cat", -3.0), caption("a cat", -2.0)]
    dogs, cats = rerank(Judge(), ["dog.jpg", "cat.jpg"], [group, group])
    assert [c.text for c in dogs] == ["a dog", "a cat", "one cat"]
    assert [c.text for c in cats] == ["a cat", "one cat", "a dog"]
    assert [(c.similarity, c.score) for c in cats] == [(1.0, -2.0), (1.0, -3.0), (0.0, -1.0)]
    assert group[0].similarity is None


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from test_clip import save, sizes, words

    folder = tmp_path_factory.mktemp("rerank")
    tiny.draw_tiny(folder / "tiny")
    foreign.save_captioner(folder / "blip", "blip")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.CLIPModel(transformers.CLIPConfig(**sizes(words()), projection_dim=12))
        foreign.spread(model, 0.3)
    pixels = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    save(folder / "clip", model, words(), pixels)
    return folder


def test_the_command_line_shows_both_scores(place):
    from regard.models.clip import load_clip

    photo = "tiny/photos/00.png"
    arguments = ["caption", photo, "--model", "blip", "--beam", "4", "--max-length", "8"]
    tiny.inside(*arguments, "--out", "plain.jsonl", cwd=place)
    tiny.inside(*arguments, "--rerank", "clip", "--out", "ordered.jsonl", cwd=place)
    plain, ordered = (
        json.loads((place / name).read_text()) for name in ("plain.jsonl", "ordered.jsonl")
    )
    assert "candidates" not in plain
    candidates = ordered["candidates"]
    assert len(candidates) == 4
    assert ordered["caption"] == candidates[0]["caption"]
    similar = [c["similarity"] for c in candidates]
    assert similar == sorted(similar, reverse=True)
    clip = load_clip(str(place / "clip"), device="cpu")
    seen = clip.embed_photos([Image.open(place / photo)])[0]
    said = clip.embed_texts([PROMPT + c["caption"] for c in candidates])
    np.testing.assert_allclose(said @ seen, similar, atol=1e-5)
    assert plain["caption"] in {c["caption"] for c in candidates}


def test_evaluations_say_what_reranked(place):
    tiny.inside(
        "evaluate", "tiny", "--model", "blip", "--max-length", "6", "--no-meteor", "--rerank",
        "clip", "--json", "scores.json", cwd=place,
    )  # fmt: skip
    settings = json.loads((place / "scores.json").read_text())["settings"]
    assert settings["rerank"]["id"].endswith("clip")


def test_a_clip_that_is_not_there_is_one_clear_line(place):
    done = tiny.inside(
        "caption", "tiny/photos/00.png", "--model", "blip", "--rerank", "./none", cwd=place, code=2
    )
    assert "CLIP model './none': there is no such folder" in done.stderr
