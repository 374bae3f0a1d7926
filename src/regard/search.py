"""How a caption is chosen, over ids, scores and a step function: it knows neither words nor models.

It always returns a caption of at least one word, and never an id that was forbidden.

Two kinds of words are not said. What is forbidden everywhere, and the end before the least length,
is left out of the distribution: the others share its probability. What may not follow one
beginning, such as a phrase said twice, is left out of the choice alone: were its share given to
others, a beginning that wants to repeat itself would be rewarded for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.errors import ConfigError
from regard.models.beams import Searched, Wanted
from regard.models.decoder import State, Step
from regard.models.native import native_plain

StepFunction = Callable[[Tensor, State], Step]

Barred = Callable[[Sequence[int]], Iterable[int]]
"""The ids of a beginning, to those that may not follow it."""


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
    barred: Barred | None = None
    """What may not follow a beginning; the prefix is always said. Where nothing else is left, the
    caption ends."""
    prefix: tuple[int, ...] = ()
    """Words that every caption begins with; no more than the greatest length."""
    min_length: int = 1
    """Fewest words of a caption where any may follow; at least 1, at most the greatest length."""
    max_length: int = 30
    """Most words of a caption; at least 1."""
    length_penalty: float = 0.0
    """Exponent of the length in a caption's score; 0 favours short ones, 1 is the mean."""

    @property
    def fewest(self) -> int:
        """Words before which no caption ends."""
        return max(1, self.min_length, len(self.prefix))

    def plain(self, width: int) -> Wanted | None:
        """A beam search by these rules, where they bar no phrase and want no prefix."""
        repeats = 0 if self.barred is None else getattr(self.barred, "repeats", None)
        if self.prefix or repeats is None:
            return None
        forbidden = tuple(i for i in self.forbidden if i != self.end)
        return Wanted(width, self.start, self.end, forbidden, self.fewest, self.max_length, repeats)


