"""How a caption is chosen, over ids, scores and a step function: it knows neither words nor models.

It always returns a caption of at least one word, and never an id that was forbidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regard.models.decoder import State, Step

StepFunction = Callable[[Tensor, State], Step]


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """One caption of one photo."""

    ids: tuple[int, ...]
    """Its words, without ``<START>`` and ``<END>``."""
    log_probabilities: tuple[float, ...]
    """Natural logarithm of each word's probability, forbidden ids left out."""
    end_log_probability: float
    """That of ``<END>`` after them."""
    cut: bool
    """Whether the end was forced because the caption had reached the greatest length."""
    attention: Tensor
    """``(T, L)``, float32 on the CPU: where it looked for each word; each row sums to 1."""
    score: float
    """What orders candidates: the log-probabilities' sum over ``length ** length_penalty``."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for every way of choosing."""

    start: int
    """Id that every caption is begun with."""
    end: int
    """Id that ends a caption."""
    forbidden: tuple[int, ...] = ()
    """Ids that are never chosen."""
    max_length: int = 30
    """Most words of a caption; at least 1."""
    length_penalty: float = 0.0
    """Exponent of the length in a caption's score; 0 favours short ones, 1 is the mean."""


@torch.inference_mode()
def beam_search(
    step: StepFunction, state: State, photos: int, *, rules: Rules, width: int
) -> list[list[Hypothesis]]:
    """Keep the ``width`` best beginnings of each caption until ``width`` have ended.

    A beginning that ends leaves the beam and its place with it, so a width of 1 is greedy search.

    Args:
        step: says one word in each row.
        state: the state before the first word, one row a photo.
        photos: B.
        rules: what holds for every caption.
        width: how many beginnings are kept, at least 1.

    Returns:
        For each photo its captions, best first: at least one, at most ``width``.
    """
    trace = _Trace(photos, rules)
    tokens = torch.full((photos,), rules.start).to(state.device)
    totals = torch.zeros(photos, 1)
    places = torch.full((photos,), width)  # beginnings that each photo may still keep
    for t in range(rules.max_length + 1):
        said = step(tokens, state)
        scores = _log_probabilities(said.logits, rules, first=t == 0)  # (R, V)
        rows_each = len(scores) // photos
        if t == rules.max_length:
            trace.cut(t, totals, scores[:, rules.end].view(photos, rows_each).cpu())
            break
        vocabulary = scores.shape[-1]
        joint = totals.to(scores.device).unsqueeze(-1) + scores.view(photos, rows_each, vocabulary)
        best, flat = joint.flatten(1).topk(min(width, rows_each * vocabulary), dim=1)  # (B, W)
        best, flat = best.cpu(), flat.cpu()
        parents, ids = flat // vocabulary, flat % vocabulary
        alive = (torch.arange(best.shape[1]) < places.unsqueeze(1)) & best.isfinite()
        ended = alive & (ids == rules.end)
        rows = torch.arange(photos).unsqueeze(1) * rows_each + parents  # (B, W)
        words = scores[rows.flatten().to(scores.device), ids.flatten().to(scores.device)]
        words = words.cpu().view_as(best)
        trace.add(parents, ids, words, said.attention, rows)
        trace.end(t, best, ended)
        places = places - ended.sum(dim=1)
        totals = torch.where(alive & ~ended, best, -torch.inf)
        if not totals.isfinite().any():
            break
        state = said.state.select(rows.flatten().to(state.device))
        tokens = ids.flatten().to(state.device)
    return trace.captions(width)


@torch.inference_mode()
def sample(
    step: StepFunction,
    state: State,
    photos: int,
    *,
    rules: Rules,
    seed: int,
    count: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> list[list[Hypothesis]]:
    """Draw captions word by word.

    Each draw has its own numbers, which depend on ``seed`` and its place among the ``count`` draws
    of its photo
    alone: a photo's captions do not change with its neighbours.

    Args:
        step: says one word in each row.
        state: the state before the first word, one row a photo.
        photos: B.
        rules: what holds for every caption.
        seed: of the draws.
        count: captions of each photo.
        temperature: greater than 0; less than 1 sharpens the distribution, more flattens it.
        top_k: draw from this many most probable words only.
        top_p: draw from the fewest most probable words that together reach this probability
            (Holtzman et al., "The curious case of neural text degeneration", 2020).

    Returns:
        For each photo its ``count`` captions, best first. Their log-probabilities are the model's
        own, before temperature and cuts.
    """
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(count)]
    state = state.select(torch.arange(photos).repeat_interleave(count).to(state.device))
    tokens = torch.full((photos * count,), rules.start).to(state.device)
    trace = _Trace(photos, rules)
    totals = torch.zeros(photos, count)
    parents = torch.arange(count).expand(photos, count)
    rows = torch.arange(photos * count).view(photos, count)
    for t in range(rules.max_length + 1):
        said = step(tokens, state)
        scores = _log_probabilities(said.logits, rules, first=t == 0).cpu()  # (R, V)
        if t == rules.max_length:
            trace.cut(t, totals, scores[:, rules.end].view(photos, count))
            break
        drawn_from = _narrowed(scores, temperature, top_k, top_p)
        uniform = torch.stack(
            [torch.rand((), generator=g, dtype=torch.float64) for g in generators]
        )
        cumulative = drawn_from.double().cumsum(-1)
        threshold = uniform.repeat(photos).unsqueeze(-1) * cumulative[:, -1:]
        ids = torch.searchsorted(cumulative, threshold, right=True).squeeze(-1)
        ids = ids.clamp_max(scores.shape[-1] - 1).view(photos, count)
        words = scores[rows.flatten(), ids.flatten()].view_as(totals)
        totals = totals + words
        alive = totals.isfinite()
        ended = alive & (ids == rules.end)
        trace.add(parents, ids, words, said.attention, rows)
        trace.end(t, totals, ended)
        totals = totals.masked_fill(ended, -torch.inf)
        if not totals.isfinite().any():
            break
        state, tokens = said.state, ids.flatten().to(state.device)
    return trace.captions(count)


