"""What every decoder is: a machine that passes its state as a value.

Nothing about a request is stored on a module, so threads and actors can share one model, and
search can reorder, repeat and drop hypotheses by asking the state for other rows.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.models.beams import Searched, Wanted
from regard.models.devices import DTYPES, Precision, fast_precision, lowered
from regard.models.fast import pack_products


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


class Real:
    """Which of the places ``(B, K, T)`` of padded captions hold words, and are computed.

    Their number is different in every batch, and what multiplies matrices on a CPU is made anew for
    every size. So a few places of padding are computed too, up to a multiple of ``block``.

    Args:
        real: ``(B, K, T)``, bool.
        block: of what M is a multiple, unless all places are computed.
    """

    def __init__(self, real: Tensor, *, block: int = 128) -> None:
        self.shape = real.shape
        flat = real.flatten()
        words, padding = flat.nonzero().squeeze(1), (~flat).nonzero().squeeze(1)
        self.places = torch.cat([words, padding[: -len(words) % block]])
        """``(M,)``: of all words, in their order, then of some padding."""
        count = len(self.places)
        self._rows = torch.full((real.numel(),), count, device=real.device)
        self._rows[self.places] = torch.arange(count, device=real.device)

    def pick(self, padded: Tensor) -> Tensor:
        """What stands in these places of ``(B, K, T, C)``, ``(M, C)``."""
        picked: Tensor = _Pick.apply(padded.flatten(0, 2), self.places, self._rows)  # type: ignore[no-untyped-call]
        return picked

    def spread(self, values: Tensor) -> Tensor:
        """Its inverse, with zeros elsewhere: ``(M, C)`` to ``(B, K, T, C)``."""
        padded: Tensor = _Pick.apply(values, self._rows, self.places)  # type: ignore[no-untyped-call]
        return padded.view(*self.shape, -1)


class _Pick(torch.autograd.Function):
    """Rows by their indices, where there is one; the way back is the same by the inverse's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(indices, back)
        return _Pick.rows(x, indices, back)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, None, None]:
        indices, back = ctx.saved_tensors
        return _Pick.rows(d, back, indices), None, None

    @staticmethod
    def rows(x: Tensor, indices: Tensor, back: Tensor) -> Tensor:
        if len(indices) > len(back):  # some of them have no row
            x = torch.cat([x, x.new_zeros(1, x.shape[1])])
        return x.index_select(0, indices)


class Read(NamedTuple):
    """What a decoder makes of known captions."""

    hidden: Tensor
    """``(B, K, T, N)``, what it holds after each word, for :meth:`Decoder.logits`; ``(M, N)``, at
    the places of :class:`Real`, where it was told which those are."""
    attention: Tensor
    """``(B, K, T, L)``, where it looked to say the word that follows; each row sums to 1. Without
    meaning where there is no word. L is less where regions were left out in training."""


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

    def search(self, state: Any, wanted: Wanted) -> Searched | None:
        """A whole beam search from :meth:`start`'s state in one call; none where it cannot be had.

        Its captions are those that it has step by step, to the last bit.
        """
        return None


class Decoder(nn.Module, ABC):
    """Writes captions for regions; all words at once or one at a time give the same numbers."""

    embedding: nn.Embedding
    """The words' vectors, ``(V, E)``."""

    @abstractmethod
    def read(self, regions: Tensor, captions: Tensor, real: Real | None = None) -> Read:
        """Read known captions, all words at once.

        Args:
            regions: ``(B, L, D)``, float.
            captions: ``(B, K, T)``, word ids, beginning with ``<START>``. What follows a word
                never changes what was made of it, so padding may stand at the end.
            real: where there are words; nothing is made of the other places. None is everywhere.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next word, ``(..., V)``, from hidden values ``(..., N)``."""

    def forward(self, regions: Tensor, captions: Tensor) -> Tensor:
        """Scores of each next word: ``(B, L, D)`` and ``(B, K, T)`` to ``(B, K, T, V)``."""
        return self.logits(self.read(regions, captions).hidden)

    def fast(self, precision: Precision | Literal["auto"] = "auto") -> Self:
        """A copy in eval mode for :meth:`start` and :meth:`step` (:mod:`regard.models.fast`).

        Args:
            precision: of the products; their sums are float32, those of the vocabulary always.
                ``auto`` is the fastest of the device.
        """
        if precision == "auto":
            precision = fast_precision(self.embedding.weight.device)
        copied = copy.deepcopy(self).requires_grad_(False).eval()
        dtype = DTYPES[precision]
        if precision == "bf16" or self.embedding.weight.dtype == dtype:  # float64 stays as it is
            pack_products(copied, dtype, wide=copied.wide())
        return copied

    def wide(self) -> Sequence[nn.Module]:
        """Layers whose sums must not be rounded, for words to be told apart."""
        return ()

    @abstractmethod
    def start(self, regions: Tensor) -> State:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""

    @abstractmethod
    def step(self, tokens: Tensor, state: Any) -> Step:
        """Say one word, ``(R,)`` ids, in each row of a state of its own."""

    def search(self, state: Any, wanted: Wanted) -> Searched | None:
        """A whole beam search in one call; see :meth:`Speaker.search`."""
        return None

    @abstractmethod
    def apart(self, state: Any) -> Parts:
        """A state of its own as plain tensors."""

    @abstractmethod
    def together(self, parts: Parts, rows: Rows) -> State:
        """The state of these parts, as :meth:`apart` has them."""


