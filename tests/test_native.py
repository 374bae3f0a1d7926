"""Compiled where that can be; elsewhere nothing fails."""

from __future__ import annotations

import itertools
import shutil
from dataclasses import replace

import pytest
import torch

from regard import search
from regard.models import native, recurrence
from regard.models.devices import DTYPES
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.text.phrases import Phrases
from regard.text.vocabulary import Vocabulary


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A home with nothing in it, and nothing loaded yet."""
    monkeypatch.setenv("HOME", str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    native._library.cache_clear()
    native._function.cache_clear()


def kept(home) -> list:
    return sorted((home / ".cache" / "regard" / "kernels").glob("*"))


def test_it_is_compiled_once_and_found_again(fresh, monkeypatch):
    if not (shutil.which("c++") or shutil.which("g++")):
        pytest.skip("There is no C++ compiler.")
    assert native.native("look", torch.zeros(1)) is not None
    (file,) = kept(fresh)
    made = file.stat().st_mtime_ns
    forget()
    monkeypatch.setattr(native.subprocess, "run", None)  # a compilation would fail
    assert native.native("look", torch.zeros(1)) is not None
    assert [f.stat().st_mtime_ns for f in kept(fresh)] == [made]


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false", "true"])
def test_without_a_compiler_that_works_there_is_none(fresh, monkeypatch, compiler):
    monkeypatch.setenv("REGARD_COMPILER", compiler)
    assert native.native("look", torch.zeros(1)) is None
    assert kept(fresh) == []


def test_a_home_that_cannot_be_written_to_is_no_reason_to_fail(fresh):
    (fresh / ".cache").write_text("a file")
    found = native.native("look", torch.zeros(1))
    assert (found is None) == (not (shutil.which("c++") or shutil.which("g++")))


def test_other_precisions_and_devices_have_none():
    assert native.native("look", torch.zeros(1, dtype=torch.float64)) is None
    assert native.native("look", torch.zeros(1, device="meta")) is None


def plain(name: str):
    found = native.native_plain(name, torch.empty(0))
    if found is None:
        pytest.skip("There is no C++ compiler.")
    return found


def beginnings(beams: int, width: int):
    """Some beginnings of each beam: which rows they are, and their totals."""
    row = torch.full((beams, width), -1)
    going = torch.rand(beams, width) < 0.7
    going[:, 0] = True
    row[going] = torch.randperm(int(going.sum()))
    return row, torch.randn(beams, width)


@pytest.mark.parametrize("words", [1, 63, 64, 2650])
@pytest.mark.parametrize("beams", [1, 3, 40])
def test_beams_go_on_with_the_first_of_a_stable_sort(beams, words):
    plain("go_on")
    torch.manual_seed(beams * words)
    for width, most in ((1, 3), (3, 3), (5, 2), (4, 70)):
        row, totals = beginnings(beams, width)
        random = torch.randn(int(row.max()) + 1, words)
        for scores in (
            random,
            torch.randint_like(random, -3, 3),
            random.masked_fill(torch.rand_like(random) < 0.9, -torch.inf),
        ):
            found = search._best(scores, totals.numpy(), row.numpy(), most)
            each = min(most, words)
            best = scores.sort(dim=1, descending=True, stable=True)
            values, ids = best.values[:, :each][row], best.indices[:, :each][row]  # (P, W, each)
            joint = totals.unsqueeze(-1) + values
            joint = joint.masked_fill((row < 0).unsqueeze(-1), -torch.inf).flatten(1)
            sums, order = (x[:, :most] for x in joint.sort(dim=1, descending=True, stable=True))
            assert torch.equal(torch.from_numpy(found.totals), sums)
            real = sums.isfinite()
            for ours, expected in (
                (found.parents, order.div(each, rounding_mode="floor")),
                (found.ids, ids.flatten(1).gather(1, order)),
                (found.words, values.flatten(1).gather(1, order)),
            ):
                assert torch.equal(torch.from_numpy(ours)[real], expected[real])


@pytest.mark.parametrize("most", [1, 3, 70])
def test_beams_go_on_without_a_compiler_as_with_one(most, monkeypatch):
    plain("go_on")
    torch.manual_seed(most)
    row, totals = beginnings(12, 3)
    scores = torch.randn(int(row.max()) + 1, 500)
    compiled = search._best(scores, totals.numpy(), row.numpy(), most)
    monkeypatch.setenv("REGARD_COMPILER", "")
    plainly = search._best(scores, totals.numpy(), row.numpy(), most)
    real = compiled.totals > -torch.inf
    for ours, theirs in zip(compiled, plainly, strict=True):
        assert (ours[real] == theirs[real]).all()
    assert (real == (plainly.totals > -torch.inf)).all()


def test_rows_that_are_no_numbers_give_words_all_the_same():
    plain("go_on")
    totals, row = torch.zeros(2, 1), torch.tensor([[0], [1]])
    best = search._best(torch.full((2, 70), torch.nan), totals.numpy(), row.numpy(), 3)
    assert ((best.ids >= 0) & (best.ids < 70)).all()
    assert (best.parents == 0).all()
    assert (best.totals == -torch.inf).all()


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_log_probabilities_are_torchs_and_do_not_depend_on_the_rows_beside(rows):
    torch.manual_seed(rows)
    kernel, words = plain("log_probabilities"), 2650
    logits = 20 * torch.randn(rows, words)
    for left_out in ([], [3, 0, 2649]):
        banned, scores = torch.tensor(left_out, dtype=torch.long), torch.empty_like(logits)
        kernel(logits, banned, scores, rows, words, len(left_out))
        expected = logits.double().index_fill(1, banned, -torch.inf).log_softmax(dim=1)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=1e-5)
        alone = torch.empty(1, words)
        kernel(logits[-1:].contiguous(), banned, alone, 1, words, len(left_out))
        assert torch.equal(alone[0], scores[-1])


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize("photos", [1, 3])
def test_a_step_in_one_call_is_the_step_in_many(gate, photos, precision):
    """To the last bit, for rows in any order; a gate's sigmoid in float32 to its rounding."""
    if native.native("say", torch.empty(0, dtype=DTYPES[precision])) is None:
        pytest.skip("no compiler, or a processor without bf16")
    torch.manual_seed(5)
    decoder = LstmDecoder(
        vocabulary_size=70, feature_width=132, embedding_width=10, hidden_width=36,
        attention_width=18, gate=gate,
    ).fast(precision)  # fmt: skip
    assert decoder.joined is not None
    say, none = decoder.joined._say, None
    assert say is not None
    state = decoder.start(torch.randn(photos, 5, 132))
    for chosen in (
        torch.arange(photos).repeat_interleave(3),
        torch.tensor([2, 0]),
        torch.tensor([0]),
    ):
        state = state.select(chosen)
        tokens = torch.randint(70, (len(chosen),))
        decoder.joined._say = none
        apart = decoder.step(tokens, state)
        decoder.joined._say = say
        together = decoder.step(tokens, state)
        for one, other in (
            (apart.logits, together.logits),
            (apart.attention, together.attention),
            (apart.state.h, together.state.h),
            (apart.state.c, together.state.c),
        ):
            allowed = 1e-6 if gate and precision == "float32" else 0
            torch.testing.assert_close(one, other, rtol=allowed, atol=allowed)
        state = together.state