@torch.inference_mode()
def beam_search(
    step: StepFunction,
    state: State,
    photos: int,
    *,
    rules: Rules,
    width: int,
    groups: int = 1,
    diversity: float = 0.0,
    at_once: Callable[[State, Wanted], Searched | None] | None = None,
) -> list[list[Hypothesis]]:
    """Keep the ``width`` best beginnings of each caption until ``width`` have ended.

    A beginning that ends leaves the beam and its place with it, so a width of 1 is greedy search.

    In several groups each has its part of the width, and they choose their words one after
    another: a group finds every word less probable by ``diversity`` (nats) for each time that an
    earlier group of the photo chose it at the same place (Vijayakumar et al., "Diverse beam
    search", 2018, section 3, with the Hamming distance; the end is not counted, so that groups
    need not differ in length). That moves the choice; captions' scores are the model's own.

    Args:
        step: says one word in each row.
        state: the state before the first word, one row a photo.
        photos: B.
        rules: what holds for every caption.
        width: how many beginnings are kept, at least 1.
        groups: G, a divisor of the width.
        diversity: lambda, at least 0.
        at_once: does the same in one call where it can, from the same state; a caption is the same
            to the last bit.

    Returns:
        For each photo its captions, best first: at least one, at most ``width``, no two alike.

    Raises:
        ConfigError: the rules leave no word to begin with.
    """
    wanted = rules.plain(width) if groups == 1 else None
    if at_once is not None and wanted is not None:
        searched = at_once(state, wanted)
        if searched is not None:
            return _Trace.of(searched, photos, rules).captions(width)
    if groups > 1:
        state = state.select(torch.arange(photos).repeat_interleave(groups).to(state.device))
    beams, most = photos * groups, width // groups  # a group is searched as a photo is
    trace, beginnings = _Trace(beams, rules), _Beginnings(beams, rules)
    tokens = torch.full((beams,), rules.start).to(state.device)
    # What is kept of the beams is small, and of small arrays numpy's calls cost a part of torch's.
    totals = np.zeros((beams, 1), np.float32)
    row = np.arange(beams)[:, None]  # of the state, where a beginning is going on; else -1
    places = np.full(beams, most)  # beginnings that each beam may still keep
    beam = np.arange(beams)  # which of them are going on
    for t in range(rules.max_length + 1):
        said = step(tokens, state)
        scores = _log_probabilities(said.logits, rules, t)  # (R, V)
        if t == rules.max_length:
            trace.cut(t, totals, row, scores[:, rules.end].cpu().numpy())
            break
        scores = beginnings.choices(scores, said.logits, t)
        # Beginnings (P, W) of the beams whose captions have not all ended; R of them are going on.
        if groups == 1:
            totals, parents, ids, words = _best(scores, totals, row, most)
        else:
            totals, parents, ids, words = _best_apart(
                scores, totals, row, most, places=places, beam=beam, groups=groups,
                diversity=diversity, end=rules.end,
            )  # fmt: skip
        rows = np.take_along_axis(row, parents, 1)
        trace.add(parents, ids, words, said.attention, rows)
        going = np.isfinite(totals) & (np.arange(totals.shape[1]) < places[:, None])
        ended: _Bools = going & (ids == rules.end)
        if ended.any():
            trace.end(t, totals, ended)
            places = places - ended.sum(axis=1)
            going &= ~ended
        unfinished: _Bools = np.any(going, axis=1)  # (P,)
        if not unfinished.any():
            break
        if not unfinished.all():
            trace.leave_out(~unfinished)
            totals, going = totals[unfinished], going[unfinished]
            places, beam = places[unfinished], beam[unfinished]
            rows, ids = rows[unfinished], ids[unfinished]
        before, now = rows[going], ids[going]  # (R,)
        state = said.state.select(torch.from_numpy(before).to(state.device))
        tokens = torch.from_numpy(now).to(state.device)
        beginnings.go_on(before, now)
        row = np.full(going.shape, -1)
        row[going] = np.arange(len(now))
    found = trace.captions(most)
    return [_merged(found[b : b + groups]) for b in range(0, beams, groups)]


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
    of its photo alone: a photo's captions do not change with its neighbours.

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

    Raises:
        ConfigError: the rules leave no word to begin with.
    """
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + i) for i in range(count)]
    state = state.select(torch.arange(photos).repeat_interleave(count).to(state.device))
    tokens = torch.full((photos * count,), rules.start).to(state.device)
    trace, beginnings = _Trace(photos, rules), _Beginnings(photos * count, rules)
    totals = torch.zeros(photos, count)
    parents = np.broadcast_to(np.arange(count), (photos, count))
    rows = torch.arange(photos * count).view(photos, count)
    for t in range(rules.max_length + 1):
        said = step(tokens, state)
        scores = _log_probabilities(said.logits, rules, t)  # (R, V)
        if t == rules.max_length:
            ends = scores[:, rules.end].cpu().numpy()
            trace.cut(t, totals.numpy(), rows.masked_fill(~totals.isfinite(), -1).numpy(), ends)
            break
        scores = beginnings.choices(scores, said.logits, t).cpu()
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
        trace.add(parents, ids.numpy(), words.numpy(), said.attention, rows.numpy())
        trace.end(t, totals.numpy(), ended.numpy())
        totals = totals.masked_fill(ended, -torch.inf)
        if not totals.isfinite().any():
            break
        state, tokens = said.state, ids.flatten().to(state.device)
        beginnings.go_on(rows.flatten().numpy(), ids.flatten().numpy())
    return trace.captions(count)


class Draws(NamedTuple):
    """Captions that were drawn for B photos, K of each."""

    ids: Tensor
    """``(B, K, T)``: words and the end after them, then -1; without an end what was cut."""
    log_probabilities: Tensor
    """``(B, K, T)``, float32: of each of them when it was drawn; 0 after the end."""


@torch.no_grad()
def draw(step: StepFunction, state: State, *, rules: Rules, uniform: Tensor) -> Draws:
    """Draw captions word by word, as :func:`sample`, for what learns from many: ids alone.

    What is drawn depends on a photo's own numbers. Captions that have ended are left out of the
    computation. The rules' ``barred`` and ``prefix`` are not for learning, and not regarded.

    Args:
        step: says one word in each row.
        state: the state before the first word, one row a photo.
        rules: what holds for every caption.
        uniform: ``(B, K, T)``, float32, on the device of the state, from 0 to below 1: which word
            is taken at each place. T is the most words, the end among them.
    """
    photos, count, most = uniform.shape
    rows = torch.arange(photos * count, device=uniform.device)  # which of B K are going on
    uniform = uniform.flatten(0, 1)
    ids = torch.full((photos * count, most), -1, device=uniform.device)
    taken = torch.zeros(photos * count, most, device=uniform.device)
    tokens = torch.full((photos,), rules.start, device=uniform.device)
    for t in range(most):
        said = step(tokens, state)
        scores, state = _log_probabilities(said.logits, rules, t), said.state  # (R, V)
        if t == 0:  # all captions of a photo begin alike
            each = rows // count
            scores, state = scores[each], state.select(each)
        cumulative = scores.exp().cumsum(-1)
        # Below the last of the sums: a float32 below 1, times another, is rounded to below it.
        place = uniform[rows, t, None] * cumulative[:, -1:]
        tokens = torch.searchsorted(cumulative, place, right=True).squeeze(-1)  # (R,)
        ids[rows, t] = tokens
        taken[rows, t] = scores.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        going = (tokens != rules.end).nonzero().squeeze(-1)
        if not len(going):
            break
        if len(going) < len(rows):
            rows, tokens, state = rows[going], tokens[going], state.select(going)
    ids, taken = ids[:, : t + 1], taken[:, : t + 1]
    return Draws(ids.reshape(photos, count, -1), taken.reshape(photos, count, -1))


_Floats = NDArray[np.float32]
_Ints = NDArray[np.int64]
_Bools = NDArray[np.bool_]


class _Chosen(NamedTuple):
    """What one step chose for P photos, W places each. Lists: single values of tensors are slow."""

    at: dict[int, int]
    """Which of the P a photo is."""
    parents: list[list[int]]
    """Which place each goes on from."""
    ids: list[list[int]]
    """The word."""
    words: list[list[float]]
    """Its log-probability."""
    attention: Tensor
    """``(R, L)``: where the rows looked."""
    rows: list[list[int]]
    """Which of them each goes on from."""


class _Trace:
    """Every step's choices, from which finished captions are read backwards."""

    def __init__(self, photos: int, rules: Rules) -> None:
        self._rules = rules
        self._steps: list[_Chosen] = []
        self._going = list(range(photos))
        # For each photo: score, number of words, row of the last one, log-probability of the end,
        # cut.
        self._ended: list[list[tuple[float, int, int, float, bool]]] = [[] for _ in range(photos)]

    @classmethod
    def of(cls, searched: Searched, photos: int, rules: Rules) -> _Trace:
        """That of a search which is over."""
        trace = cls(photos, rules)
        at = {b: b for b in range(photos)}
        lists = (x.tolist() for x in (searched.parents, searched.ids, searched.words))
        chosen = zip(*lists, searched.attention, searched.rows.tolist(), strict=True)
        trace._steps = [_Chosen(at, *each) for each in chosen]
        for p, t, place, cut, total, end in searched.ended:
            trace._end(p, total, t, place, end=end, cut=cut)
        return trace

    def add(
        self, parents: _Ints, ids: _Ints, words: _Floats, attention: Tensor, rows: _Ints
    ) -> None:
        """One more word of each beginning, all ``(P, W)``; ``attention`` is ``(R, L)``."""
        at = {b: p for p, b in enumerate(self._going)}
        lists = parents.tolist(), ids.tolist(), words.tolist()
        self._steps.append(_Chosen(at, *lists, attention, rows.tolist()))

    def end(self, t: int, totals: _Floats, ended: _Bools) -> None:
        """Beginnings ``(P, W)`` whose word of step ``t`` is the end."""
        chosen = self._steps[t]
        for p, w in np.argwhere(ended).tolist():
            total, parent = float(totals[p, w]), chosen.parents[p][w]
            self._end(p, total, t, parent, end=chosen.words[p][w], cut=False)

    def cut(self, t: int, totals: _Floats, row: _Ints, ends: _Floats) -> None:
        """Beginnings ``(P, W)`` alive after ``t`` words are ended there, at the end's own cost.

        ``ends`` is ``(R,)``, and ``row`` says which of them is a beginning's.
        """
        for p, w in np.argwhere(row >= 0).tolist():
            end = float(ends[row[p, w]])
            self._end(p, float(totals[p, w]) + end, t, w, end=end, cut=True)

    def leave_out(self, finished: _Bools) -> None:
        """From now on P is less by the photos ``(P,)`` that are finished."""
        self._going = [
            b for b, over in zip(self._going, finished.tolist(), strict=True) if not over
        ]

    def captions(self, most: int) -> list[list[Hypothesis]]:
        looked = [chosen.attention.float().cpu().numpy() for chosen in self._steps]
        return [
            [self._read(b, looked, *found) for found in sorted(ended, key=lambda e: -e[0])[:most]]
            for b, ended in enumerate(self._ended)
        ]

    def _end(self, p: int, total: float, t: int, row: int, *, end: float, cut: bool) -> None:
        score = total / (t + 1) ** self._rules.length_penalty
        self._ended[self._going[p]].append((score, t, row, end, cut))

    def _read(
        self, b: int, looked: Sequence[_Floats], score: float, t: int, w: int, end: float, cut: bool
    ) -> Hypothesis:
        """The ``t`` words that lead to row ``w`` after step ``t - 1``."""
        path: list[tuple[int, float, _Floats]] = []
        for chosen, attention in zip(self._steps[t - 1 :: -1], looked[t - 1 :: -1], strict=True):
            p = chosen.at[b]
            path.append((chosen.ids[p][w], chosen.words[p][w], attention[chosen.rows[p][w]]))
            w = chosen.parents[p][w]
        ids, words, attentions = zip(*reversed(path), strict=True)
        found = torch.from_numpy(np.stack(attentions))
        return Hypothesis(ids, words, end, cut, found, score)


