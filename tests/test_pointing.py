"""The pointing game and its levels of chance, against maps whose answer is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.images import Preparation, overlay_map
from regard.metrics.pointing import Pointing, peak, point, summarise

PHOTO = (60, 40)
WHOLE = (0.0, 0.0, 60.0, 40.0)


def judged(weights: np.ndarray, *boxes, seen=WHOLE) -> Pointing:
    weights = weights / weights.sum()
    return point(weights, overlay_map(weights, PHOTO, seen), boxes, seen)


def one(row: int, column: int, shape: tuple[int, int] = (4, 6)) -> np.ndarray:
    """A map that looks at one region."""
    weights = np.zeros(shape)
    weights[row, column] = 1
    return weights


def test_a_peak_is_where_its_region_is():
    # Regions are 10 x 10 pixels: row 1, column 4 are the rows 10 to 20, the columns 40 to 50.
    assert peak(overlay_map(one(1, 4), PHOTO, WHOLE)) in {(44, 14), (45, 15), (44, 15), (45, 14)}
    assert judged(one(1, 4), (40, 10, 50, 20)).hit == 1
    assert judged(one(1, 4), (10, 40, 20, 50)).hit == 0  # x and y swapped
    assert judged(one(1, 4), (0, 0, 40, 40), (50, 0, 60, 40)).hit == 0
    assert judged(one(1, 4), (0, 0, 40, 40), (43, 13, 47, 17)).hit == 1


def test_mass_is_the_share_inside():
    two = one(0, 0) + 3 * one(3, 5)
    assert judged(two, (0, 0, 30, 40)).mass == pytest.approx(0.25, abs=0.01)
    assert judged(two, (30, 0, 60, 40)).mass == pytest.approx(0.75, abs=0.01)
    # Boxes that overlap count once.
    assert judged(two, (30, 0, 60, 40), (20, 0, 60, 40)).mass == pytest.approx(0.75, abs=0.01)
    assert judged(two, WHOLE).mass == 1
    assert judged(two).mass == judged(two).hit == judged(two).chance == 0


@settings(max_examples=60, deadline=None)
@given(
    st.tuples(st.integers(0, 59), st.integers(0, 39)),
    st.tuples(st.integers(1, 30), st.integers(1, 30)),
    st.sampled_from([(1, 1), (4, 6), (7, 7)]),
    st.sampled_from(["squash", "crop"]),
)
def test_a_map_without_preference_scores_exactly_chance(corner, sides, grid, resize):
    box = (*corner, corner[0] + sides[0], corner[1] + sides[1])
    seen = Preparation((64, 64), resize).placement(*PHOTO)
    flat = judged(np.ones(grid), box, seen=seen)
    assert flat.hit == flat.chance
    assert flat.mass == pytest.approx(flat.chance, abs=1e-6)
    left, top, right, bottom = (max(0, box[0]), box[1], min(60, box[2]), min(40, box[3]))
    left, right = max(left, seen[0]), min(right, seen[2])
    area = max(0, right - left) * max(0, bottom - top)
    assert flat.chance == pytest.approx(area / ((seen[2] - seen[0]) * (seen[3] - seen[1])))


def test_equal_peaks_share_the_hit():
    twins = one(1, 1) + one(1, 4)
    assert judged(twins, (0, 0, 30, 40)).hit == pytest.approx(0.5)
    assert judged(twins + 0.1 * one(1, 4), (0, 0, 30, 40)).hit == 0


def test_what_was_cut_off_is_no_chance():
    # The middle 40 x 40 of 60 x 40 pixels is seen; the box is half in it.
    seen = Preparation((64, 64), "crop").placement(*PHOTO)
    assert seen == (10, 0, 50, 40)
    assert judged(np.ones((7, 7)), (0, 0, 20, 40), seen=seen).chance == pytest.approx(0.25)
    assert judged(np.ones((7, 7)), (0, 0, 10, 40), seen=seen).chance == 0


def test_always_pointing_at_the_middle():
    assert judged(one(0, 0), (29, 19, 31, 21)).centre == 1
    assert judged(one(0, 0), (0, 0, 30, 40)).centre == 0  # the right edge is outside


def test_entropy():
    assert judged(np.ones((4, 6))).entropy == pytest.approx(math.log(24))
    assert judged(np.ones((4, 6))).evenness == pytest.approx(1)
    assert judged(one(2, 2)).entropy == judged(one(2, 2)).evenness == 0
    assert judged(one(0, 0) + one(1, 1)).entropy == pytest.approx(math.log(2))
    assert judged(np.ones((1, 1))).evenness == 0


def looks(hits: list[float]) -> list[Pointing]:
    return [Pointing(hit, hit / 2, 0.1, 0.3, 1.0, 0.5) for hit in hits]


def test_the_mean_is_over_words_and_the_interval_over_photos():
    found = summarise(looks([1, 1, 1, 0]), ["a", "a", "a", "b"])
    assert found["hit"].mean == 0.75
    assert found["mass"].mean == pytest.approx(0.375)
    # Either photo may be drawn twice: nothing between is as far out.
    assert (found["hit"].low, found["hit"].high) == (0, 1)
    assert found["chance"] == pytest.approx((0.1, 0.1, 0.1))
    assert list(found) == list(Pointing._fields)


def test_words_of_one_photo_are_not_counted_as_independent():
    random = np.random.default_rng(0)
    hits = [float(x) for x in random.integers(0, 2, 100)]
    alone = summarise(looks(hits), [str(i) for i in range(100)])["hit"]
    nine = summarise(looks(hits * 9), [str(i) for i in range(100)] * 9)["hit"]
    assert nine.mean == pytest.approx(alone.mean)
    assert (nine.low, nine.high) == pytest.approx((alone.low, alone.high))
    # As wide as the normal approximation says, for 100 and not for 900.
    wide = 2 * 1.96 * math.sqrt(alone.mean * (1 - alone.mean) / 100)
    assert alone.high - alone.low == pytest.approx(wide, rel=0.15)


def test_intervals_are_seeded():
    hits, photos = [1.0, 0.0, 1.0, 1.0, 0.0] * 9, [str(i) for i in range(45)]
    assert summarise(looks(hits), photos) == summarise(looks(hits), photos)
    assert summarise(looks(hits), photos) != summarise(looks(hits), photos, seed=1)
