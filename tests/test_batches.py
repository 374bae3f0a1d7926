"""Batches: an order that is a function of the seed and the epoch, each caption read once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regard.data.batches import CachedRegions, Captions, Plan, PreparedPhotos, inputs_and_targets
from regard.images import VIEWS

PAD, START, END = 0, 1, 2


def captions(photos: int = 23, *, most: int = 5) -> Captions:
    rng = np.random.default_rng(0)
    groups = tuple(
        tuple(
            tuple(int(w) for w in rng.integers(4, 99, rng.integers(1, 12)))
            for _ in range(rng.integers(1, most + 1))
        )
        for _ in range(photos)
    )
    return Captions(groups, pad=PAD, start=START, end=END)


class Numbers:
    """A source whose photo i is filled with i."""

    def read(self, indices, views=None):
        return torch.tensor(indices, dtype=torch.float32).view(-1, 1, 1).expand(-1, 2, 3)


def read_back(plan: Plan, epoch: int, first: int = 0) -> list[Counter]:
    """The (photo, caption) pairs of each batch, read from its tensors."""
    found = []
    for batch in plan.batches(Numbers(), epoch=epoch, first=first):
        pairs: Counter = Counter()
        for photo, group in zip(
            batch.photos[:, 0, 0].tolist(), batch.captions.tolist(), strict=True
        ):
            for ids in group:
                if ids[0] == START:
                    assert END in ids
                    pairs[int(photo), tuple(ids[1 : ids.index(END)])] += 1
        found.append(pairs)
    return found


def everything(all_captions: Captions) -> Counter:
    return Counter((p, c) for p, group in enumerate(all_captions.by_photo) for c in group)


@pytest.mark.parametrize("grouping", ["caption", "photo"])
@pytest.mark.parametrize("bucket", [False, True])
def test_every_caption_is_read_once_an_epoch(grouping, bucket):
    plan = Plan(captions(), grouping=grouping, batch_size=4, bucket=bucket)
    for epoch in range(3):
        batches = read_back(plan, epoch)
        assert len(batches) == len(plan)
        assert sum(batches, Counter()) == everything(plan.captions)
    assert read_back(plan, 0) != read_back(plan, 1)


def test_the_order_depends_on_the_seed_and_the_epoch_alone():
    make = lambda seed: Plan(captions(), grouping="photo", batch_size=4, bucket=True, seed=seed)  # noqa: E731
    assert make(1).order(3) == make(1).order(3)
    assert make(1).order(3) != make(2).order(3)


def test_an_epoch_goes_on_where_it_stopped():
    plan = Plan(captions(), grouping="caption", batch_size=4)
    assert read_back(plan, 2, first=5) == read_back(plan, 2)[5:]


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("grouping", ["caption", "photo"])
def test_processes_share_each_batch(world, grouping):
    whole = Plan(captions(), grouping=grouping, batch_size=5)
    parts = [
        Plan(captions(), grouping=grouping, batch_size=5, rank=r, world=world) for r in range(world)
    ]
    shares = [read_back(part, 1) for part in parts]
    together = [sum(of_batch, Counter()) for of_batch in zip(*shares, strict=True)]
    assert together == read_back(whole, 1)
    counts = [[b.targets for b in p.batches(Numbers(), epoch=1)] for p in (whole, *parts)]
    assert all(c == counts[0] for c in counts)


def test_targets_count_the_words_and_the_ends():
    plan = Plan(captions(), grouping="photo", batch_size=4)
    for batch in plan.batches(Numbers(), epoch=0):
        _, targets = inputs_and_targets(batch.captions)
        assert batch.targets == int((targets != PAD).sum())


def test_a_photo_with_many_captions_gives_some_of_them_each_epoch():
    plan = Plan(captions(most=9), grouping="photo", batch_size=4, captions_per_photo=2)
    seen = Counter()
    for epoch in range(40):
        pairs = sum(read_back(plan, epoch), Counter())
        per_photo = Counter(p for p, _ in pairs.elements())
        assert max(per_photo.values()) == 2
        seen += pairs
    assert set(seen) == set(everything(plan.captions))


def test_buckets_hold_captions_of_similar_length():
    def spread(bucket: bool) -> float:
        plan = Plan(captions(400), grouping="caption", batch_size=8, bucket=bucket)
        return float(np.mean([np.std([len(c) for _, c in b]) for b in read_back(plan, 0)]))

    assert spread(True) < 0.3 * spread(False)


class Views:
    """Remembers which view of each photo was asked for."""

    def __init__(self) -> None:
        self.asked: dict[int, set[int]] = {}

    def read(self, indices, views=None):
        for index, view in zip(indices, views or (), strict=False):
            self.asked.setdefault(index, set()).add(view)
        return torch.zeros(len(indices), 1)


@pytest.mark.parametrize("grouping", ["caption", "photo"])
def test_the_view_of_a_photo_depends_on_the_seed_and_the_epoch_alone(grouping):
    def seen(epoch: int, *, first: int = 0, rank: int = 0, world: int = 1) -> dict[int, set[int]]:
        source = Views()
        plan = Plan(captions(60), grouping=grouping, batch_size=4, views=3, rank=rank, world=world)
        list(plan.batches(source, epoch=epoch, first=first))
        return source.asked

    whole = seen(0)
    assert all(len(views) == 1 for views in whole.values())
    assert set().union(*whole.values()) == {0, 1, 2}
    assert seen(0) == whole
    assert seen(1) != whole
    assert all(whole[photo] == views for photo, views in seen(0, first=5).items())
    assert seen(0, rank=0, world=2) | seen(0, rank=1, world=2) == whole


def test_views_are_read_from_their_own_stores(tmp_path):
    class Store:
        def __init__(self, view: int) -> None:
            self.view = view

        def read(self, paths):
            return np.array([[[10 * self.view + int(p.name)]] for p in paths], np.float16)

    source = CachedRegions([Store(0), Store(1), Store(2)], [Path(str(i)) for i in range(5)])
    assert source.read([4, 1, 3]).flatten().tolist() == [4, 1, 3]
    assert source.read([4, 1, 3], [2, 0, 1]).flatten().tolist() == [24, 1, 13]
    wide = Image.new("RGB", (8, 6))
    wide.save(tmp_path / "0.png")
    photos = PreparedPhotos(lambda image: np.asarray(image.size), [tmp_path / "0.png"])
    assert photos.read([0, 0], [0, 2]).tolist() == [[8, 6], list(VIEWS[2](wide).size)]


def test_inputs_and_targets_are_one_word_apart():
    ids = torch.tensor([[[START, 7, 8, END, PAD]]])
    inputs, targets = inputs_and_targets(ids)
    assert inputs.tolist() == [[[START, 7, 8, END]]]
    assert targets.tolist() == [[[7, 8, END, PAD]]]


def test_each_caption_brings_its_weight():
    """Whichever of a photo's captions are drawn, in every process."""
    known = captions()
    weights = tuple(
        tuple(10 * p + k + 1.0 for k in range(len(g))) for p, g in enumerate(known.by_photo)
    )
    weighed = replace(known, weights=weights)
    options = {"grouping": "photo", "batch_size": 4, "captions_per_photo": 2, "seed": 3}
    for rank in (0, 1):
        place = {"rank": rank, "world": 2}
        plain = Plan(known, **options, **place).batches(Numbers(), epoch=1)
        for batch, same in zip(
            Plan(weighed, **options, **place).batches(Numbers(), epoch=1), plain, strict=True
        ):
            assert torch.equal(batch.captions, same.captions)
            assert same.weights is None
            if not batch.indices:
                assert batch.weights is None
                continue
            assert batch.weights.shape == batch.captions.shape[:2]
            for p, group, found in zip(batch.indices, batch.captions, batch.weights, strict=True):
                for ids, weight in zip(group.tolist(), found.tolist(), strict=True):
                    if ids[0] == PAD:  # a photo with fewer captions
                        assert weight == 0
                        continue
                    said = tuple(ids[1 : ids.index(END)])
                    assert said == weighed.by_photo[p][int(weight) - 10 * p - 1]
