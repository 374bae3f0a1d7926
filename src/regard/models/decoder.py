"""What every decoder is: a machine that passes its state as a value.

Nothing about a request is stored on a module, so threads and actors can share one model, and
search can reorder, repeat and drop hypotheses by asking the state for other rows.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn

from regard.models.devices import Precision
from regard.models.fast import narrow_products


class State(Protocol):
    """What a decoder knows between two words: a row a hypothesis, a photo's rows together."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        ...

    def select(self, indices: Tensor) -> Self:
        """The state of other rows: ``indices`` ``(R,)`` of the present ones, repeats too."""
        ...


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

    def fast(self, precision: Precision) -> Self:
        """A copy in eval mode for :meth:`start` and :meth:`step` (:mod:`regard.models.fast`).

        Args:
            precision: of the products, but for the scores of the vocabulary, which stay float32.
        """
        copied = copy.deepcopy(self).requires_grad_(False).eval()
        if precision == "bf16":
            narrow_products(copied, but=copied.wide())
        return copied

    def wide(self) -> Sequence[nn.Module | None]:
        """Linear layers that have to be float32 for the words to be told apart."""
        return ()

    @abstractmethod
    def start(self, regions: Tensor) -> State:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""

    @abstractmethod
    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word, ``(R,)`` ids, in each row of a state of its own."""


class Rows(NamedTuple):
    """Which photos some rows of a state describe."""

    photo: Tensor
    """``(R,)``, which of the photos that are left each row describes."""
    left: Tensor | None
    """``(B',)``, those of the B photos that still have rows, if some have none."""
    even: bool
    """Whether all that are left have as many rows, in their order: then what is known of a photo
    can be used as it is. Otherwise it is copied for each row."""


def rows_of(photo: Tensor, photos: int) -> Rows:
    """Rows of a state after others were left out, repeated or put in another order.

    Args:
        photo: ``(R,)``, which of B photos each row describes.
        photos: B.
    """
    left: Tensor = torch.unique(photo)
    if len(left) == photos:
        return Rows(photo, None, _even(photo, photos))
    photo = torch.searchsorted(left, photo)
    return Rows(photo, left, _even(photo, len(left)))


def _even(photo: Tensor, photos: int) -> bool:
    each, rest = divmod(len(photo), photos)
    in_order = torch.arange(photos, device=photo.device)
    return rest == 0 and bool((photo.view(photos, each).t() == in_order).all())
