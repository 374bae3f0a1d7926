"""Search, with a fake model: a table of probabilities, no weights."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import pytest
import torch

from regard.models.decoder import Step
from regard.search import Hypothesis, Rules, beam_search, sample

PAD, START, END, UNK = 0, 1, 2, 3
V, L = 7, 4
FORBIDDEN = (PAD, START, UNK)


@dataclass(frozen=True)
class History:
    """The state of the fake model: which photo, and all that was said."""

    photo: torch.Tensor
    said: torch.Tensor

    @property
    def device(self) -> torch.device:
        return self.said.device

    def select(self, indices: torch.Tensor) -> History:
        return History(self.photo[indices], self.said[indices])


def logits_after(photo: int, said: tuple[int, ...]) -> torch.Tensor:
    """Scores that depend on everything said, fixed by a hash."""
    seed = hash((photo, said)) % 2**31
    return torch.randn(V, generator=torch.Generator().manual_seed(seed)) * 1.5


def step(tokens: torch.Tensor, state: History) -> Step:
    said = torch.cat([state.said, tokens.unsqueeze(1)], dim=1)
    rows = list(zip(state.photo.tolist(), said.tolist(), strict=True))
    logits = torch.stack([logits_after(p, tuple(s)) for p, s in rows])
    looked = torch.stack(
        [torch.nn.functional.one_hot(torch.tensor(sum(s) % L), L).float() for _, s in rows]
    )
    return Step(logits, looked, History(state.photo, said))


def start(photos: list[int]) -> History:
    return History(torch.tensor(photos), torch.empty(len(photos), 0, dtype=torch.long))


def rules(**changes) -> Rules:
    return Rules(start=START, end=END, forbidden=FORBIDDEN, **{"max_length": 4, **changes})


def log_p(photo: int, said: tuple[int, ...]) -> torch.Tensor:
    logits = logits_after(photo, (START, *said))
    logits[list(FORBIDDEN)] = -math.inf
    if not said:
        logits[END] = -math.inf
    return logits.log_softmax(-1)


def score(photo: int, ids: tuple[int, ...], penalty: float) -> float:
    words = sum(float(log_p(photo, ids[:i])[w]) for i, w in enumerate(ids))
    return (words + float(log_p(photo, ids)[END])) / (len(ids) + 1) ** penalty


def greedy(photo: int, most: int) -> tuple[int, ...]:
    ids: tuple[int, ...] = ()
    while len(ids) < most:
        word = int(log_p(photo, ids).argmax())
        if word == END:
            break
        ids += (word,)
    return ids


def test_a_beam_of_one_is_greedy():
    photos = list(range(30))
    found = beam_search(step, start(photos), 30, rules=rules(length_penalty=0.7), width=1)
    assert [f[0].ids for f in found] == [greedy(p, 4) for p in photos]
    assert all(len(f) == 1 for f in found)


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0])
def test_a_wide_beam_is_exhaustive(penalty):
    words = [i for i in range(V) if i not in (*FORBIDDEN, END)]
    everything = [ids for n in range(1, 4) for ids in itertools.product(words, repeat=n)]
    for photo in range(8):
        found = beam_search(
            step, start([photo]), 1, rules=rules(max_length=3, length_penalty=penalty),
            width=len(everything),
        )[0]  # fmt: skip
        expected = sorted(everything, key=lambda ids: -score(photo, ids, penalty))
        assert [f.ids for f in found] == expected
        for f in found:
            assert f.score == pytest.approx(score(photo, f.ids, penalty), abs=1e-4)


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_alone_equals_in_a_batch(width):
    photos = list(range(12))
    together = beam_search(step, start(photos), 12, rules=rules(length_penalty=1.0), width=width)
    for photo in photos:
        alone = beam_search(step, start([photo]), 1, rules=rules(length_penalty=1.0), width=width)
        assert [f.ids for f in alone[0]] == [f.ids for f in together[photo]]
        assert [f.score for f in alone[0]] == pytest.approx([f.score for f in together[photo]])


def test_log_probabilities_and_attention_are_those_of_the_words():
    for photo, found in enumerate(
        beam_search(step, start([0, 1, 2, 3]), 4, rules=rules(), width=3)
    ):
        for f in found:
            expected = [float(log_p(photo, f.ids[:i])[w]) for i, w in enumerate(f.ids)]
            assert list(f.log_probabilities) == pytest.approx(expected, abs=1e-5)
            assert f.end_log_probability == pytest.approx(float(log_p(photo, f.ids)[END]), abs=1e-5)
            looked = [sum((START, *f.ids[:i])) % L for i in range(len(f.ids))]
            assert f.attention.argmax(-1).tolist() == looked
            torch.testing.assert_close(f.attention.sum(-1), torch.ones(len(f.ids)))


def nothing_but_special(tokens: torch.Tensor, state: History) -> Step:
    """A model that wants to say only what it must not."""
    made = step(tokens, state)
    logits = torch.full_like(made.logits, -20.0)
    logits[:, [PAD, START, UNK]] = 50.0
    logits[:, END] = 60.0
    return Step(logits, made.attention, made.state)


def never_ends(tokens: torch.Tensor, state: History) -> Step:
    made = step(tokens, state)
    return Step(made.logits.index_fill(1, torch.tensor([END]), -1e4), made.attention, made.state)


@pytest.mark.parametrize("model", [step, nothing_but_special, never_ends])
@pytest.mark.parametrize("max_length", [1, 4])
def test_there_is_always_a_caption_and_nothing_forbidden_in_it(model, max_length):
    for found in (
        beam_search(model, start([0, 1, 2]), 3, rules=rules(max_length=max_length), width=3),
        sample(model, start([0, 1, 2]), 3, rules=rules(max_length=max_length), seed=1, count=3),
    ):
        assert len(found) == 3
        for captions in found:
            assert captions
            for f in captions:
                assert 1 <= len(f.ids) <= max_length
                assert not {PAD, START, UNK, END} & set(f.ids)
                assert len(f.ids) == len(f.log_probabilities) == len(f.attention)
                if model is never_ends:
                    assert f.cut


def test_beams_wider_than_the_vocabulary_work():
    found = beam_search(step, start([0]), 1, rules=rules(max_length=2), width=40)[0]
    assert len({f.ids for f in found}) == len(found) == 3 + 9


def test_samples_follow_the_model():
    draws = sample(step, start([5]), 1, rules=rules(max_length=1), seed=3, count=4000)[0]
    expected = log_p(5, ()).exp()
    for word in range(4, V):
        share = sum(f.ids == (word,) for f in draws) / 4000
        assert share == pytest.approx(float(expected[word]), abs=0.03)


def test_samples_depend_on_the_seed_and_not_on_the_neighbours():
    def ids(photos: list[int], seed: int) -> list[list[Hypothesis]]:
        return sample(step, start(photos), len(photos), rules=rules(), seed=seed, count=6)

    together, again = ids([0, 1, 2], 1), ids([2, 0], 1)
    assert [f.ids for f in together[2]] == [f.ids for f in again[0]]
    assert [f.ids for f in together[0]] == [f.ids for f in again[1]]
    assert [f.ids for f in together[0]] != [f.ids for f in ids([0], 2)[0]]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4}])
def test_the_narrowest_sampling_is_greedy(options):
    found = sample(step, start([0, 1, 2, 3]), 4, rules=rules(), seed=0, count=2, **options)
    for photo, captions in enumerate(found):
        assert {f.ids for f in captions} == {greedy(photo, 4)}


def test_top_k_and_top_p_leave_out_the_improbable():
    probabilities = log_p(9, ()).exp()
    order = probabilities.argsort(descending=True).tolist()
    top_two = sample(step, start([9]), 1, rules=rules(max_length=1), seed=0, count=500, top_k=2)[0]
    assert {f.ids[0] for f in top_two} == set(order[:2])
    enough = float(probabilities[order[0]]) + 1e-3
    nucleus = sample(
        step, start([9]), 1, rules=rules(max_length=1), seed=0, count=500, top_p=enough
    )[0]
    assert {f.ids[0] for f in nucleus} == set(order[:2])
