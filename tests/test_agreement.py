"""Candidates ordered by how far captions drawn of the photo agree with them."""

from __future__ import annotations

import json
from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import folders
import tiny
from regard.apps.serve.schema import captions
from regard.build import FREQUENCIES as FREQUENCIES_FILE
from regard.build import read_frequencies, write_frequencies
from regard.captioner import Captioner, EnsembleCaptioner
from regard.checkpoint import read_model
from regard.describe import Caption, Decoding, describe
from regard.ensemble import Ensemble
from regard.errors import ConfigError, ModelError
from regard.metrics.agreement import agreement, agreement_among
from regard.metrics.cider import DocumentFrequencies, cider
from regard.models.decoder import Speaker, Step
from regard.models.together import Together
from regard.text.vocabulary import Vocabulary
from regard.training.own import _weights

CAPTIONS = [
    [f"a {colour} {shape}".split(), f"there is a {shape} that is {colour}".split()]
    for colour, shape in product(("red", "green", "blue"), ("circle", "square"))
]
FREQUENCIES = DocumentFrequencies.of(CAPTIONS)
WORDS = Vocabulary.from_captions(c for group in CAPTIONS for c in group)


def test_it_is_the_mean_over_pairs():
    candidates = ["a red circle".split(), "a blue square".split(), ["red"]]
    drawn = ["a red square".split(), "there is a red circle".split(), ["circle"]]
    pairs = [
        [cider([c], [[d]], FREQUENCIES).corpus for d in drawn] for c in candidates
    ]  # one caption, one reference
    np.testing.assert_allclose(agreement(candidates, drawn, FREQUENCIES), np.mean(pairs, axis=1))


def test_of_a_photos_captions_each_is_compared_with_the_others():
    groups = [*CAPTIONS, ["alone in the world".split()], []]
    found = agreement_among(groups, FREQUENCIES)
    assert [len(agreed) for agreed in found] == [len(group) for group in groups]
    for group, agreed in zip(CAPTIONS, found, strict=False):
        for k, caption in enumerate(group):
            others = [other for j, other in enumerate(group) if j != k]
            np.testing.assert_allclose(agreed[k], agreement([caption], others, FREQUENCIES)[0])
    assert found[-2].tolist() == [0.0]
    assert agreement_among([[["alone"]]], FREQUENCIES)[0].tolist() == [0.0]


def test_captions_weigh_in_training_what_the_others_agree_with_them():
    tokens = [
        ["a red circle".split(), "there is a red circle".split(), [], "nothing".split()],
        ["alone".split()],
        ["this".split(), "that".split()],
        [],
    ]
    assert _weights(tokens, 0.0, FREQUENCIES) is None
    agreed = agreement_among([[c for c in tokens[0] if c]], FREQUENCIES)[0]
    for power in (1.0, 2.0):
        of_first, *others = _weights(tokens, power, FREQUENCIES)
        np.testing.assert_allclose(of_first, agreed**power / (agreed**power).mean())
        assert others == [(1.0,), (1.0, 1.0), ()]  # nothing to go by


class Dreamer(Speaker):
    """Says captions of a list with given chances, whatever it sees."""

    def __init__(self, chances: dict[str, float]) -> None:
        self.chances = {
            tuple(WORDS.encode(text.split())): chance for text, chance in chances.items()
        }

    def start(self, regions: torch.Tensor) -> Said:
        return Said(torch.empty(len(regions), 0, dtype=torch.long))

    def step(self, tokens: torch.Tensor, state: Said) -> Step:
        said = torch.cat([state.ids, tokens.unsqueeze(1)], dim=1)
        chances = torch.zeros(len(said), len(WORDS))
        for row, (_, *before) in zip(chances, said.tolist(), strict=True):
            for ids, chance in self.chances.items():
                if ids[: len(before)] == tuple(before):
                    row[[*ids, WORDS.end][len(before)]] += chance
        return Step(chances.log(), torch.ones(len(said), 1), Said(said))


class Said:
    def __init__(self, ids: torch.Tensor) -> None:
        self.ids, self.device = ids, ids.device

    def select(self, indices: torch.Tensor) -> Said:
        return Said(self.ids[indices])


NEAR = {
    "a blue square": 0.36,  # the most probable
    "a red circle": 0.2,
    "a red square": 0.24,
    "there is a red square": 0.2,  # what the two before it are near to
}


