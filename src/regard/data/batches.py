"""Captions and photos to padded batches, in an order that depends on the seed and the epoch alone.

Because the order of every epoch can be made again from ``(seed, epoch)``, a run that was killed
goes on at the very batch at which it stopped, and each of several processes finds its own part
without talking to the others.
"""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from regard.images import VIEWS, open_photo


class Batch(NamedTuple):
    """What one iteration learns from."""

    photos: Tensor
    """``(B, L, D)`` regions from the cache, or prepared photos ``(B, 3, H, W)``."""
    captions: Tensor
    """``(B, K, T + 1)``, ids from ``<START>`` to ``<END>``, then padding; none is all padding."""
    targets: int
    """Words to be said by this batch in all processes together; the loss is their mean."""
    indices: tuple[int, ...]
    """B, which photos these are; none where a process has no part in a batch."""
    items: int
    """Photos, or captions if these are counted, in all processes together."""
    weights: NDArray[np.float32] | None = None
    """``(B, K)``, of each caption in what is learnt; none is 1."""
    expected: Expected | None = None
    """What teachers expect at each word, ``(B, K, T, k)``; none where there are none."""

    def on(self, device: torch.device) -> Batch:
        """The same on a device."""
        return self._replace(photos=self.photos.to(device), captions=self.captions.to(device))


class Expected(NamedTuple):
    """The k words that are expected most at each of some places, and how much."""

    ids: NDArray[np.integer[Any]]
    """``(..., k)``."""
    shares: NDArray[np.floating[Any]]
    """``(..., k)``; they sum to 1, or are all 0 where no word is said. No tensors: mixed precision
    rounds those that a module is given."""


