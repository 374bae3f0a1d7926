"""Weights averaged over the iterations: what is judged and written, while others are trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Average:
    """An exponential moving average of weights.

    Averages: Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    Over the first iterations less is kept, so that the first weights are soon forgotten.

    Args:
        values: what is trained, by name; read at each :meth:`update`.
        decay: share that an iteration keeps, at least 0 and below 1.
    """

    def __init__(self, values: Mapping[str, Tensor], decay: float) -> None:
        self._values = [v for v in values.values() if v.is_floating_point()]
        self._names = [name for name, v in values.items() if v.is_floating_point()]
        self._decay = decay
        self._means = [v.detach().clone() for v in self._values]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after iteration ``step``, from 0."""
        kept = min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._means, self._values, 1 - kept)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """The averaged weights in the place of the others."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def state(self) -> dict[str, Tensor]:
        """What :meth:`restore` takes."""
        return dict(zip(self._names, self._means, strict=True))

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        for name, mean in zip(self._names, self._means, strict=True):
            mean.copy_(state[name])

    @torch.no_grad()
    def _swap(self) -> None:
        for value, mean in zip(self._values, self._means, strict=True):
            kept = value.clone()
            value.copy_(mean)
            mean.copy_(kept)
