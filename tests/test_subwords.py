"""Pieces of words: any text has some, and they come back as its words."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from regard.config import LEAST_PIECES
from regard.describe import Decoding, describe, mean_by_word
from regard.errors import MissingExtraError, ModelError
from regard.models.decoder import Speaker, Step
from regard.text.subwords import BEGIN, Subwords
from regard.text.tokenise import tokenise
from regard.text.vocabulary import Spelled

CAPTIONS = [
    "a dog runs through the grass".split(),
    "two dogs are running after a red ball".split(),
    "the dog 's ball is in the grass".split(),
] * 4
PIECES = Subwords.from_captions(CAPTIONS, size=300)


def words_of(pieces: Subwords, ids: list[int]) -> list[str]:
    return [word for word, _ in pieces.spell(ids)]


def test_frequent_words_are_one_piece_and_new_ones_several():
    assert [len(ids) for ids in PIECES.pieces(["dog", "grass", "the"])] == [1, 1, 1]
    (several,) = PIECES.pieces(["dogfish"])
    assert len(several) > 1
    assert several[0] == PIECES.pieces(["dog"])[0][0]
    assert PIECES.spell(several) == [Spelled("dogfish", len(several))]


@pytest.mark.parametrize(
    "caption",
    ["a 🐕‍🦺 and a 👩🏽‍🚀 .", "一只 狗 在 草地 上 奔跑", "un café déjà vu, naïve", "e\u0301cole",
     "собака бежит", "<END> <PAD> <UNK>", "call 020 7946 0958", f"{BEGIN} {BEGIN}{BEGIN} a{BEGIN}b",
     "do n't can't o'clock 1 1/2", "\u2028 \x7f \ufffd"],
)  # fmt: skip
def test_no_text_has_an_unknown_word(caption):
    words = tokenise(caption)
    assert words
    ids = PIECES.encode(words)
    assert words_of(PIECES, ids) == words
    assert min(ids) >= 3  # never padding, start or end


@given(st.text(max_size=40))
@settings(max_examples=300, deadline=None)
def test_every_caption_comes_back(text):
    words = tokenise(text)
    assert words_of(PIECES, PIECES.encode(words)) == words
    assert [len(ids) for ids in PIECES.pieces(words)] == [
        n for _, n in PIECES.spell(PIECES.encode(words))
    ]


def test_half_a_surrogate_pair_is_shown_as_unreadable():
    assert words_of(PIECES, PIECES.encode(["\ud83d", "\ud83d\ude00"])) == ["\ufffd", "😀"]


def test_whatever_ids_are_said_there_is_a_word():
    begin = PIECES._tokenizer.token_to_id(BEGIN) + 3
    dog, grass = (PIECES.pieces([word])[0][0] for word in ("dog", "grass"))
    letter = PIECES._tokenizer.token_to_id("s") + 3
    half = PIECES.encode(["é"])[1]  # the first of its two bytes
    spelled = PIECES.spell
    assert spelled([letter, dog]) == [("s", 1), ("dog", 1)]
    assert spelled([begin, dog]) == [("dog", 2)]
    assert spelled([dog, begin, begin, letter]) == [("dog", 1), ("s", 3)]
    assert spelled([dog, begin]) == [("dog", 2)]
    assert spelled([begin]) == [("\ufffd", 1)]
    assert spelled([half, grass]) == [("\ufffd", 1), ("grass", 1)]
    for _ in range(50):
        ids = np.random.default_rng(_).integers(3, len(PIECES), 9).tolist()
        found = spelled(ids)
        assert sum(length for _, length in found) == 9
        assert all(word for word, _ in found)


def test_captions_are_cut_by_pieces():
    whole = PIECES.encode(["dogfish", "dog"])
    assert PIECES.encode(["dogfish", "dog"], max_length=2) == whole[:2]


def test_the_same_captions_give_the_same_pieces_in_every_process(tmp_path):
    """Processes that train together, and a run that goes on, make the vocabulary anew."""
    program = (
        "import sys; from pathlib import Path; from test_subwords import PIECES;"
        "PIECES.save(Path(sys.argv[1]))"
    )
    for name in "ab":
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], check=True, timeout=120,
            env={"PYTHONPATH": ":".join(sys.path), "PYTHONHASHSEED": name.encode().hex()[:1]},
        )  # fmt: skip
    PIECES.save(tmp_path / "here")
    files = [(tmp_path / name).read_bytes() for name in ("a", "b", "here")]
    assert files[0] == files[1] == files[2]


def test_saved_and_loaded_is_the_same(tmp_path):
    file = tmp_path / Subwords.file_name
    PIECES.save(file)
    loaded = Subwords.load(file)
    assert [f.name for f in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (len(loaded), loaded.words) == (len(PIECES), PIECES.words)
    for caption in ["a dogfish 🐕".split(), *CAPTIONS[:3]]:
        assert loaded.encode(caption) == PIECES.encode(caption)


def test_a_vocabulary_has_at_most_the_pieces_asked_for():
    assert len(PIECES) == 300 + 3
    least = Subwords.from_captions(CAPTIONS, size=LEAST_PIECES)
    assert len(least) == LEAST_PIECES + 3
    assert words_of(least, least.encode(["dog", "犬"])) == ["dog", "犬"]
    assert len(Subwords.from_captions(CAPTIONS, size=9_000)) < 500


def test_damaged_and_foreign_files_are_named(tmp_path):
    file = tmp_path / "tokenizer.json"
    with pytest.raises(ModelError, match=r"tokenizer\.json cannot be read: .*Copy it again"):
        Subwords.load(file)
    PIECES.save(file)
    whole = file.read_text()
    file.write_text(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match="cannot be read"):
        Subwords.load(file)
    foreign = json.loads(whole)
    foreign["model"] |= {"vocab": {"a": 0, "b": 1}, "merges": []}
    file.write_text(json.dumps(foreign))
    with pytest.raises(ModelError, match=f"255 of its 257 smallest pieces are missing.*{BEGIN}"):
        Subwords.load(file)


def test_without_the_package_there_is_one_clear_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingExtraError, match=r'pip install "regard\[subwords\]"'):
        Subwords.from_captions(CAPTIONS, size=300)


class Says(Speaker):
    """A decoder that says given ids, each with its own probability and its own place."""

    def __init__(self, ids: list[int], size: int) -> None:
        self.ids, self.size = ids, size

    def start(self, regions: torch.Tensor) -> Place:
        return Place(torch.zeros(len(regions), dtype=torch.long))

    def step(self, tokens: torch.Tensor, state: Place) -> Step:
        t = int(state.t[0])
        logits = torch.zeros(len(tokens), self.size)
        logits[:, self.ids[t]] = 8.0 + t
        looked = torch.nn.functional.one_hot(torch.tensor(t % 4), 4).float()
        return Step(logits, looked.expand(len(tokens), 4), Place(state.t + 1))


class Place:
    """How many words were said."""

    device = torch.device("cpu")

    def __init__(self, t: torch.Tensor) -> None:
        self.t = t

    def select(self, indices: torch.Tensor) -> Place:
        return Place(self.t[indices])


def test_a_word_has_the_mean_gaze_and_the_summed_log_probability_of_its_pieces():
    dogfish, dog = PIECES.pieces(["dogfish", "dog"])
    said = [*dogfish, *dog, PIECES.end]
    decoder = Says(said, len(PIECES))
    ((caption,),) = describe(
        decoder, PIECES, torch.zeros(1, 4, 2), grid=(2, 2), decoding=Decoding(beam=1)
    )
    assert caption.words == ("dogfish", "dog")
    assert caption.text == "dogfish dog"
    assert not caption.cut
    n = len(dogfish)
    by_piece = np.eye(4, dtype=np.float32)[[t % 4 for t in range(n + 1)]].reshape(-1, 2, 2)
    np.testing.assert_allclose(caption.maps[0], by_piece[:n].mean(0), rtol=1e-6)
    np.testing.assert_allclose(caption.maps[1], by_piece[n])
    np.testing.assert_allclose(caption.maps.sum((1, 2)), 1, rtol=1e-6)
    possible = len(PIECES) - 2  # neither padding nor start; at first no end either
    log_p = [8 + t - np.log(np.exp(8.0 + t) + possible - 1 - (t == 0)) for t in range(n + 1)]
    np.testing.assert_allclose(caption.log_probabilities, [sum(log_p[:n]), log_p[n]], rtol=1e-3)


def test_the_greatest_length_counts_pieces():
    dogfish = PIECES.pieces(["dogfish"])[0]
    decoder = Says(dogfish * 9, len(PIECES))
    ((caption,),) = describe(
        decoder, PIECES, torch.zeros(1, 4, 2), grid=(2, 2),
        decoding=Decoding(beam=1, max_length=len(dogfish) + 1),
    )  # fmt: skip
    assert caption.words == ("dogfish", "dog")
    assert caption.cut


def test_means_of_pieces_of_one_are_the_maps_themselves():
    maps = np.random.default_rng(0).random((3, 2, 2), np.float32)
    assert (mean_by_word(maps, [1, 1, 1]) == maps).all()
    assert mean_by_word(maps, []).shape == (0, 2, 2)
