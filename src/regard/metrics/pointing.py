"""Where a word looked, against where the thing it names is.

The pointing game is from Zhang et al., "Top-down neural attention by excitation backprop"
(International Journal of Computer Vision 126, 2018), section 4.1: a map hits if its maximum lies
on the thing. Three choices are ours:

- The map is the smooth one that people see, laid over the upright photo at its own size
  (:func:`regard.images.overlay_map`), and its peak is the pixel where that is largest. So a
  picture of the gaze and its score can never disagree, and squashed or cropped photos need no
  rule of their own.
- There is no tolerance around the thing (the paper grants 15 pixels).
- Equal peaks share the hit: if they are partly on the thing, it counts in part. A map without any
  preference therefore scores exactly what chance does, not what its first pixel happens to show.

Shapes: ``h``, ``w`` of the upright photo, ``gh``, ``gw`` of the grid of regions, L = gh x gw.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright photo, right and bottom outside."""

RESAMPLES = 1000
"""Draws of a confidence interval."""

_ROUNDING = 1e-5  # of float32 sums; a peak is flat on top, so this is less than a pixel around it


class Pointing(NamedTuple):
    """How one map lies to the boxes of one thing; all but the entropy are from 0 to 1."""

    hit: float
    """Share of its peak in a box: 1 or 0, between them only where peaks are equal."""
    mass: float
    """Share of its attention in the boxes."""
    chance: float
    """Share of what the encoder saw of the photo that the boxes cover: the mass of a map without
    preference, and the hits of a peak at random."""
    centre: float
    """1 if the middle of the photo is in a box: the hit of always pointing there."""
    entropy: float
    """Of the weights, in nats, from 0 (one region) to log L (all alike)."""
    evenness: float
    """The entropy as a share of log L."""


class Estimate(NamedTuple):
    """A mean over words with the 95 % interval of what other photos would have given."""

    mean: float
    low: float
    high: float


def point(
    weights: NDArray[np.floating[Any]],
    laid: NDArray[np.floating[Any]],
    boxes: Sequence[Box],
    seen: Box,
) -> Pointing:
    """Judge one map.

    Args:
        weights: ``(gh, gw)``, at least 0, sum 1.
        laid: ``(h, w)``, the same map over the photo, at least 0, not all 0.
        boxes: of the thing; a pixel is in a box if its middle is.
        seen: what the encoder saw of the photo.
    """
    height, width = laid.shape
    inside = _covered(boxes, laid.shape)  # (h, w)
    peak = laid >= (1 - _ROUNDING) * laid.max()  # (h, w)
    entropy = max(0.0, -float(np.sum(weights * np.log(np.maximum(weights, 1e-30)))))
    return Pointing(
        hit=float(inside[peak].mean()),
        mass=float(laid[inside].sum(dtype=np.float64) / laid.sum(dtype=np.float64)),
        chance=float(inside[_covered([seen], laid.shape)].mean()),
        centre=float(inside[height // 2, width // 2]),
        entropy=entropy,
        evenness=entropy / float(np.log(weights.size)) if weights.size > 1 else 0.0,
    )


def peak(laid: NDArray[np.floating[Any]]) -> tuple[int, int]:
    """Column and row of the pixel where a map ``(h, w)`` is largest; of equal ones the first."""
    row, column = np.unravel_index(int(laid.argmax()), laid.shape)
    return int(column), int(row)


def summarise(
    pointings: Sequence[Pointing], photos: Sequence[str], *, seed: int = 0
) -> dict[str, Estimate]:
    """The mean of each measure over words, by its name.

    Words of one photo are not independent: the intervals are from drawing whole photos again with
    replacement (percentiles of :data:`RESAMPLES` draws). One photo alone has an interval of no
    width.

    Args:
        pointings: of n words, at least one.
        photos: n names; which photo each word was said of.
        seed: of the draws.
    """
    names, photo = np.unique(np.asarray(photos), return_inverse=True)
    values = np.array(pointings, dtype=np.float64)  # (n, M)
    table = np.zeros((len(names), values.shape[1] + 1))
    np.add.at(table, photo, np.pad(values, ((0, 0), (0, 1)), constant_values=1))
    # (photos, M + 1): the sums of each photo's words, and how many they are
    random = np.random.default_rng(seed)
    even = np.full(len(names), 1 / len(names))
    # In parts, because a draw for each photo and each resample would not fit for a large set.
    sums = np.concatenate(
        [random.multinomial(len(names), even, size=RESAMPLES // 10) @ table for _ in range(10)]
    )  # (RESAMPLES, M + 1)
    low, high = np.percentile(sums[:, :-1] / sums[:, -1:], (2.5, 97.5), axis=0)  # (M,) each
    return {
        name: Estimate(float(mean), float(lowest), float(highest))
        for name, mean, lowest, highest in zip(
            Pointing._fields, values.mean(axis=0), low, high, strict=True
        )
    }


def _covered(boxes: Sequence[Box], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which pixels have their middle in a box: ``(h, w)``."""
    rows, columns = (np.arange(side) + 0.5 for side in shape)
    covered = np.zeros(shape, dtype=np.bool_)
    for left, top, right, bottom in boxes:
        down = (top <= rows) & (rows < bottom)
        covered |= down[:, None] & ((left <= columns) & (columns < right))
    return covered
