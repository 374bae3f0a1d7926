"""Search, with a fake model: a table of probabilities, no weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pytest
import torch

from regard.errors import ConfigError
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


def log_p(photo: int, said: tuple[int, ...], fewest: int = 1) -> torch.Tensor:
    logits = logits_after(photo, (START, *said))
    logits[list(FORBIDDEN)] = -math.inf
    if len(said) < fewest:
        logits[END] = -math.inf
    return logits.log_softmax(-1)


def score(photo: int, ids: tuple[int, ...], penalty: float, fewest: int = 1) -> float:
    words = sum(float(log_p(photo, ids[:i], fewest)[w]) for i, w in enumerate(ids))
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


def no_word_twice(said: Sequence[int]) -> Iterable[int]:
    return said


def nothing_after_four_and_no_five_after_six(said: Sequence[int]) -> Iterable[int]:
    """After a 4 nothing may follow: the caption ends there."""
    if said and said[-1] == 4:
        return range(4, V)
    return [5] if 6 in said else []


OPTIONS = [
    {"min_length": 2},
    {"min_length": 3},
    {"prefix": (5,)},
    {"prefix": (4, 4)},
    {"barred": no_word_twice},
    {"barred": nothing_after_four_and_no_five_after_six},
    {"barred": no_word_twice, "min_length": 2, "prefix": (6,)},
    {"barred": nothing_after_four_and_no_five_after_six, "min_length": 2},
]


def allowed(ids: tuple[int, ...], given: Rules) -> bool:
    """By the meaning of the rules: what was said could be said, and the end at its end."""
    barred = given.barred or (lambda said: ())
    prefix = len(given.prefix)
    if ids[:prefix] != given.prefix:
        return False
    if any(ids[i] in barred(ids[:i]) for i in range(prefix, len(ids))):
        return False
    speechless = set(range(4, V)) <= set(barred(ids))
    return len(ids) >= given.min_length or (len(ids) >= prefix and speechless)


@pytest.mark.parametrize("penalty", [0.0, 0.7])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_wide_beam_is_exhaustive_whatever_the_rules(options, penalty):
    given = rules(max_length=3, length_penalty=penalty, **options)
    fewest = max(given.min_length, len(given.prefix))
    everything = [ids for n in (1, 2, 3) for ids in itertools.product(range(4, V), repeat=n)]
    possible = [ids for ids in everything if allowed(ids, given)]
    assert 0 < len(possible) < len(everything)
    for photo in range(6):
        expected = sorted(possible, key=lambda ids: -score(photo, ids, penalty, fewest))
        for width in (len(everything), 1):
            found = beam_search(step, start([photo]), 1, rules=given, width=width)[0]
            for f in found:
                assert f.ids in possible
                assert f.score == pytest.approx(score(photo, f.ids, penalty, fewest), abs=1e-4)
            if width > 1:
                assert [f.ids for f in found] == expected
        for f in sample(step, start([photo]), 1, rules=given, seed=photo, count=50)[0]:
            assert f.ids in possible
            assert f.score == pytest.approx(score(photo, f.ids, penalty, fewest), abs=1e-4)


@pytest.mark.parametrize("options", OPTIONS)
def test_greedy_takes_the_best_of_what_is_allowed(options):
    given = rules(max_length=3, **options)
    fewest = max(given.min_length, len(given.prefix))
    for photo in range(10):
        ids: tuple[int, ...] = ()
        while len(ids) < 3:
            scores = log_p(photo, ids, fewest)
            if len(ids) < len(given.prefix):
                ids += (given.prefix[len(ids)],)
                continue
            if given.barred is not None:
                scores[list(given.barred(ids))] = -math.inf
            word = int(scores.argmax())
            if word == END or not scores.isfinite().any():
                break
            ids += (word,)
        assert beam_search(step, start([photo]), 1, rules=given, width=1)[0][0].ids == ids


@pytest.mark.parametrize("options", [{"width": 3}, {"seed": 0, "count": 2}])
def test_a_caption_that_cannot_be_begun_is_an_error(options):
    search = beam_search if "width" in options else sample
    given = rules(barred=lambda said: range(V))
    with pytest.raises(ConfigError, match="every word of the vocabulary is forbidden"):
        search(step, start([0, 1]), 2, rules=given, **options)


def group_by_group(photo: int, groups: int, width: int, diversity: float) -> set[tuple[int, ...]]:
    """Diverse beam search by its definition: all groups word by word, a list at a time."""
    beams = [[((), 0.0)] for _ in range(groups)]  # beginnings and their log-probabilities
    places = [width] * groups
    found = set()
    for _ in range(4):
        counts = [0] * V
        for g in range(groups):
            options = [
                (total + float(log_p(photo, ids)[w]) - diversity * counts[w], ids, w,
                 total + float(log_p(photo, ids)[w]))
                for ids, total in beams[g] for w in range(V) if log_p(photo, ids)[w] > -math.inf
            ]  # fmt: skip
            best = sorted(options, key=lambda option: -option[0])[: places[g]]
            beams[g] = [((*ids, w), total) for _, ids, w, total in best if w != END]
            found |= {ids for _, ids, w, _ in best if w == END}
            places[g] -= sum(w == END for _, _, w, _ in best)
            for _, _, w, _ in best:
                counts[w] += w != END
    return found | {ids for beam in beams for ids, _ in beam}


@pytest.mark.parametrize("groups", [2, 3])
@pytest.mark.parametrize("diversity", [0.0, 0.4, 3.0])
def test_groups_are_those_of_the_definition(groups, diversity):
    photos = list(range(12))
    for width in (1, 2):
        found = beam_search(
            step, start(photos), 12, rules=rules(), width=groups * width, groups=groups,
            diversity=diversity,
        )  # fmt: skip
        for photo, captions in enumerate(found):
            ids = [f.ids for f in captions]
            assert len(set(ids)) == len(ids)
            assert set(ids) == group_by_group(photo, groups, width, diversity)
            assert [f.score for f in captions] == sorted((f.score for f in captions), reverse=True)
            for f in captions:
                assert f.score == pytest.approx(score(photo, f.ids, 0.0), abs=1e-4)


def test_groups_without_diversity_say_what_one_says():
    photos = list(range(12))
    one = beam_search(step, start(photos), 12, rules=rules(), width=2)
    for groups in (2, 3):
        same = beam_search(step, start(photos), 12, rules=rules(), width=2 * groups, groups=groups)
        assert [[f.ids for f in c] for c in same] == [[f.ids for f in c] for c in one]
    far = beam_search(step, start(photos), 12, rules=rules(), width=3, groups=3, diversity=50.0)
    for captions in far:  # each of the three words begins one
        assert {f.ids[0] for f in captions} == {4, 5, 6}


@pytest.mark.parametrize(
    "search",
    [*({"width": width} for width in (1, 2, 3, 5)), {"width": 4, "groups": 2, "diversity": 0.7}],
)
@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_alone_equals_in_a_batch(search, options):
    photos = list(range(12))
    given = rules(length_penalty=1.0, **options)
    together = beam_search(step, start(photos), 12, rules=given, **search)
    for photo in photos:
        alone = beam_search(step, start([photo]), 1, rules=given, **search)
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


@pytest.mark.parametrize("options", [{}, *OPTIONS])
def test_samples_depend_on_the_seed_and_not_on_the_neighbours(options):
    def ids(photos: list[int], seed: int) -> list[list[Hypothesis]]:
        given = rules(**options)
        return sample(step, start(photos), len(photos), rules=given, seed=seed, count=6)

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