class _Best(NamedTuple):
    """The best continuations of P beams, W of each, ``(P, W)``; none where the total is -inf."""

    totals: _Floats
    parents: _Ints
    """Places among the beginnings."""
    ids: _Ints
    words: _Floats
    """Log-probabilities."""


def _best(scores: Tensor, totals: _Floats, row: _Ints, most: int) -> _Best:
    """What each beam goes on with.

    Args:
        scores: ``(R, V)``, of the next words of the beginnings that are going on.
        totals: ``(P, W)``, of the beginnings.
        row: ``(P, W)``, which of the R each beginning is; -1 where it is not going on.
        most: continuations of each beam.
    """
    each = min(most, scores.shape[-1])
    width = min(most, row.shape[1] * each)
    if (native := native_plain("go_on", scores)) is not None:
        shape = len(row), width
        best = (
            torch.empty(shape), torch.empty(shape, dtype=torch.long),
            torch.empty(shape, dtype=torch.long), torch.empty(shape),
        )  # fmt: skip
        known = torch.from_numpy(row), torch.from_numpy(totals)
        native(scores.contiguous(), *known, *best, *row.shape, scores.shape[-1], each, width)
        return _Best(*(x.numpy() for x in best))
    found = scores.topk(each, dim=1)  # (R, W)
    values, indices = found.values.cpu().numpy(), found.indices.cpu().numpy()
    # All continuations that can be among the best, (P, W x W).
    going = row >= 0
    joint = np.where(going, totals, -np.inf)[:, :, None] + values[row]
    joint = joint.reshape(len(row), -1)
    chosen = np.argsort(-joint, axis=1, kind="stable")[:, :width]  # (P, W)
    words, ids = values[row].reshape(joint.shape), indices[row].reshape(joint.shape)
    sums, ids, words = (np.take_along_axis(x, chosen, 1) for x in (joint, ids, words))
    return _Best(sums, chosen // each, ids, words)


def _best_apart(
    scores: Tensor,
    totals: _Floats,
    row: _Ints,
    most: int,
    *,
    places: _Ints,
    beam: _Ints,
    groups: int,
    diversity: float,
    end: int,
) -> _Best:
    """As :func:`_best`, each group after the earlier ones of its photo.

    Args:
        scores: ``(R, V)``, as of :func:`_best`.
        totals: ``(P, W)``, too.
        row: ``(P, W)``, too.
        most: continuations of each beam.
        places: ``(P,)``: how many continuations of a beam count.
        beam: ``(P,)``: number of the photo times ``groups``, plus that of the group.
        groups: G.
        diversity: lambda.
        end: id that ends a caption, which all groups may say at once.
    """
    known: _Floats = scores.cpu().numpy()
    spoken = np.zeros((int(beam.max()) // groups + 1, known.shape[-1]), np.float32)  # how often
    order: list[_Ints] = []
    parts: list[_Best] = []
    for group in range(groups):
        its = (beam % groups == group).nonzero()[0]  # (P',)
        photo = beam[its] // groups
        rows = row[its]  # (P', W)
        here = rows >= 0
        less = np.repeat(np.float32(diversity) * spoken[photo], here.sum(axis=1), axis=0)  # (R', V)
        own = np.where(here, np.cumsum(here).reshape(here.shape) - 1, -1)
        found = _best(torch.from_numpy(known[rows[here]] - less), totals[its], own, most)
        words = known[np.take_along_axis(rows, found.parents, 1), found.ids]  # nothing taken off
        real = np.isfinite(found.totals)
        words = np.where(real, words, -np.inf)
        before = np.take_along_axis(totals[its], found.parents, 1)
        found = found._replace(totals=before + words, words=words)
        counted = real & (np.arange(real.shape[1]) < places[its][:, None]) & (found.ids != end)
        at = np.broadcast_to(photo[:, None], found.ids.shape)[counted]
        np.add.at(spoken, (at, found.ids[counted]), 1)
        order.append(its)
        parts.append(found)
    back = np.concatenate(order).argsort()
    return _Best(*(np.concatenate(part)[back] for part in zip(*parts, strict=True)))


def _merged(groups: list[list[Hypothesis]]) -> list[Hypothesis]:
    """The captions of one photo's groups, best first, each once."""
    if len(groups) == 1:
        return groups[0]
    once = {found.ids: found for group in groups for found in group}
    return sorted(once.values(), key=lambda found: -found.score)


class _Beginnings:
    """What was said in each row, and what may follow it: only where the rules ask for it."""

    def __init__(self, rows: int, rules: Rules) -> None:
        self._rules = rules
        self._said: list[tuple[int, ...] | None] = [()] * rows  # none where the caption ended

    def choices(self, scores: Tensor, logits: Tensor, t: int) -> Tensor:
        """Log-probabilities ``(R, V)`` with minus infinity for what may not be chosen.

        Args:
            scores: ``(R, V)``, which may be changed.
            logits: ``(R, V)``, from which they are.
            t: words before.
        """
        rules = self._rules
        if t < len(rules.prefix):
            only = torch.full_like(scores, -torch.inf)
            only[:, rules.prefix[t]] = scores[:, rules.prefix[t]]
            return only
        if rules.barred is None:
            return scores
        open = [(row, said) for row, said in enumerate(self._said) if said is not None]
        pairs = [(row, word) for row, said in open for word in rules.barred(said)]
        if not pairs:
            return scores
        rows, ids = torch.tensor(pairs, device=scores.device).unbind(1)
        scores[rows, ids] = -torch.inf
        silent = ~scores.isfinite().any(dim=1)
        if not silent.any():
            return scores
        if t == 0:
            raise ConfigError(
                "No caption can be begun: every word of the vocabulary is forbidden. Forbid fewer."
            )
        ends = _log_probabilities(logits[silent], replace(rules, min_length=1), t)
        scores[silent, rules.end] = ends[:, rules.end]
        return scores

    def go_on(self, rows: _Ints, ids: _Ints) -> None:
        """From now on the rows are these, each with one more word; both are ``(R,)``."""
        if self._rules.barred is not None:
            before = [self._said[row] for row in rows.tolist()]
            self._said = [
                None if said is None or word == self._rules.end else (*said, word)
                for said, word in zip(before, ids.tolist(), strict=True)
            ]


def _log_probabilities(logits: Tensor, rules: Rules, t: int) -> Tensor:
    """Log-probabilities ``(R, V)``, float32, after ``t`` words; no end before there are enough."""
    banned = [*rules.forbidden, *([rules.end] if t < rules.fewest else [])]
    logits = logits.float()
    if (native := native_plain("log_probabilities", logits)) is not None:
        scores = torch.empty_like(logits, memory_format=torch.contiguous_format)
        left_out = torch.tensor(banned, dtype=torch.long)
        native(logits.contiguous(), left_out, scores, *logits.shape, len(banned))
        return scores
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
