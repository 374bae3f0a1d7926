"""What a run trains: a captioner of our own, or one that others finished."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn import Parameter

from regard.config import Config
from regard.data.batches import Captions, PhotoSource
from regard.training.lesson import Teach

Begin = Callable[[Config, Mapping[str, Any]], None]
"""Told, once all could be had and before any work, the settings in full and what else makes two
runs the same run."""

Say = Callable[[Tensor], list[tuple[str, ...]]]
"""Photos as ``Trainee.judging`` gives them, on the learner's device, to their captions' words."""

Keep = Callable[[Path, Mapping[str, Any], str], None]
"""Writes the model folder: where, what was measured, the name of the data."""


@dataclass(frozen=True)
class Trainee:
    """A captioner that is ready to be trained, with the captions as it reads them."""

    learner: nn.Module
    """Prepared photos and captions to sums, as :class:`regard.training.learner.Learner`."""
    rates: Sequence[tuple[Sequence[Parameter], float]]
    """What is trained, each with its highest learning rate."""
    captions: Captions
    """Of the photos that are learnt."""
    known: Captions
    """Of the photos that judge."""
    source: PhotoSource
    """The photos that are learnt."""
    judging: PhotoSource
    """The photos that judge."""
    at_once: int
    """Photos that are judged at once."""
    speaker: Callable[[], Say]
    """Makes what captions with the weights as they are now."""
    keep: Keep
    teach: Teach
    """What is learnt from each batch."""
    watched: bool = False
    """Whether epochs are judged for the faults that a reward teaches."""