class PhotoSource(Protocol):
    """Where the photos of a batch come from."""

    def read(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """The photos of these indices, one row each: of each this view, or the whole photo."""
        ...


class FeatureReader(Protocol):
    """A feature cache, by paths."""

    def read(self, paths: Sequence[Path]) -> np.ndarray:
        """Regions ``(n, L, D)`` of these photos."""
        ...


class CachedRegions:
    """Photos as regions from the feature cache, ``(B, L, D)``, in the cache's precision.

    Args:
        stores: one for each view, that of whole photos first.
        paths: of the photos.
    """

    def __init__(self, stores: Sequence[FeatureReader], paths: Sequence[Path]) -> None:
        self._stores, self._paths = list(stores), list(paths)

    def read(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """Regions ``(B, L, D)``, float16."""
        paths = [self._paths[i] for i in indices]
        if views is None or not any(views):
            return torch.from_numpy(self._stores[0].read(paths))
        seen = [self._stores[view].read([path]) for path, view in zip(paths, views, strict=True)]
        return torch.from_numpy(np.concatenate(seen))


class PreparedPhotos:
    """Photos opened and prepared when they are needed, ``(B, 3, H, W)``, by several threads.

    Args:
        preparation: an upright RGB photo to ``(3, H, W)``, float32.
        paths: of the photos.
    """

    def __init__(
        self, preparation: Callable[[Image.Image], np.ndarray], paths: Sequence[Path]
    ) -> None:
        self._preparation, self._paths = preparation, list(paths)
        self._threads = ThreadPoolExecutor(min(16, os.cpu_count() or 1))

    def read(self, indices: Sequence[int], views: Sequence[int] | None = None) -> Tensor:
        """Prepared photos ``(B, 3, H, W)``, float32."""
        seen = self._threads.map(self._seen, indices, views or [0] * len(indices))
        return torch.from_numpy(np.stack(list(seen)))

    def _seen(self, index: int, view: int) -> np.ndarray:
        return self._preparation(VIEWS[view](open_photo(self._paths[index])))


Item = TypeVar("Item")


def read_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items; the next two are made by a thread while one is in use."""
    nothing = object()
    with ThreadPoolExecutor(1) as thread:
        waiting = deque(thread.submit(next, items, nothing) for _ in range(2))
        while (item := waiting.popleft().result()) is not nothing:
            waiting.append(thread.submit(next, items, nothing))
            yield item  # type: ignore[misc]


def inputs_and_targets(captions: Tensor) -> tuple[Tensor, Tensor]:
    """What is read and what is to be said: two of ``(B, K, T)``, one word apart."""
    return captions[..., :-1], captions[..., 1:]


@dataclass(frozen=True)
class Captions:
    """The captions of a split, for each photo, as word ids without ``<START>`` and ``<END>``."""

    by_photo: tuple[tuple[tuple[int, ...], ...], ...]
    pad: int
    start: int
    end: int
    weights: tuple[tuple[float, ...], ...] | None = None
    """Of each caption in what is learnt; none is 1."""
    expected: Expected | None = None
    """What teachers expect at each word and at each end, photo by photo and caption by caption,
    ``(words, k)``; none where there are none."""

    def padded(self, groups: Sequence[Sequence[tuple[int, ...]]]) -> Tensor:
        """Captions of some photos as ``(B, K, T + 1)``; K is the most captions of one of them."""
        each = max(len(group) for group in groups)
        longest = max((len(c) for group in groups for c in group), default=0)
        ids = np.full((len(groups), each, longest + 2), self.pad, dtype=np.int64)
        for b, group in enumerate(groups):
            for k, caption in enumerate(group):
                ids[b, k, 0] = self.start
                ids[b, k, 1 : len(caption) + 1] = caption
                ids[b, k, len(caption) + 1] = self.end
        return torch.from_numpy(ids)

    def weighed(self, readings: Sequence[Reading], each: int) -> NDArray[np.float32] | None:
        """The weights of the captions that are read, ``(B, each)``; 0 where there are fewer."""
        if self.weights is None:
            return None
        found = np.zeros((len(readings), each), np.float32)
        for row, (photo, captions) in zip(found, readings, strict=True):
            row[: len(captions)] = [self.weights[photo][k] for k in captions]
        return found

    @cached_property
    def bounds(self) -> list[int]:
        """Where each photo's words and ends begin among those of all, and how many all are."""
        words = (sum(len(caption) + 1 for caption in group) for group in self.by_photo)
        return list(itertools.accumulate(words, initial=0))

    def expected_of(self, readings: Sequence[Reading], each: int, longest: int) -> Expected | None:
        """What teachers expect in the captions that are read, ``(B, each, longest, k)``."""
        if self.expected is None:
            return None
        shape = len(readings), each, longest, self.expected.ids.shape[-1]
        ids, shares = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for b, (photo, captions) in enumerate(readings):
            lengths = [len(caption) + 1 for caption in self.by_photo[photo]]
            for row, k in enumerate(captions):
                first = self.bounds[photo] + sum(lengths[:k])
                here = slice(first, first + lengths[k])
                ids[b, row, : lengths[k]] = self.expected.ids[here]
                shares[b, row, : lengths[k]] = self.expected.shares[here]
        return Expected(ids, shares)


Reading = tuple[int, tuple[int, ...]]
"""A photo's index and which of its captions are read."""


@dataclass(frozen=True)
class Plan:
    """Which captions each iteration of each epoch reads.

    Args:
        captions: the captions of the split.
        grouping: ``"caption"``: an item is one caption; ``"photo"``: a photo with its captions.
        batch_size: items in a batch, over all processes.
        captions_per_photo: most captions of a photo in one item; which ones are drawn anew each
            epoch.
        bucket: whether the items of a batch have captions of similar length.
        views: how many of :data:`regard.images.VIEWS` there are of each photo; which one is seen is
            drawn anew each epoch.
        seed: of the order.
        rank: which process this is.
        world: how many processes there are.
    """

    captions: Captions
    grouping: Literal["caption", "photo"]
    batch_size: int
    captions_per_photo: int = 5
    bucket: bool = False
    views: int = 1
    seed: int = 0
    rank: int = 0
    world: int = 1

    def __len__(self) -> int:
        """Iterations in an epoch."""
        return -(-self._items() // self.batch_size)

    def batches(self, source: PhotoSource, *, epoch: int, first: int = 0) -> Iterator[Batch]:
        """The part of each batch of an epoch that this process takes, from iteration ``first``."""
        views = self._views(epoch)
        for items in self.order(epoch)[first:]:
            mine = items[self.rank :: self.world]
            targets = sum(len(self.captions.by_photo[p][k]) + 1 for p, ks in items for k in ks)
            if not mine:  # fewer items than processes: this one takes part and adds nothing
                nothing = torch.full((1, 1, 2), self.captions.pad)
                yield Batch(source.read([items[0][0]]), nothing, targets, (), len(items))
                continue
            groups = [[self.captions.by_photo[p][k] for k in ks] for p, ks in mine]
            indices = tuple(p for p, _ in mine)
            photos = source.read(indices, [int(v) for v in views[list(indices)]])
            captions = self.captions.padded(groups)
            _, each, longest = captions.shape  # K, T + 1
            weights = self.captions.weighed(mine, each)
            expected = self.captions.expected_of(mine, each, longest - 1)
            yield Batch(photos, captions, targets, indices, len(items), weights, expected)

    def order(self, epoch: int) -> list[list[Reading]]:
        """The items of each batch of an epoch, over all processes."""
        rng = np.random.default_rng([self.seed, epoch])
        items = self._drawn(rng)
        order = rng.permutation(len(items))
        size = self.batch_size
        if self.bucket:
            # Sorting within pools of fifty batches, by a length with noise, keeps the order random
            # enough.
            lengths = np.array(
                [max(len(self.captions.by_photo[p][k]) for k in ks) for p, ks in items]
            )
            noisy = lengths + rng.uniform(0, 1, len(items))
            pool = 50 * size
            order = np.concatenate(
                [
                    part[np.argsort(noisy[part], kind="stable")]
                    for part in (order[i : i + pool] for i in range(0, len(order), pool))
                ]
            )
        batches = [[items[i] for i in order[j : j + size]] for j in range(0, len(order), size)]
        if self.bucket:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _views(self, epoch: int) -> np.ndarray:
        """Which view of each photo is seen in an epoch."""
        rng = np.random.default_rng([self.seed, epoch, 1])
        return rng.integers(self.views, size=len(self.captions.by_photo))

    def _items(self) -> int:
        groups = self.captions.by_photo
        if self.grouping == "photo":
            return sum(1 for group in groups if group)
        return sum(len(group) for group in groups)

    def _drawn(self, rng: np.random.Generator) -> list[Reading]:
        groups = self.captions.by_photo
        if self.grouping == "caption":
            return [(p, (k,)) for p, group in enumerate(groups) for k in range(len(group))]
        most = self.captions_per_photo
        return [
            (
                p,
                tuple(range(len(group)))
                if len(group) <= most
                else tuple(sorted(int(k) for k in rng.choice(len(group), most, replace=False))),
            )
            for p, group in enumerate(groups)
            if group
        ]
