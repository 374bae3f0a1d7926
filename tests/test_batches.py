"""Batches: an order that is a function of the seed and the epoch, each caption read once."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from regard.data.batches import Captions, Plan, inputs_and_targets

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

    def read(self, indices):
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


def test_inputs_and_targets_are_one_word_apart():
    ids = torch.tensor([[[START, 7, 8, END, PAD]]])
    inputs, targets = inputs_and_targets(ids)
    assert inputs.tolist() == [[[START, 7, 8, END]]]
    assert targets.tolist() == [[[7, 8, END, PAD]]]
