"""A compiled beam search, as Python gives it what to do and reads what it did.

``Beams`` of ``kernels/speaking.h`` has the same fields in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Wanted(NamedTuple):
    """A beam search that a decoder is asked to do by itself."""

    width: int
    """W: how many beginnings of each photo are kept."""
    start: int
    """Id that every caption is begun with."""
    end: int
    """Id that ends a caption."""
    forbidden: tuple[int, ...]
    """Ids that are never said, the end not among them."""
    fewest: int
    """Fewest words of a caption."""
    longest: int
    """Most words."""
    no_repeat: int
    """No so many ids in a row are said twice in a caption; 0 allows it."""


class Ended(NamedTuple):
    """A beginning that has ended."""

    photo: int
    step: int
    """The number of its words."""
    place: int
    """Its place among the W of the step of its last word."""
    cut: bool
    """Whether the end was forced because it had reached the greatest length."""
    total: float
    """Its log-probability with that of the end."""
    end: float
    """That of the end."""


class Searched(NamedTuple):
    """A whole beam search: what each of S steps chose for B photos, W places each, ``(S, B, W)``.

    What stands in a place where nothing is going on has no meaning.
    """

    parents: Tensor
    """Which place of the step before each goes on from."""
    ids: Tensor
    """The word."""
    words: Tensor
    """Its log-probability."""
    rows: Tensor
    """Which row of the step's attention is its parent's."""
    attention: Tensor
    """``(S, B W, L)``: where the rows looked."""
    ended: list[Ended]
    """In the order in which they ended."""


class Beams:
    """The memory of a search.

    Args:
        wanted: what is to be done; W is at most the size of the vocabulary.
        photos: B.
        regions: L.
    """

    def __init__(self, wanted: Wanted, *, photos: int, regions: int) -> None:
        width, most = wanted.width, wanted.longest
        self._left_out = torch.tensor([*wanted.forbidden, wanted.end])
        self._steps = torch.empty(3, most, photos, width, dtype=torch.long)
        self._words = torch.empty(most, photos, width)
        self._attention = torch.empty(most + 1, photos * width, regions)
        self._ended = torch.empty(photos * width, 4, dtype=torch.long)
        self._values = torch.empty(photos * width, 2, dtype=torch.double)
        self._counts = torch.empty(2, dtype=torch.long)
        memory = (
            self._left_out, *self._steps, self._words, self._attention, self._ended, self._values,
            self._counts,
        )  # fmt: skip
        self.fields = torch.tensor(
            [
                *(tensor.data_ptr() for tensor in memory),
                wanted.start, len(wanted.forbidden), wanted.fewest, most, wanted.no_repeat, photos,
                width,
            ]
        )  # fmt: skip
        """What the compiled function is given."""

    def searched(self) -> Searched:
        """What it did."""
        steps, ends = self._counts.tolist()
        parents, ids, rows = self._steps[:, :steps]
        ended = [
            Ended(photo, step, place, bool(cut), total, end)
            for (photo, step, place, cut), (total, end) in zip(
                self._ended[:ends].tolist(), self._values[:ends].tolist(), strict=True
            )
        ]
        return Searched(parents, ids, self._words[:steps], rows, self._attention[:steps], ended)
