"""Several decoders that choose each word together.

The mean of their probabilities, as of an ensemble of classifiers (Sutskever, Vinyals and Le,
"Sequence to sequence learning with neural networks", 2014, section 3.6, for captions Vinyals et
al., "Show and tell: lessons learned", 2016, section 4.3)::

    p(w | words before, photo) = 1/n sum_i p_i(w | words before, regions of i)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regard.models.decoder import Speaker, State, Step


@dataclass(frozen=True, slots=True)
class States:
    """The states of all decoders, each with the same rows."""

    each: tuple[State, ...]

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.each[0].device

    def select(self, indices: Tensor) -> States:
        """The states of other rows: ``indices`` ``(R,)`` of the present ones, repeats too."""
        return States(tuple(state.select(indices) for state in self.each))


class Together(Speaker):
    """Decoders of one vocabulary as one.

    Args:
        speakers: n of them.
        sources: which of the encoders each reads, ``n`` indices.
        shapes: L and D of each encoder's regions.
    """

    def __init__(
        self, speakers: Sequence[Speaker], sources: Sequence[int], shapes: Sequence[tuple[int, int]]
    ) -> None:
        self._speakers = list(zip(speakers, sources, strict=True))
        self._shapes = list(shapes)

    def start(self, regions: Tensor) -> States:
        """The state before the first word: of photos as :func:`side_by_side` gives them."""
        parts = regions.split([length * width for length, width in self._shapes], dim=1)  # type: ignore[no-untyped-call]
        each = [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return States(tuple(speaker.start(each[source]) for speaker, source in self._speakers))

    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word in each row.

        The logits are log-probabilities. It looked where the decoders looked in the mean, of those
        that see the grid of the first.
        """
        steps = [
            speaker.step(tokens, one)
            for (speaker, _), one in zip(self._speakers, state.each, strict=True)
        ]
        logits = torch.stack([step.logits.float().log_softmax(-1) for step in steps])  # (n, R, V)
        looked = [s.attention for s in steps if s.attention.shape == steps[0].attention.shape]
        return Step(
            logits.logsumexp(dim=0) - math.log(len(steps)),
            torch.stack(looked).mean(dim=0),
            States(tuple(step.state for step in steps)),
        )


def side_by_side(regions: Sequence[Tensor]) -> Tensor:
    """Regions of several encoders, each ``(B, L, D)``, as one tensor ``(B, L1 D1 + L2 D2 ...)``."""
    return torch.cat([one.flatten(1) for one in regions], dim=1)