class _Trace:
    """Every step's choices, from which finished captions are read backwards."""

    def __init__(self, photos: int, rules: Rules) -> None:
        self._rules = rules
        self._parents: list[Tensor] = []
        self._ids: list[Tensor] = []
        self._words: list[Tensor] = []
        self._attention: list[Tensor] = []
        # For each photo: score, number of words, row of the last one, log-probability of the end,
        # cut.
        self._ended: list[list[tuple[float, int, int, float, bool]]] = [[] for _ in range(photos)]

    def add(
        self, parents: Tensor, ids: Tensor, words: Tensor, attention: Tensor, rows: Tensor
    ) -> None:
        """One more word of each beginning, all ``(B, W)``; ``attention`` is ``(R, L)``."""
        self._parents.append(parents)
        self._ids.append(ids)
        self._words.append(words)
        self._attention.append(attention.float().cpu()[rows.flatten()].view(*rows.shape, -1))

    def end(self, t: int, totals: Tensor, ended: Tensor) -> None:
        """Beginnings ``(B, W)`` whose word of step ``t`` is the end."""
        for b, w in ended.nonzero().tolist():
            row = int(self._parents[t][b, w])
            self._end(b, float(totals[b, w]), t, row, float(self._words[t][b, w]), cut=False)

    def cut(self, t: int, totals: Tensor, ends: Tensor) -> None:
        """Beginnings ``(B, W)`` alive after ``t`` words are ended there, at the end's own cost."""
        for b, w in totals.isfinite().nonzero().tolist():
            end = float(ends[b, w])
            self._end(b, float(totals[b, w]) + end, t, w, end, cut=True)

    def captions(self, most: int) -> list[list[Hypothesis]]:
        return [
            [self._read(b, *found) for found in sorted(ended, key=lambda e: -e[0])[:most]]
            for b, ended in enumerate(self._ended)
        ]

    def _end(self, b: int, total: float, t: int, row: int, end: float, *, cut: bool) -> None:
        score = total / (t + 1) ** self._rules.length_penalty
        self._ended[b].append((score, t, row, end, cut))

    def _read(self, b: int, score: float, t: int, w: int, end: float, cut: bool) -> Hypothesis:
        """The ``t`` words that lead to row ``w`` after step ``t - 1``."""
        ids: list[int] = []
        words: list[float] = []
        attention: list[Tensor] = []
        for step in reversed(range(t)):
            ids.append(int(self._ids[step][b, w]))
            words.append(float(self._words[step][b, w]))
            attention.append(self._attention[step][b, w])
            w = int(self._parents[step][b, w])
        return Hypothesis(
            tuple(reversed(ids)),
            tuple(reversed(words)),
            end,
            cut,
            torch.stack(attention[::-1]),
            score,
        )


def _log_probabilities(logits: Tensor, rules: Rules, *, first: bool) -> Tensor:
    """Log-probabilities ``(R, V)``, float32, of what may be said; no end before a word."""
    banned = [*rules.forbidden, *([rules.end] if first else [])]
    logits = logits.float()
    if banned:
        logits = logits.index_fill(-1, torch.tensor(banned, device=logits.device), -torch.inf)
    return logits.log_softmax(dim=-1)


def _narrowed(scores: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities ``(R, V)``, not normalised, after temperature and cuts."""
    probabilities = (scores / temperature).softmax(dim=-1)
    if top_k is not None and top_k < scores.shape[-1]:
        least = probabilities.topk(top_k, dim=-1).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
    if top_p is not None and top_p < 1:
        ordered, order = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered
        ordered = ordered.masked_fill(before >= top_p * ordered.sum(-1, keepdim=True), 0.0)
        probabilities = torch.zeros_like(probabilities).scatter_(-1, order, ordered)
    return probabilities