def say(decoding: Decoding, photos: int = 1) -> list[list[Caption]]:
    return describe(
        Dreamer(NEAR), WORDS, torch.zeros(photos, 1, 1), grid=(1, 1), decoding=decoding,
        frequencies=lambda: FREQUENCIES,
    )  # fmt: skip


def expected_agreement() -> dict[str, float]:
    """By the chances themselves, without any draw."""
    return {
        text: sum(
            chance * cider([text.split()], [[other.split()]], FREQUENCIES).corpus
            for other, chance in NEAR.items()
        )
        for text in NEAR
    }


def test_what_is_agreed_on_comes_before_what_is_most_probable():
    by_score = say(Decoding(beam=4, length_penalty=0))[0]
    agreed = say(Decoding(beam=4, length_penalty=0, consensus=1000))[0]
    expected = expected_agreement()
    assert by_score[0].text == "a blue square"
    assert agreed[0].text == max(expected, key=expected.__getitem__)
    assert [c.text for c in agreed] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert {c.text: c.agreement for c in agreed} == pytest.approx(expected, abs=0.2)
    assert {c.text: c.score for c in agreed} == {c.text: c.score for c in by_score}
    assert all(c.agreement is None for c in by_score)


def test_draws_are_the_same_for_every_photo_and_follow_the_seed():
    one, *others = say(Decoding(beam=4, consensus=40, seed=3), photos=5)
    for other in others:
        assert [(c.text, c.agreement) for c in other] == [(c.text, c.agreement) for c in one]
    moved = say(Decoding(beam=4, consensus=40, seed=4))[0]
    assert {c.text: c.agreement for c in moved} != {c.text: c.agreement for c in one}


def test_draws_in_parts_are_draws_at_once(monkeypatch):
    whole = say(Decoding(beam=4, consensus=40), photos=3)
    monkeypatch.setattr("regard.describe._AT_ONCE", 21)
    parts = say(Decoding(beam=4, consensus=40), photos=3)
    assert [[c.agreement for c in p] for p in parts] == [[c.agreement for c in p] for p in whole]


@pytest.mark.parametrize("count", [1, 2, 11])
def test_those_who_speak_together_draw_their_share_each(count):
    certain, hardly = 1 - 1e-6, 1e-6
    both = [
        (Dreamer({"a red circle": certain, "a blue square": hardly}), 0),
        (Dreamer({"a red circle": hardly, "a blue square": certain}), 0),
    ]
    found = describe(
        Together(both, [(1, 1)], [0, 1]), WORDS, torch.zeros(2, 1), grid=(1, 1),
        decoding=Decoding(beam=2, consensus=count), frequencies=lambda: FREQUENCIES,
    )  # fmt: skip
    first = -(-count // 2)
    drawn = ["a red circle".split()] * first + ["a blue square".split()] * (count - first)
    for candidates in found:
        assert {c.text for c in candidates} == {"a red circle", "a blue square"}
        expected = agreement([c.text.split() for c in candidates], drawn, FREQUENCIES)
        assert [c.agreement for c in candidates] == pytest.approx(expected.tolist())


def test_drawn_candidates_are_ordered_too():
    found = say(Decoding(sampling=True, count=30, temperature=0.7, consensus=400))[0]
    assert len(found) == 30
    assert found[0].text == "there is a red square"
    agreed = [c.agreement for c in found]
    assert agreed == sorted(agreed, reverse=True)


def test_without_frequencies_there_is_none():
    with pytest.raises(ConfigError, match="how common phrases are"):
        describe(
            Dreamer(NEAR), WORDS, torch.zeros(1, 1, 1), grid=(1, 1), decoding=Decoding(consensus=5)
        )


def test_frequencies_are_kept_as_they_were(tmp_path):
    write_frequencies(tmp_path, FREQUENCIES)
    assert read_frequencies(tmp_path) == FREQUENCIES
    assert [f.name for f in tmp_path.iterdir()] == ["frequencies.json"]
    common = DocumentFrequencies.of(CAPTIONS, least=3)
    assert common.photos == 6
    assert common.counts == {k: n for k, n in FREQUENCIES.counts.items() if n >= 3}
    assert Counter(map(len, common.counts))[1] == 6  # of 8 words, "circle" and "square" in 3 photos


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 1}', '{"format": 1, "photos": 3, "runs": 4}']
)
def test_damaged_frequencies_are_named(tmp_path, text):
    file = tmp_path / "frequencies.json"
    file.write_text(text)
    with pytest.raises(ModelError, match=r"frequencies\.json.*Copy it again"):
        read_frequencies(tmp_path)


