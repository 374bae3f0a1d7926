"""Evaluations side by side: which difference is more than the choice of the photos.

Source: the paired bootstrap of Koehn, "Statistical significance tests for machine translation
evaluation" (2004), section 4, with the percentile intervals of Efron and Tibshirani, "An
introduction to the bootstrap" (1993), chapter 13. The photos are drawn anew with replacement, the
same ones for every evaluation; scores that are no mean over photos (BLEU, METEOR) are computed
again from the drawn photos' statistics. CIDEr keeps the document frequencies of all photos.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from regard.errors import DataError
from regard.metrics.bleu import bleu_of
from regard.metrics.meteor import combine
from regard.metrics.ngrams import ORDERS

Floats = NDArray[np.float64]

RESAMPLES = 10_000
"""Drawings of the photos. The smallest p-value that can come out is 2 / (drawings + 1)."""

LEVEL = 0.95
"""Of the confidence intervals."""

_AT_ONCE = 1000  # drawings held in memory


@dataclass(frozen=True)
class Interval:
    """A value with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """One score of another evaluation less that of the first."""

    score: str
    other: str
    difference: Interval
    p: float
    """Two-sided: how often chance alone would make a difference as large."""


@dataclass(frozen=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        names: of the evaluations; the first is what the others are compared with.
        photos: how many were drawn from.
        resamples: how many drawings were made of them.
        scores: for each score the interval of each evaluation, in the order of the names.
        differences: each score of each other evaluation against the first.
        left_out: scores that are not compared, each with its reason.
    """

    names: tuple[str, ...]
    photos: int
    resamples: int
    scores: Mapping[str, tuple[Interval, ...]]
    differences: tuple[Difference, ...]
    left_out: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"level": LEVEL, **asdict(self)}


def compare(files: Sequence[Path], *, seed: int = 0, resamples: int = RESAMPLES) -> Comparison:
    """Compare evaluations of the same photos.

    Args:
        files: two or more JSON files of ``regard evaluate --json``.
        seed: of the drawing.
        resamples: drawings of the photos.

    Raises:
        DataError: a file is no evaluation, or they have different photos, references or
            tokenisation.
    """
    if len(files) < 2:
        raise DataError(f"A comparison needs two evaluations or more, {len(files)} was given.")
    read = [_read(file) for file in files]
    names = _names(files)
    for name, evaluation in zip(names[1:], read[1:], strict=True):
        _check_same(names[0], read[0], name, evaluation)
    shared, left_out = _shared_scores(names, read)
    order = [photo["id"] for photo in read[0]["photos"]]
    drawn = {score: [_Drawn.of(e, score, order) for e in read] for score in shared}
    samples = _resampled(drawn, len(order), np.random.default_rng(seed), resamples)
    scores, differences = {}, []
    for score in shared:
        values = [d.corpus(d.rows.sum(0)) for d in drawn[score]]
        pairs = list(zip(values, samples[score], strict=True))
        scores[score] = tuple(_interval(value, sample) for value, sample in pairs)
        for other, (value, sample) in list(zip(names, pairs, strict=True))[1:]:
            found = _interval(value - values[0], sample - samples[score][0])
            p = _p_value(sample - samples[score][0])
            differences.append(Difference(score, other, found, p))
    return Comparison(names, len(order), resamples, scores, tuple(differences), left_out)


@dataclass(frozen=True)
class _Drawn:
    """One score of one evaluation: what is summed over photos, and the score of such a sum."""

    rows: Floats
    """``(n, S)``"""
    corpus: Callable[[Floats], Floats]
    """``(..., S)``, summed over n photos, to ``(...)``."""

    @classmethod
    def of(cls, evaluation: Mapping[str, Any], score: str, order: Sequence[str]) -> _Drawn:
        photos = {photo["id"]: photo for photo in evaluation["photos"]}
        family, corpus = _SUMMED.get(score, (None, lambda sums: sums[..., 0] / len(order)))
        rows = [
            photos[i]["statistics"][family] if family else [photos[i]["scores"][score]]
            for i in order
        ]
        return cls(np.array(rows, dtype=float), corpus)


def _bleu(order: int) -> Callable[[Floats], Floats]:
    return lambda sums: bleu_of(sums)[..., order]


# Scores that are no mean over photos: the name of their statistics, and what makes a score of sums.
_SUMMED: dict[str, tuple[str, Callable[[Floats], Floats]]] = {
    "METEOR": ("METEOR", combine),
    **{f"BLEU-{k + 1}": ("BLEU", _bleu(k)) for k in range(ORDERS)},
}


def _resampled(
    drawn: Mapping[str, Sequence[_Drawn]], photos: int, rng: np.random.Generator, resamples: int
) -> dict[str, list[Floats]]:
    """The corpus value of each score and evaluation, over the same drawings: ``(resamples,)``."""
    parts: dict[str, list[list[Floats]]] = {s: [[] for _ in each] for s, each in drawn.items()}
    even = np.full(photos, 1 / photos)
    for start in range(0, resamples, _AT_ONCE):
        times = rng.multinomial(photos, even, size=min(_AT_ONCE, resamples - start))  # (r, n)
        for score, each in drawn.items():
            for place, d in enumerate(each):
                parts[score][place].append(d.corpus(times @ d.rows))
    return {s: [np.concatenate(p) for p in each] for s, each in parts.items()}


def _interval(value: float | Floats, sample: Floats) -> Interval:
    low, high = np.quantile(sample, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))


def _p_value(differences: Floats) -> float:
    """Twice the share of drawings on the other side of zero; never zero itself."""
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    return float(min(1.0, 2 * (min(below, above) + 1) / (len(differences) + 1)))


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"The evaluation {file} cannot be read: {error}.") from error
    wanted = {"settings", "scores", "engines", "photos"}
    if not isinstance(content, dict) or not wanted <= content.keys() or not content["photos"]:
        raise DataError(
            f"{file} is no evaluation. Write one with `regard evaluate DATA --model MODEL --json "
            f"{file.name}`."
        )
    return content


def _names(files: Sequence[Path]) -> tuple[str, ...]:
    """A short name for each file; the whole path where short ones would be the same."""
    short = [file.stem for file in files]
    return tuple(
        str(file) if short.count(stem) > 1 else stem
        for file, stem in zip(files, short, strict=True)
    )


def _check_same(first: str, a: Mapping[str, Any], other: str, b: Mapping[str, Any]) -> None:
    """Refuse what cannot be compared."""
    words = [evaluation["settings"].get("tokenisation") for evaluation in (a, b)]
    if words[0] != words[1]:
        raise DataError(
            f"{first} was tokenised as {words[0]!r}, {other} as {words[1]!r}. Score the captions "
            "of both in one way: `regard evaluate DATA --captions FILE` takes captions as they are."
        )
    references = [{p["id"]: p["references"] for p in e["photos"]} for e in (a, b)]
    ours, theirs = (set(r) for r in references)
    if ours != theirs:
        alone = sorted(ours ^ theirs)
        raise DataError(
            f"{first} has {len(ours)} photos and {other} {len(theirs)}; {len(alone)} are in one "
            f"of them alone, such as {alone[0]}. Evaluate both on the same split of the same data."
        )
    unlike = sorted(i for i in ours if references[0][i] != references[1][i])
    if unlike:
        raise DataError(
            f"{len(unlike)} photos have other references in {first} than in {other}, such as "
            f"{unlike[0]}. Evaluate both on the same data."
        )


def _shared_scores(
    names: Sequence[str], read: Sequence[Mapping[str, Any]]
) -> tuple[list[str], tuple[str, ...]]:
    """The scores that all evaluations have from the same engine, and why others are left out."""
    shared, left_out = [], []
    for score in dict.fromkeys(s for e in read for s in e["scores"]):
        without = [n for n, e in zip(names, read, strict=True) if score not in e["scores"]]
        engines = {e["engines"][score] for e in read if score in e["scores"]}
        if without:
            left_out.append(f"{score}: {', '.join(without)} has none")
        elif len(engines) > 1:
            left_out.append(f"{score}: computed by {' and by '.join(sorted(engines))}")
        else:
            shared.append(score)
    return shared, tuple(left_out)
