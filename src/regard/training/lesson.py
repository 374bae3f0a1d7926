"""What an iteration learns from: people's captions, unless others are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from regard.data.batches import Batch, Expected, inputs_and_targets


@dataclass(frozen=True)
class Lesson:
    """Captions to be read, and what their losses count for. Of one process's part of a batch."""

    captions: Tensor
    """``(B, K, T + 1)``, padded."""
    words: int
    """Words to be said in them."""
    divisor: int
    """What the sum of losses is divided by, over all processes."""
    weights: NDArray[np.float32] | None = None
    """``(B, K)``, of each caption's loss; none is 1. No tensor: mixed precision rounds those that
    a module is given."""
    expected: Expected | None = None
    """What teachers expect at each word, ``(B, K, T, k)``; none where there are none."""
    drawn: bool = False
    """Whether the words are learnt among those that can be drawn, as they were."""
    measures: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By name a sum and of how many it is one: means over all processes are logged."""


Teach = Callable[[Batch, int], Lesson]
"""A batch on the learner's device and the number of its iteration, to what it learns there."""


def known_captions(pad: int) -> Teach:
    """Cross-entropy of the captions that people gave; the mean over the words of the batch."""

    def teach(batch: Batch, step: int) -> Lesson:
        words = int((inputs_and_targets(batch.captions)[1] != pad).sum())
        return Lesson(batch.captions, words, batch.targets, batch.weights, batch.expected)

    return teach
