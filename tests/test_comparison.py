"""Evaluations side by side: intervals, p-values, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from regard.comparison import compare
from regard.errors import DataError
from regard.metrics.scores import score_all

WORDS = "a the dog cat man woman runs sits on in grass red blue shirt two ball".split()


def evaluation(file: Path, *, faithful: float, photos: int = 60, seed: int = 0) -> Path:
    """Captions that are their first reference but for some words, as ``regard evaluate`` writes."""
    references = np.random.default_rng(1).choice(WORDS, size=(photos, 3, 9))
    rng = np.random.default_rng(seed)
    kept = rng.random((photos, 9)) < faithful
    said = np.where(kept, references[:, 0], rng.choice(WORDS, size=(photos, 9)))
    tokens = [list(map(str, words)) for words in said]
    wanted = [[list(map(str, words)) for words in group] for group in references]
    scores = score_all(tokens, wanted)
    statistics = scores["BLEU-1"].statistics
    assert statistics is not None
    content = {
        "settings": {"tokenisation": "spaces"},
        "scores": {n: s.corpus for n, s in scores.items()},
        "engines": {n: s.engine for n, s in scores.items()},
        "photos": [
            {
                "id": f"{i}.jpg",
                "caption": " ".join(tokens[i]),
                "references": [" ".join(words) for words in wanted[i]],
                "scores": {n: float(s.per_photo[i]) for n, s in scores.items()},
                "statistics": {"BLEU": statistics[i].tolist()},
            }
            for i in range(photos)
        ],
    }
    file.write_text(json.dumps(content))
    return file


def changed(file: Path, change) -> Path:
    content = json.loads(file.read_text())
    change(content)
    other = file.with_stem(file.stem + "-changed")
    other.write_text(json.dumps(content))
    return other


def test_values_are_those_of_the_evaluations(tmp_path):
    files = [evaluation(tmp_path / f"{f}.json", faithful=f) for f in (0.5, 0.8)]
    found = compare(files, resamples=500)
    for place, file in enumerate(files):
        for name, value in json.loads(file.read_text())["scores"].items():
            interval = found.scores[name][place]
            assert interval.value == pytest.approx(value, abs=1e-9)
            assert interval.low < value < interval.high
    for d in found.differences:
        first, second = found.scores[d.score]
        assert d.difference.value == pytest.approx(second.value - first.value)


def test_a_better_captioner_is_found_and_an_equal_one_is_not(tmp_path):
    base = evaluation(tmp_path / "base.json", faithful=0.5)
    better = evaluation(tmp_path / "better.json", faithful=0.8, seed=1)
    equal = evaluation(tmp_path / "equal.json", faithful=0.5, seed=2)
    found = {(d.other, d.score): d for d in compare([base, better, equal]).differences}
    assert found["better", "BLEU-4"].p < 0.01
    assert found["better", "CIDEr"].difference.low > 0
    assert found["equal", "CIDEr"].p > 0.05
    same = compare([base, base], resamples=200).differences
    assert all(d.p == 1 and d.difference.low == d.difference.high == 0 for d in same)


def test_the_interval_of_a_mean_is_that_of_its_standard_error(tmp_path):
    """An independent reference: the normal interval of ROUGE-L, a plain mean over photos."""
    file = evaluation(tmp_path / "a.json", faithful=0.6, photos=400)
    each = np.array([p["scores"]["ROUGE-L"] for p in json.loads(file.read_text())["photos"]])
    error = each.std(ddof=1) / len(each) ** 0.5
    interval = compare([file, file]).scores["ROUGE-L"][0]
    assert interval.low == pytest.approx(each.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(each.mean() + 1.96 * error, abs=0.1 * error)


def test_corpus_scores_are_made_again_from_their_statistics(tmp_path):
    """The mean of BLEU-4 over photos is another number than BLEU-4 of all of them."""
    file = evaluation(tmp_path / "a.json", faithful=0.6)
    content = json.loads(file.read_text())
    mean = np.mean([p["scores"]["BLEU-4"] for p in content["photos"]])
    assert abs(mean - content["scores"]["BLEU-4"]) > 0.01
    interval = compare([file, file], resamples=2000).scores["BLEU-4"][0]
    assert interval.value == pytest.approx(content["scores"]["BLEU-4"], abs=1e-9)


def test_the_seed_decides_and_the_order_of_photos_does_not(tmp_path):
    a = evaluation(tmp_path / "a.json", faithful=0.5)
    b = evaluation(tmp_path / "b.json", faithful=0.6, seed=3)
    turned = changed(b, lambda c: c["photos"].reverse())
    first, again = compare([a, b], seed=4), compare([a, turned], seed=4)
    assert first.scores == again.scores
    assert compare([a, b], seed=5).scores != first.scores


def test_what_differs_is_refused(tmp_path):
    a = evaluation(tmp_path / "a.json", faithful=0.5)
    tokenised = changed(a, lambda c: c["settings"].update(tokenisation="other"))
    with pytest.raises(DataError, match="a was tokenised as 'spaces', a-changed as 'other'"):
        compare([a, tokenised])
    fewer = changed(a, lambda c: c["photos"].pop())
    with pytest.raises(DataError, match=r"60 photos and a-changed 59; 1 are in one .* 59.jpg"):
        compare([a, fewer])
    other = changed(a, lambda c: c["photos"][7]["references"].pop())
    with pytest.raises(DataError, match=r"1 photos have other references .* such as 7.jpg"):
        compare([a, other])
    with pytest.raises(DataError, match="needs two evaluations or more, 1 was given"):
        compare([a])
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(DataError, match=r"list.json is no evaluation"):
        compare([a, tmp_path / "list.json"])
    with pytest.raises(DataError, match=r"none.json cannot be read"):
        compare([a, tmp_path / "none.json"])


def test_scores_of_other_engines_are_left_out(tmp_path):
    a = evaluation(tmp_path / "a.json", faithful=0.5)
    b = changed(a, lambda c: (c["engines"].update(CIDEr="another"), c["scores"].pop("BLEU-1")))
    found = compare([a, b], resamples=50)
    assert set(found.scores) == {"BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr-plain"}
    assert found.left_out == (
        "BLEU-1: a-changed has none",
        "CIDEr: computed by another and by regard",
    )