def lstm(words: Vocabulary, *, gate: bool) -> LstmDecoder:
    return LstmDecoder(
        vocabulary_size=len(words), feature_width=34, embedding_width=10, hidden_width=36,
        attention_width=18, gate=gate,
    )  # fmt: skip


def transformer(words: Vocabulary, **options) -> TransformerDecoder:
    return TransformerDecoder(
        vocabulary_size=len(words), feature_width=34, hidden_width=64, heads=2, layers=2,
        feed_forward_width=18, **options,
    )  # fmt: skip


SPEAKERS = {
    "lstm": lambda words: lstm(words, gate=False),
    "lstm, gate": lambda words: lstm(words, gate=True),
    "transformer": lambda words: transformer(words, embedding_width=64, region_layers=1),
    "transformer, narrow": lambda words: transformer(
        words, embedding_width=10, positions="learned"
    ),
    "transformer, untied": lambda words: transformer(words, embedding_width=10, tied=False),
}


@pytest.mark.parametrize("precision", DTYPES)
@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("no_repeat", [None, 1, 2, 3])
@pytest.mark.parametrize(("fewest", "longest"), [(1, 9), (4, 4), (7, 12)])
def test_a_search_in_one_call_is_the_search_step_by_step(
    speaker, no_repeat, fewest, longest, precision
):
    """To the last bit, whatever the width: also where a caption has to end for want of words."""
    if native.native("speak", torch.empty(0, dtype=DTYPES[precision])) is None:
        pytest.skip("no compiler, or a processor without bf16")
    torch.manual_seed(longest)
    words = Vocabulary("abcdef")
    rules = search.Rules(
        start=words.start, end=words.end, forbidden=words.forbidden, length_penalty=0.7,
        min_length=fewest, max_length=longest,
        barred=None if no_repeat is None else Phrases(words, [], no_repeat),
    )  # fmt: skip
    decoder = SPEAKERS[speaker](words)
    with torch.no_grad():  # so that it is sure of some words, and says them again
        for weight in decoder.parameters():
            weight.mul_(3)
    decoder = decoder.fast(precision)
    asked = []

    def at_once(state, wanted):
        asked.append(wanted)
        found = decoder.search(state, wanted)
        assert (found is None) == (width > len(words))
        return found

    ends = set()
    for photos, width in ((1, 1), (1, 3), (5, 2), (4, 7), (2, 11)):
        state = decoder.start(torch.randn(photos, 5, 34))
        led, alone = (
            search.beam_search(decoder.step, state, photos, rules=rules, width=width, **by)
            for by in ({}, {"at_once": at_once})
        )
        for one, other in zip(itertools.chain(*led), itertools.chain(*alone), strict=True):
            assert replace(one, attention=None) == replace(other, attention=None)
            assert torch.equal(one.attention, other.attention)
            ends.add((one.cut, len(one.ids)))
    assert len(asked) == 5
    assert fewest < longest or {cut for cut, _ in ends} == {True}
    if no_repeat == 1:  # of six words
        assert max(length for _, length in ends) <= 6
    many = decoder.start(torch.randn(2, 5, 34)).select(torch.tensor([0, 0, 1]))
    assert decoder.search(many, asked[0]) is None  # not a row a photo


