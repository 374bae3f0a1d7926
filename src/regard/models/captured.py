"""The loop of :mod:`regard.models.recurrence` on a GPU, recorded once and started as one.

A step's kernels take microseconds, and to launch one from Python takes as long: launched one by
one, the GPU waits. A CUDA graph holds all launches of a loop, on tensors that stay where they are.
What is given is copied there, and what comes out is copied from there.

A recording is for one number of photos and captions, and its tensors have room for the most words
so far: shorter captions use their beginning. It belongs to one reading at a time, from its way
there to its way back; another reading meanwhile has another recording.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from regard.models.recurrence import Given, Kept, as_rows, backward, forward

MOST = 6
"""Kinds of recordings that are kept: training needs one or two, judging another."""

ROOM = 8
"""Words that the room for them grows by."""

Key = tuple[object, ...]


class _Graphs(NamedTuple):
    forward: torch.cuda.CUDAGraph
    backward: torch.cuda.CUDAGraph | None


class Recording:
    """The loop for captions of up to some number of words.

    Args:
        key: what it is kept under.
        given: of the kind that it is for.
        back: whether it also goes back.
        of_regions: whether the gradient by the regions is asked for.
    """

    def __init__(self, key: Key, given: Given, *, back: bool, of_regions: bool) -> None:
        self.key = key
        self._back, self._of_regions = back, of_regions
        self._make_room(given, len(given.words))

    def forward(self, given: Given) -> tuple[Tensor, Tensor]:
        """The hidden states after each word ``(T, R, N)`` and the attention ``(T, R, L)``."""
        steps = len(given.words)
        if steps > len(self._given.words):
            self._make_room(given, steps)
        _copy(given, _first(self._given, steps))
        if steps not in self._graphs:
            self._graphs[steps] = self._record(steps)
        self._graphs[steps].forward.replay()
        self._steps = steps
        kept = _first_kept(self._kept, steps)
        found = kept.states[1:].clone(), kept.attention.clone()
        if not self._back:
            _give_back(self)
        return found

    def backward(self, d_hidden: Tensor | None, d_attention: Tensor | None) -> Given:
        """The gradients by what was given, once.

        Raises:
            RuntimeError: it has been there already: the recording may be another reading's by now.
        """
        steps, self._steps = self._steps, 0
        if not steps:
            raise RuntimeError(
                "The way back through a recorded recurrence can be gone once only: what it needs "
                "is not kept (retain_graph has no effect on it)."
            )
        by_states, by_attention = as_rows(_first_kept(self._kept, steps), d_hidden, d_attention)
        self._d_hidden[:steps].copy_(by_states)
        if by_attention is None:
            self._d_attention.zero_()
        else:
            self._d_attention[:steps].copy_(by_attention)
        graph = self._graphs[steps].backward
        assert graph is not None
        graph.replay()
        d_given = (None if d is None else d.clone() for d in _first(self._d_given, steps))
        found = Given(*d_given)  # type: ignore[arg-type]
        _give_back(self)
        return found

    def _make_room(self, given: Given, steps: int) -> None:
        steps = -(-steps // ROOM) * ROOM
        words = given.words.new_empty(steps, *given.words.shape[1:])
        blank = (None if x is None else torch.empty_like(x) for x in given[1:])
        self._given = Given(words, *blank)  # type: ignore[arg-type]
        self._kept = Kept.blank(self._given)
        self._graphs: dict[int, _Graphs] = {}
        self._steps = 0
        self._pool = torch.cuda.graph_pool_handle()
        if self._back:
            self._d_hidden = torch.zeros_like(self._kept.states[1:])
            self._d_attention = torch.zeros_like(self._kept.attention)
            d_given = (None if x is None else torch.empty_like(x) for x in self._given)
            self._d_given = Given(*d_given)  # type: ignore[arg-type]
            if not self._of_regions:
                self._d_given = self._d_given._replace(regions=None)

    def _record(self, steps: int) -> _Graphs:
        given, kept = _first(self._given, steps), _first_kept(self._kept, steps)
        ahead = _captured(lambda: forward(given, kept), self._pool)
        if not self._back:
            return _Graphs(ahead, None)
        d_given = _first(self._d_given, steps)

        def back() -> None:
            found = backward(
                given,
                kept,
                self._d_hidden[:steps],
                self._d_attention[:steps],
                of_regions=self._of_regions,
            )
            _copy(found, d_given)

        return _Graphs(ahead, _captured(back, self._pool))


def take(given: Given, *, back: bool, of_regions: bool) -> Recording:
    """A recording for one reading of what is given."""
    device = given.keys.device
    kind = ((tuple(x.shape[-2:]), x.dtype) if x is not None else None for x in given)
    key = (device, len(given.keys), back, of_regions, *kind)
    free = _FREE.setdefault(key, [])
    _FREE.move_to_end(key)
    while len(_FREE) > MOST:
        _FREE.popitem(last=False)
    return free.pop() if free else Recording(key, given, back=back, of_regions=of_regions)


_FREE: OrderedDict[Key, list[Recording]] = OrderedDict()
"""Those that no reading has."""


def _give_back(recording: Recording) -> None:
    if recording.key in _FREE:
        _FREE[recording.key].append(recording)


def _captured(run: Callable[[], None], pool: Any) -> torch.cuda.CUDAGraph:
    """What ``run`` launches; it runs once beforehand, so that all kernels are there."""
    with torch.autocast("cuda", enabled=False):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            run()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Another thread may be reading the next photos meanwhile.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            run()
    return graph


def _first(given: Given, steps: int) -> Given:
    return given._replace(words=given.words[:steps])


def _first_kept(kept: Kept, steps: int) -> Kept:
    return Kept(
        kept.pasts[:steps], kept.states[: steps + 1], kept.cells[: steps + 1], kept.gates[:steps],
        kept.attention[:steps], kept.contexts[:steps],
        None if kept.opened is None else kept.opened[:steps],
    )  # fmt: skip


def _copy(values: Sequence[Tensor | None], into: Sequence[Tensor | None]) -> None:
    for value, place in zip(values, into, strict=True):
        if value is not None and place is not None:
            place.copy_(value)