def test_frequencies_of_a_newer_format_are_refused(tmp_path):
    file = tmp_path / "frequencies.json"
    file.write_text('{"format": 9}')
    with pytest.raises(ModelError, match="has format 9"):
        read_frequencies(tmp_path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs."""
    folder = tmp_path_factory.mktemp("agreement")
    tiny.draw_tiny(folder / "tiny")
    tiny.regard(
        "train", "tiny", "--preset", "scenes", "--out", "run", *tiny.QUICK, "--set",
        "train.epochs=2", cwd=folder,
    )  # fmt: skip
    return folder


def test_a_run_knows_how_common_phrases_are(place):
    known = read_model(place / "run").frequencies()
    assert known.photos == 12
    assert known.counts[("a",)] == 12
    assert known.counts[("there", "is", "a")] == 12
    assert ("red", "circle") not in known.counts  # fewer than five


def test_a_photo_alone_is_as_in_a_batch(place):
    captioner = Captioner(read_model(place / "run"), device="cpu")
    decoding = Decoding(beam=3, max_length=8, consensus=30)
    photos = [folders.photo(i, (16, 12)) for i in range(5)]
    for photo, found in zip(photos, captioner.captions(photos, decoding), strict=True):
        alone = captioner.caption(photo, decoding)
        assert [(c.text, c.agreement) for c in (alone.best, *alone.others)] == [
            (c.text, c.agreement) for c in (found.best, *found.others)
        ]
        answer = captions("run", found, count=1, gaze=False)
        assert answer.captions[0].agreement == pytest.approx(alone.best.agreement, abs=1e-6)


def test_together_with_itself_it_is_the_one(place):
    model = read_model(place / "run")
    alone, twice = (
        EnsembleCaptioner(Ensemble(members), device="cpu") for members in ((model,), (model,) * 2)
    )
    decoding = Decoding(beam=3, max_length=8, consensus=30)
    for i in range(3):
        one, other = (c.caption(folders.photo(i, (16, 12)), decoding) for c in (alone, twice))
        assert one.best.agreement == pytest.approx(other.best.agreement)
        assert one.text == other.text


def test_the_commands_show_both_scores(place):
    photo = "tiny/photos/00.png"
    asked = ["caption", photo, "--model", "run", "--beam", "4", "--max-length", "8"]
    tiny.inside(*asked, "--out", "plain.jsonl", cwd=place)
    tiny.inside(*asked, "--consensus", "50", "--out", "agreed.jsonl", cwd=place)
    plain, agreed = (
        json.loads((place / name).read_text()) for name in ("plain.jsonl", "agreed.jsonl")
    )
    candidates = agreed["candidates"]
    assert agreed["caption"] == candidates[0]["caption"]
    assert plain["caption"] in {c["caption"] for c in candidates}
    means = [c["agreement"] for c in candidates]
    assert means == sorted(means, reverse=True)
    assert all(c["score"] < 0 for c in candidates)
    done = tiny.inside(*asked, "--consensus", "50", "--count", "3", cwd=place)
    assert done.stdout.splitlines()[1:] == [
        f"  {c['agreement']:8.3f}  {c['caption']}" for c in candidates[:3]
    ]
    tiny.inside(
        "evaluate", "tiny", "--model", "run", "--no-meteor", "--consensus", "20", "--json",
        "scores.json", cwd=place,
    )  # fmt: skip
    assert (
        json.loads((place / "scores.json").read_text())["settings"]["decoding"]["consensus"] == 20
    )


def test_what_cannot_be_is_one_clear_line(place, tmp_path):
    photo = str(place / "tiny/photos/00.png")
    run = place / "run"
    for arguments, said in (
        (["--consensus", "1001"], "consensus is 1001, it must be from 0 to 1000"),
        (["--consensus", "5", "--rerank", "clip"], "Give one."),
    ):
        done = tiny.inside("caption", photo, "--model", run, *arguments, cwd=place, code=2)
        assert said in done.stderr
    old = tmp_path / "old"
    old.mkdir()
    for file in (run / "model").iterdir():
        if file.name != FREQUENCIES_FILE:
            (old / file.name).write_bytes(file.read_bytes())
    tiny.inside("caption", photo, "--model", old, cwd=place)
    done = tiny.inside("caption", photo, "--model", old, "--consensus", "5", cwd=place, code=2)
    assert f"{old} has no frequencies.json" in done.stderr
