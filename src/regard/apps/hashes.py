"""Hashes of 64 bits, and a set of them that takes eight bytes for each.

Two of a million names share a hash with a probability of 3 in 10^8.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np


def hash_of(*parts: str | int) -> int:
    """A hash of 64 bits of texts and numbers; texts may hold any bytes of a file's name."""
    joined = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(joined, digest_size=8).digest(), "little")


class Hashes:
    """A set of hashes that only grows."""

    _RECENT = 1 << 16

    def __init__(self) -> None:
        self._sorted = np.empty(0, np.uint64)
        self._recent: set[int] = set()

    def add(self, value: int) -> bool:
        """Add a hash; false if it was there."""
        if value in self._recent or find(self._sorted, value) is not None:
            return False
        self._recent.add(value)
        if len(self._recent) >= self._RECENT:
            recent = np.fromiter(self._recent, np.uint64, len(self._recent))
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent = set()
        return True


def find(ordered: np.ndarray, value: int) -> int | None:
    """Where a hash is among ordered ones, if it is there."""
    place = int(ordered.searchsorted(np.uint64(value)))
    return place if place < len(ordered) and ordered[place] == value else None