def test_a_search_is_led_where_it_has_more_rules():
    words = Vocabulary("abcdef")
    plain = search.Rules(start=words.start, end=words.end, forbidden=words.forbidden)
    assert plain.plain(3).no_repeat == 0
    assert replace(plain, barred=Phrases(words, [], 2)).plain(3).no_repeat == 2
    for more in (
        {"prefix": (5,)},
        {"barred": Phrases(words, [["a"]], 2)},
        {"barred": lambda said: []},
    ):
        assert replace(plain, **more).plain(3) is None


def half_and_whole(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("each", [1, 3, 5, 8])
@pytest.mark.parametrize("width", [1, 31, 64, 200, 300])
def test_contexts_and_their_way_back_are_those_of_torch(dtype, each, width):
    photos, spots = 3, 7
    regions = half_and_whole(dtype, photos, spots, width)
    if native.native("gather", regions) is None:
        pytest.skip("There is no C++ compiler.")
    alpha = torch.rand(photos, each, spots).softmax(-1)
    d_context = half_and_whole(dtype, photos, each, width)
    wide, tolerance = regions.double(), 1e-5 if dtype == torch.float32 else 1e-2

    found, back = recurrence.gather(alpha, regions), recurrence.gather_back(d_context, regions)

    torch.testing.assert_close(
        found.double(), alpha.double() @ wide, rtol=tolerance, atol=tolerance
    )
    expected = d_context.double() @ wide.transpose(1, 2)
    torch.testing.assert_close(back.double(), expected, rtol=tolerance, atol=10 * tolerance)
    alone = recurrence.gather(alpha[:, :1].contiguous(), regions)
    assert torch.equal(alone, found[:, :1])  # to the last bit, whatever stands beside it


@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("sizes", [(64, 32), (70, 64), (33, 96), (200, 33)])
@pytest.mark.parametrize("turned", [False, True])
def test_products_with_one_matrix_laid_out_once_are_those_of_torch(rows, sizes, turned):
    width, n = sizes
    weight = half_and_whole(torch.bfloat16, *((n, width) if turned else (width, n)))
    # As a part of wider rows, and the product too.
    x = half_and_whole(torch.bfloat16, rows, n + 5)[:, :n]
    out = torch.empty(rows, width + 3, dtype=torch.bfloat16)[:, :width]

    product = recurrence.times(weight, turned=turned)

    expected = x.double() @ (weight if turned else weight.t()).double()
    torch.testing.assert_close(product(x, out).double(), expected, rtol=1e-2, atol=1e-1)


def test_the_quicker_tanh_is_as_near_as_it_says():
    """Through the scores of one region beside one whose score is 0."""
    keys = torch.zeros(1, 2, 16, dtype=torch.bfloat16)
    if native.native("look", keys) is None:
        pytest.skip("There is no C++ compiler.")
    score = torch.zeros(16)
    score[0] = 1
    x = torch.cat([torch.linspace(-12, 12, 401), torch.tensor([-1e30, 1e30, 0])]).bfloat16()
    keys = keys.expand(len(x), 2, 16).clone()
    keys[:, 0, 0] = x
    alpha = recurrence.look(keys, torch.zeros(len(x), 1, 16, dtype=torch.bfloat16), score)
    found = (alpha[:, 0, 0] / alpha[:, 0, 1]).double().log()
    torch.testing.assert_close(found, x.double().tanh(), rtol=0, atol=2e-4)
    keys[0, 0, 0] = torch.nan  # is seen
    assert recurrence.look(keys, torch.zeros(len(x), 1, 16).bfloat16(), score)[0].isnan().all()


def test_float16_is_rounded_to_bf16_as_torch_does():
    like = torch.empty(0, dtype=torch.bfloat16)
    if (from_half := native.native("from_half", like)) is None:
        pytest.skip("no compiler, or a processor without bf16")
    every = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(torch.float16)
    for values in (every, every[:5]):
        out = torch.empty_like(values, dtype=torch.bfloat16)
        from_half(values, out, values.numel())
        # The processor rounds what is below float32's normal numbers to 0; float16 has none.
        torch.testing.assert_close(out, values.bfloat16(), rtol=0, atol=0, equal_nan=True)
