"""The reward's CIDEr is CIDEr, with the document frequencies of other photos too."""

from __future__ import annotations

import numpy as np
import pytest

from regard.metrics.cider import DocumentFrequencies, cider
from regard.metrics.consensus import Consensus

WORDS = ["a", "dog", "runs", "in", "the", "grass", "two", "men", "<END>"]


def drawn(rng: np.random.Generator, most: int, words: list[str] = WORDS) -> list[str]:
    return [str(w) for w in rng.choice(words, rng.integers(0, most + 1))]


@pytest.fixture
def references() -> list[list[list[str]]]:
    rng = np.random.default_rng(0)
    return [[drawn(rng, 12) for _ in range(rng.integers(1, 7))] for _ in range(40)]


def test_it_is_cider_with_these_document_frequencies(references):
    """Captions with unknown words, repeated runs, of no word; photos twice and in any order."""
    rng = np.random.default_rng(1)
    photos = [31, 4, 4, 0, 17, 39]
    captions = [[drawn(rng, 9, [*WORDS, "zebra", "yak"]) for _ in range(5)] for _ in photos]
    captions[0][:2] = [["a", "dog"] * 5, references[31][0]]
    found = Consensus(references)(photos, captions)
    expected = cider(
        [caption for group in captions for caption in group],
        [references[p] for p in photos for _ in range(5)],
        DocumentFrequencies.of(references),
    )
    np.testing.assert_allclose(found.ravel(), expected.per_photo, rtol=0, atol=1e-9)
    assert found.shape == (6, 5)
    assert (found > 0).sum() > 15
    assert found.max() > 3


def test_references_too_short_for_any_pair():
    reward = Consensus([[["dog"]], [["cat"]]])
    assert reward([0], [[["dog"], ["cat"]]])[0] == pytest.approx([2.5, 0])
    assert reward([1], [[["a", "cat", "sits", "there"], []]])[0, 1] == 0


def test_the_end_is_a_word():
    """What breaks off says no more of its reference than it said; what ends is better."""
    whole = "a man in a hat <END>".split()
    reward = Consensus([[whole], ["two dogs run <END>".split()], ["a dog <END>".split()]])
    ended, broken = reward([0], [["a man in a hat <END>".split(), "a man in a <END>".split()]])[0]
    assert ended == pytest.approx(10)
    assert broken < reward([0], [["a man in a hat".split()]])[0, 0] < ended
    # Without the end as a word the very same fault costs less.
    plain = Consensus([[whole[:-1]], ["two dogs run".split()], ["a dog".split()]])
    assert broken < plain([0], [["a man in a".split()]])[0, 0]
