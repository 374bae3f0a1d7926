"""Scores: equal to the reference implementation's, photo by photo, and lawful."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from regard.errors import DataError
from regard.metrics.bleu import bleu, bleu_of
from regard.metrics.cider import DocumentFrequencies, cider, plain_cider
from regard.metrics.ngrams import count_runs
from regard.metrics.scores import score_all

STORED = Path(__file__).parent / "data" / "scores.json"
WORDS = [
    "a",
    "the",
    "dog",
    "cat",
    "man",
    "woman",
    "runs",
    "sits",
    "on",
    "in",
    "grass",
    "red",
    "blue",
    "shirt",
    "and",
    "two",
    "'s",
    "playing",
    "ball",
]
NAMES = ["BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr"]


def corpus(seed: int, photos: int = 40):
    """Captions that resemble their references, 1 to 7 of these, some captions empty."""
    rng = random.Random(seed)
    hypotheses, references = [], []
    for _ in range(photos):
        base = rng.choices(WORDS, k=rng.randint(1, 14))
        references.append(
            [[w if rng.random() < 0.7 else rng.choice(WORDS) for w in base][: rng.randint(1, 15)]
             for _ in range(rng.randint(1, 7))]
        )  # fmt: skip
        said = [w if rng.random() < 0.8 else rng.choice(WORDS) for w in base]
        hypotheses.append([] if rng.random() < 0.1 else said[: rng.randint(1, 15)])
    references[0].append([])
    return hypotheses, references


def by_pycocoevalcap(hypotheses, references) -> dict[str, tuple[float, list[float]]]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    said = {i: [" ".join(h)] for i, h in enumerate(hypotheses)}
    wanted = {i: [" ".join(r) for r in group] for i, group in enumerate(references)}
    values, each = Bleu(4).compute_score(wanted, said, verbose=0)
    found = {f"BLEU-{k + 1}": (float(values[k]), list(map(float, each[k]))) for k in range(4)}
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        value, each = scorer.compute_score(wanted, said)
        found[name] = (float(value), list(map(float, each)))
    return found


def agree(found, expected):
    assert list(found) == [*NAMES, "CIDEr-plain"]
    for name in NAMES:
        value, each = expected[name]
        assert found[name].corpus == pytest.approx(value, abs=1e-9), name
        np.testing.assert_allclose(found[name].per_photo, each, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("seed", range(8))
def test_equal_to_pycocoevalcap(seed):
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap is not installed")
    agree(score_all(*corpus(seed)), by_pycocoevalcap(*corpus(seed)))


def test_equal_to_its_stored_numbers():
    """Written by `python tests/test_metrics.py` where pycocoevalcap 1.2 is installed."""
    stored = json.loads(STORED.read_text())
    agree(score_all(*corpus(99, photos=12)), stored)


def test_a_caption_that_is_a_reference_is_perfect():
    _, references = corpus(3)
    references = [[r for r in group if len(r) >= 4] or [WORDS[:6]] for group in references]
    scores = score_all([group[-1] for group in references], references)
    for k in range(1, 5):
        np.testing.assert_allclose(scores[f"BLEU-{k}"].per_photo, 1, atol=1e-6)
    np.testing.assert_allclose(scores["ROUGE-L"].per_photo, 1)
    alone = [[group[-1]] for group in references]
    assert cider([g[0] for g in alone], alone).per_photo.max() == pytest.approx(10)


def literal_plain_cider(hypotheses, references) -> list[float]:
    """Equations 1 to 3 of the paper with dictionaries, times 10."""

    def counts(tokens, order):
        return Counter(zip(*(tokens[i:] for i in range(order)), strict=False))

    each = np.zeros(len(hypotheses))
    for order in range(1, 5):
        with_it = Counter(
            g for group in references for g in {g for r in group for g in counts(r, order)}
        )

        def vector(tokens, order=order, with_it=with_it):
            return {
                gram: count * math.log(len(references) / max(1, with_it[gram]))
                for gram, count in counts(tokens, order).items()
            }

        for i, (said, group) in enumerate(zip(hypotheses, references, strict=True)):
            a = vector(said)
            for reference in group:
                b = vector(reference)
                dot = sum(a[gram] * b[gram] for gram in a.keys() & b.keys())
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                each[i] += dot / norms / len(group) * 10 / 4 if norms else 0
    return each.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_plain_cider_is_that_of_the_papers_formulas(seed):
    hypotheses, references = corpus(seed)
    found = plain_cider(hypotheses, references)
    np.testing.assert_allclose(found.per_photo, literal_plain_cider(hypotheses, references))
    assert found.corpus == pytest.approx(found.per_photo.mean())


def test_cider_punishes_what_plain_cider_rewards():
    references = [[["a", "brown", "dog", "runs"]], [["two", "men", "sit"]], [["a", "red", "hat"]]]
    said = [["dog"] * 9, ["two", "men", "sit"], ["a", "red", "hat"]]
    plain, strict = plain_cider(said, references), cider(said, references)
    assert plain.per_photo[0] > 3 * strict.per_photo[0] > 0
    np.testing.assert_allclose(plain.per_photo[1:], strict.per_photo[1:])


def test_the_order_of_photos_and_references_means_nothing():
    hypotheses, references = corpus(4)
    order = list(range(len(hypotheses)))
    random.Random(0).shuffle(order)
    before = score_all(hypotheses, references)
    after = score_all([hypotheses[i] for i in order], [references[i][::-1] for i in order])
    for name in NAMES:
        assert after[name].corpus == pytest.approx(before[name].corpus)
        np.testing.assert_allclose(after[name].per_photo, before[name].per_photo[order])


def test_one_photo_alone_has_no_cider():
    assert cider([["a", "dog"]], [[["a", "dog"]]]).corpus == 0
    _, references = corpus(5)
    frequencies = DocumentFrequencies.of(references)
    assert cider([references[1][0]], [references[1]], frequencies).corpus > 0.5


def test_photos_are_independent_given_the_frequencies():
    hypotheses, references = corpus(6)
    frequencies = DocumentFrequencies.of(references)
    together = cider(hypotheses, references, frequencies).per_photo
    alone = [
        cider([h], [r], frequencies).corpus for h, r in zip(hypotheses, references, strict=True)
    ]
    np.testing.assert_allclose(together, alone)


def test_bleu_comes_from_statistics_that_add_up():
    hypotheses, references = corpus(7)
    together = bleu(hypotheses, references)
    statistics = together[0].statistics
    assert statistics.shape == (len(hypotheses), 9)
    parts = [
        bleu(hypotheses[some], references[some])[0].statistics
        for some in (slice(0, 13), slice(13, None))
    ]
    np.testing.assert_array_equal(np.concatenate(parts), statistics)
    corpora = [score.corpus for score in together]
    np.testing.assert_array_equal(bleu_of(statistics.sum(0)), corpora)
    # Drawn photos, as a bootstrap draws them: some twice, some never.
    drawn = np.random.default_rng(0).integers(0, len(hypotheses), (3, len(hypotheses)))
    expected = [
        [s.corpus for s in bleu([hypotheses[i] for i in row], [references[i] for i in row])]
        for row in drawn
    ]
    np.testing.assert_allclose(bleu_of(statistics[drawn].sum(1)), expected, atol=1e-12)


def test_what_the_statistics_are():
    said = "a dog and a dog".split()
    wanted = ["a dog and a".split(), "a dog , a dog , a dog".split(), ["a"]]
    closest = [4.0]
    runs, matched = [5.0, 4, 3, 2], [5.0, 4, 2, 1]
    np.testing.assert_array_equal(bleu([said], [wanted])[0].statistics, [closest + runs + matched])
    two_words = bleu([["a", "dog"]], [[["a", "dog"]]])[0].statistics
    np.testing.assert_array_equal(two_words, [[2, 2, 1, 0, 0, 2, 1, 0, 0]])


def test_runs_that_are_counted_already_give_the_same_scores():
    hypotheses, references = corpus(8)
    runs = count_runs(hypotheses, references)
    assert cider(hypotheses, references, runs=runs).corpus == cider(hypotheses, references).corpus
    again = bleu(hypotheses, references, runs=runs)
    assert [s.corpus for s in again] == [s.corpus for s in bleu(hypotheses, references)]


@pytest.mark.parametrize("said", [[], ["a"], ["never", "seen"]])
def test_captions_that_share_nothing_score_nothing(said):
    scores = score_all([said, said], [[["two", "men"]], [[], ["a", "red", "hat"]]])
    assert scores["CIDEr"].per_photo[0] == scores["ROUGE-L"].per_photo[0] == 0
    assert scores["BLEU-1"].per_photo[0] == pytest.approx(0, abs=1e-6)
    assert all(np.isfinite(score.per_photo).all() for score in scores.values())


def test_frequencies_say_in_how_many_photos_a_run_stands():
    references = [[["a", "dog"], ["a", "a", "dog"]], [["a", "cat"], []]]
    frequencies = DocumentFrequencies.of(references)
    assert frequencies.photos == 2
    assert frequencies.counts == {
        ("a",): 2, ("dog",): 1, ("cat",): 1, ("a", "dog"): 1, ("a", "a"): 1, ("a", "cat"): 1,
        ("a", "a", "dog"): 1,
    }  # fmt: skip


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(DataError, match="2 captions to score and references for 1 photos"):
        score_all([["a"], ["b"]], [[["a"]]])
    with pytest.raises(DataError, match="1 of 2 photos have no reference"):
        score_all([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(DataError, match="There is no caption to score"):
        score_all([], [])


if __name__ == "__main__":
    STORED.parent.mkdir(exist_ok=True)
    STORED.write_text(json.dumps(by_pycocoevalcap(*corpus(99, photos=12)), indent=1) + "\n")
