"""What every decoder is: a machine that passes its state as a value.

Nothing about a request is stored on a module, so threads and actors can share one model, and
search can reorder, repeat and drop hypotheses by asking the state for other rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn


class State(Protocol):
    """What a decoder knows between two words: a row a hypothesis, a photo's rows together."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        ...

    def select(self, indices: Tensor) -> Self:
        """The state of other rows: ``indices`` ``(R,)`` of the present ones, repeats too."""
        ...


class Parts(NamedTuple):
    """A state as plain tensors by name, the same names for every state of a decoder."""

    rows: dict[str, Tensor]
    """Each ``(R, ...)``, what differs between the captions of a photo."""
    photos: dict[str, Tensor]
    """Each ``(B, ...)``, what is known of the photos and stays as it is."""


class Read(NamedTuple):
    """What a decoder makes of known captions."""

    hidden: Tensor
    """``(B, K, T, N)``, what it holds after each word, for :meth:`Decoder.logits`."""
    attention: Tensor
    """``(B, K, T, L)``, where it looked to say the word that follows; each row sums to 1."""


class Step(NamedTuple):
    """What a decoder makes of one more word for each row."""

    logits: Tensor
    """``(R, V)``, unnormalised scores of the next word."""
    attention: Tensor
    """``(R, L)``, where it looked."""
    state: State
    """The state after the word."""


class Speaker(Protocol):
    """What captions can be searched with: a decoder, or one that was exported."""

    def start(self, regions: Tensor) -> State:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""
        ...

    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word, ``(R,)`` ids, in each row of a state of its own."""
        ...


class Decoder(nn.Module, ABC):
    """Writes captions for regions; all words at once or one at a time give the same numbers."""

    embedding: nn.Embedding
    """The words' vectors, ``(V, E)``."""

    @abstractmethod
    def read(self, regions: Tensor, captions: Tensor) -> Read:
        """Read known captions, all words at once.

        Args:
            regions: ``(B, L, D)``, float.
            captions: ``(B, K, T)``, word ids, beginning with ``<START>``. What follows a word
                never changes what was made of it, so padding may stand at the end.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next word, ``(..., V)``, from hidden values ``(..., N)``."""

    def forward(self, regions: Tensor, captions: Tensor) -> Tensor:
        """Scores of each next word: ``(B, L, D)`` and ``(B, K, T)`` to ``(B, K, T, V)``."""
        return self.logits(self.read(regions, captions).hidden)

    @abstractmethod
    def start(self, regions: Tensor) -> State:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""

    @abstractmethod
    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word, ``(R,)`` ids, in each row of a state of its own."""

    @abstractmethod
    def apart(self, state: Any) -> Parts:
        """A state of its own as plain tensors."""

    @abstractmethod
    def together(self, parts: Parts, photo: Tensor) -> State:
        """The state of these parts, its rows those of all photos in their order, to each as many.

        Args:
            parts: as :meth:`apart` has them.
            photo: ``(R,)``, which photo each row describes.
        """


def in_order(photos: int, each: int, device: torch.device) -> Tensor:
    """Which photo each row describes, ``(R,)``, where each of B photos has as many rows."""
    return torch.arange(photos, device=device).unsqueeze(1).expand(photos, each).flatten()


def evenly(photo: Tensor, photos: int) -> bool:
    """Whether rows belong to all photos in their order, to each as many.

    Then what is known of the photos can be used as it is; otherwise it is copied for each row.

    Args:
        photo: ``(R,)``, which photo each row describes.
        photos: B.
    """
    each, rest = divmod(len(photo), photos)
    in_order = torch.arange(photos, device=photo.device)
    return rest == 0 and bool((photo.view(photos, each).t() == in_order).all())
