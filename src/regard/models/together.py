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
        readers: n decoders, each with the place of the regions that it reads.
        shapes: L and D of the regions at each place.
        gaze: those of the n whose attention is over the same grid of the same photo: it looks where
            they look in the mean.
    """

    def __init__(
        self,
        readers: Sequence[tuple[Speaker, int]],
        shapes: Sequence[tuple[int, int]],
        gaze: Sequence[int],
    ) -> None:
        self._readers, self._shapes, self._gaze = list(readers), list(shapes), list(gaze)

    def start(self, regions: Tensor) -> States:
        """The state before the first word: of photos as :func:`side_by_side` gives them."""
        parts = regions.split([length * width for length, width in self._shapes], dim=1)  # type: ignore[no-untyped-call]
        each = [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
        return States(tuple(speaker.start(each[place]) for speaker, place in self._readers))

    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word in each row; the logits are log-probabilities."""
        steps = [
            speaker.step(tokens, one)
            for (speaker, _), one in zip(self._readers, state.each, strict=True)
        ]
        logits = torch.stack([step.logits.float().log_softmax(-1) for step in steps])  # (n, R, V)
        looked = [steps[reader].attention for reader in self._gaze]
        return Step(
            logits.logsumexp(dim=0) - math.log(len(steps)),
            torch.stack(looked).mean(dim=0),
            States(tuple(step.state for step in steps)),
        )

    def each(self, state: Any) -> list[tuple[Speaker, State]]:
        """The decoders, each with its own of :meth:`start`'s states."""
        return [(speaker, own) for (speaker, _), own in zip(self._readers, state.each, strict=True)]


def side_by_side(regions: Sequence[Tensor]) -> Tensor:
    """Regions of several places, each ``(B, L, D)``, as one tensor ``(B, L1 D1 + L2 D2 ...)``."""
    return torch.cat([one.flatten(1) for one in regions], dim=1)