def scores(hidden: Tensor, rows: Tensor, bias: Tensor) -> Tensor:
    """``hidden rows^T + bias``, the scores of V words, with a gradient.

    In mixed precision on a CPU the bias is one more column of the rows: torch writes it to the
    whole ``(M, V)`` before the product, and sums up the gradient of as many values after it.

    Args:
        hidden: ``(..., N)``.
        rows: ``(V, N)``.
        bias: ``(V,)``.
    """
    if hidden.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return functional.linear(hidden, rows, bias)
    hidden, rows, bias = lowered(hidden), lowered(rows), lowered(bias)
    more = DEEP - rows.shape[1] % DEEP  # of which the first is the bias, for whole blocks
    one = functional.pad(hidden.new_ones(()).expand(*hidden.shape[:-1], 1), (0, more - 1))
    rows = torch.cat([rows, bias.unsqueeze(1), rows.new_zeros(len(rows), more - 1)], dim=1)
    return functional.linear(torch.cat([hidden, one], dim=-1), rows)


DEEP = 32
"""Values at a time that the products of a processor take."""


WORTH_KEEPING = 0.5
"""Photos without rows are kept while others are more than this share: leaving some out copies."""


class Rows:
    """Which photos the R rows of a state describe.

    What is known of a photo is never copied for its rows. Instead they are laid out as a table
    ``(B, K)``, K the most rows of a photo; where there are fewer, some places are computed in vain.

    Args:
        photo: ``(R,)``, which of B photos each row describes.
        photos: B.
    """

    def __init__(self, photo: Tensor, photos: int) -> None:
        self.photo, self.photos = photo, photos
        self._table: tuple[Tensor | None, Tensor | None] | None = None

    @classmethod
    def in_order(cls, photos: int, each: int, device: torch.device) -> Self:
        """As many rows for each of B photos."""
        rows = cls(torch.arange(photos, device=device).repeat_interleave(each), photos)
        rows._table = None, None
        return rows

    def are_in_order(self) -> bool:
        """Whether each photo has one row, in the order of the photos."""
        return torch.equal(self.photo, torch.arange(self.photos, device=self.photo.device))

    def select(self, indices: Tensor) -> tuple[Self, Tensor | None]:
        """Other rows, and which of the photos are left where some were left out."""
        if self.photos == 1:
            alike = len(indices) == len(self.photo)
            return self if alike else self.in_order(1, len(indices), self.photo.device), None
        photo = self.photo.index_select(0, indices)
        if torch.equal(photo, self.photo):
            return self, None
        left: Tensor = torch.unique(photo)
        if len(left) > WORTH_KEEPING * self.photos:
            return type(self)(photo, self.photos), None
        return type(self)(torch.searchsorted(left, photo), len(left)), left

    def by_photo(self, x: Tensor) -> Tensor:
        """``(R, ...)`` as a table, ``(B, K, ...)``."""
        _, row = self._laid_out()
        x = x if row is None else x[row]
        return x.view(self.photos, x.shape[0] // self.photos, *x.shape[1:])

    def by_row(self, x: Tensor) -> Tensor:
        """``(B, K, ...)`` as rows, ``(R, ...)``."""
        place, _ = self._laid_out()
        x = x.flatten(0, 1)
        return x if place is None else x[place]

    def _laid_out(self) -> tuple[Tensor | None, Tensor | None]:
        """Where each row is in the table, ``(R,)``, and which row is in each place, ``(B K,)``.

        Where a place has none it is any row. Both are none where the rows fill the table in their
        order.
        """
        if self._table is None:
            photo, photos = self.photo, self.photos
            rows = torch.arange(len(photo), device=photo.device)
            counts = photo.bincount(minlength=photos)
            most = int(counts.max())
            in_order, order = photo.sort(stable=True)
            place = torch.empty_like(photo)
            place[order] = in_order * most + rows - (counts.cumsum(0) - counts)[in_order]
            if len(photo) == photos * most and torch.equal(place, rows):
                self._table = None, None
            else:
                row = torch.zeros(photos * most, dtype=torch.long, device=photo.device)
                row[place] = rows
                self._table = place, row
        return self._table
