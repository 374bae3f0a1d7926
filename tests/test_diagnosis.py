"""Variety and faults of captions, on captions that people would call so."""

from __future__ import annotations

import pytest

from regard.metrics.diagnosis import diagnose, distinct, repeats, unfinished


@pytest.mark.parametrize(
    "caption",
    [
        "a man in a blue shirt and a blue shirt",
        "a dog and a dog",
        "a dog dog runs",
        "two men stand next to two men",
        "a girl plays with a ball and plays with a ball",
    ],
)
def test_a_phrase_said_twice_is_found(caption):
    assert repeats(caption.split())


@pytest.mark.parametrize(
    "caption",
    [
        "a brown dog chases a black dog",
        "a man in a red shirt stands in a field",
        "the cat is on the mat by the door",
        "dog",
        "",
    ],
)
def test_what_people_say_is_no_repetition(caption):
    assert not repeats(caption.split())


def test_an_end_in_the_middle_of_a_phrase_is_found():
    assert unfinished("a man in a".split())
    assert unfinished("a dog with".split())
    assert unfinished([])
    assert not unfinished("a boy as a man looks on".split())


def test_variety():
    captions = [c.split() for c in ("a dog runs", "a dog runs", "a cat")]
    assert distinct(captions, 1) == 4 / 8
    assert distinct(captions, 2) == 3 / 5
    found = diagnose(
        captions,
        known={("a", "dog", "runs")},
        vocabulary=["a", "dog", "cat", "runs", "sits"],
        cut=[False, True, False],
    )
    assert found == {
        "distinct-1": 0.5,
        "distinct-2": 0.6,
        "different": pytest.approx(2 / 3),
        "novel": pytest.approx(1 / 3),
        "words used": 4,
        "vocabulary used": 0.8,
        "mean length": pytest.approx(8 / 3),
        "shortest": 2,
        "longest": 3,
        "repeated": 0,
        "cut off": pytest.approx(1 / 3),
    }
    assert "novel" not in diagnose(captions)


def test_no_caption_has_no_fault():
    assert diagnose([])["repeated"] == 0
