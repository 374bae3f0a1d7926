"""METEOR: equal to the Java program's, photo by photo, and lawful."""

from __future__ import annotations

import json
import sys
import types
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

import meteor_oracle
from regard.errors import DataError, MissingExtraError, RegardError
from regard.metrics import meteor_tables
from regard.metrics.meteor import STATISTICS, combine, meteor
from regard.metrics.meteor_tables import read_paraphrases, read_tables
from regard.metrics.meteor_words import Lexicon, normalise

STORED = Path(__file__).parent / "data" / "meteor.json"
CASES = {
    # what is said: what is wanted
    "a man is riding a wave on a surfboard": [
        "a surfer rides a big wave", "a person surfing on the ocean wave", "man riding wave",
    ],
    "two dogs running through the grass": [
        "a couple of dogs are racing in the tall grass", "two canines run through a field",
    ],
    "two dogs running through the field": ["two dogs running through the field"],
    "it 's a boy in a t-shirt": ["its a child wearing a tee shirt", "a boy 's t shirt"],
    "a a a dog and a dog and a dog": ["a dog and another dog and a cat", "dog a dog a dog a"],
    "the girl with the ball the girl kicks": ["the ball the girl with the girl kicks"],
    "3,000 people watch mr. smith at 5 p.m.": ["three thousand persons look at mr smith"],
    "children play soccer": ["kids are playing football", "the kid is kicking a soccer ball", ""],
    "an automobile parked near the sidewalk": ["a car is parked in front of the curb"],
    "a large number of people": ["a lot of people", "many people", "a crowd"],
    "nothing of this": ["zebras graze quietly"],
    "": ["a dog", ""],
}  # fmt: skip


def cases():
    return [said.split() for said in CASES], [[r.split() for r in g] for g in CASES.values()]


@pytest.fixture
def tables():
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap, which has the tables, is missing")
    pytest.importorskip("snowballstemmer", reason="snowballstemmer is not installed")


@pytest.fixture
def java(tables):
    if reason := meteor_oracle.why_not():
        pytest.skip(reason)


def agree(found, expected):
    corpus, each = expected
    assert found.corpus == pytest.approx(corpus, abs=1e-12)
    np.testing.assert_allclose(found.per_photo, each, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_equal_to_the_java_program(java, shared):
    drawn = list(islice(meteor_oracle.photos(shared, seed=0), 1000))
    assert {len(references) for _, references in drawn} == set(range(1, 8))
    hypotheses, references = map(list, zip(*drawn, strict=True))
    agree(meteor(hypotheses, references), meteor_oracle.by_java(hypotheses, references))


def test_equal_to_its_stored_numbers(tables):
    """Written by `python tests/test_meteor.py` where pycocoevalcap 1.2 and Java are installed."""
    stored = json.loads(STORED.read_text())
    found = meteor(*cases())
    agree(found, (stored["corpus"], stored["each"]))
    assert (found.per_photo > 0).sum() == len(CASES) - 2


def test_a_caption_that_is_a_reference_is_perfect(tables):
    _, references = cases()
    references = references[:-1]
    scores = meteor([group[-1] or ["dog"] for group in references], references)
    whole = [i for i, group in enumerate(references) if group[-1]]
    np.testing.assert_allclose(scores.per_photo[whole], 1, atol=1e-12)


def test_photos_are_independent(tables):
    hypotheses, references = cases()
    order = np.random.default_rng(0).permutation(len(hypotheses))
    before = meteor(hypotheses, references)
    after = meteor([hypotheses[i] for i in order], [references[i] for i in order])
    assert after.corpus == before.corpus
    np.testing.assert_array_equal(after.statistics, before.statistics[order])
    alone = meteor(hypotheses[:1], references[:1])
    np.testing.assert_array_equal(alone.statistics, before.statistics[:1])
    # Not to the last bit: numpy has one power for a number and another for many.
    assert alone.corpus == pytest.approx(before.per_photo[0], abs=1e-15)


def test_drawn_statistics_are_the_score_of_drawn_photos(tables):
    hypotheses, references = cases()
    found = meteor(hypotheses, references)
    assert found.statistics.shape == (len(hypotheses), STATISTICS)
    rows = np.random.default_rng(1).integers(len(hypotheses), size=(3, 20))
    drawn = combine(found.statistics[rows].sum(1))  # (3,)
    assert len(set(drawn)) == 3
    again = meteor([hypotheses[i] for i in rows[0]], [references[i] for i in rows[0]])
    assert again.corpus == pytest.approx(drawn[0], abs=1e-15)


def test_no_paraphrase_depends_on_what_else_is_scored(tables):
    few = read_paraphrases({"a lot of", "much"})
    assert few["a lot of"] == ["much"]
    more = read_paraphrases({"a lot of", "much", "a great deal", "very", "dog"})
    assert sorted(more["a lot of"]) == ["a great deal", "much", "very"]


def test_words_are_those_of_the_program(tables):
    known = read_tables().abbreviations
    assert normalise("it's Mr. Smith's t-shirt, no. 5", known) == (
        "it 's mr. smith 's t shirt , no . 5".split()
    )
    assert normalise("No. 5 and 3,000 (of U.S. origin)...", known) == (
        "no. 5 and 3,000 ( of us origin ) ...".split()
    )
    lexicon = Lexicon(read_tables())
    men, man, women = lexicon.read(["men", "man", "women"])
    assert men.synsets & man.synsets
    assert not women.synsets & man.synsets
    assert [w.is_function for w in lexicon.read(["the", "dog"])] == [True, False]


def test_without_the_tables_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(meteor_tables, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"METEOR needs .*regard\[meteor\]"):
        meteor([["a"]], [[["a"]]])


def test_another_stemmer_is_refused(tables, monkeypatch):
    newer = types.ModuleType("newer")
    newer.EnglishStemmer = lambda: types.SimpleNamespace(stemWord=lambda word: "add")
    monkeypatch.setitem(sys.modules, "snowballstemmer.english_stemmer", newer)
    with pytest.raises(RegardError, match='snowballstemmer<3"'):
        meteor([["a"]], [[["a"]]])
    monkeypatch.setitem(sys.modules, "snowballstemmer.english_stemmer", None)
    with pytest.raises(MissingExtraError, match=r"regard\[meteor\]"):
        meteor([["a"]], [[["a"]]])


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="1 captions to score and references for 0 photos"):
        meteor([["a"]], [])


if __name__ == "__main__":
    value, each = meteor_oracle.by_java(*cases())
    STORED.write_text(json.dumps({"corpus": value, "each": each}, indent=1) + "\n")
