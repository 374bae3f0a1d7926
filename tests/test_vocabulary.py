"""Words and ids."""

from __future__ import annotations

import json

import pytest

from regard.errors import ModelError
from regard.text.vocabulary import Vocabulary

CAPTIONS = [["a", "dog", "runs"], ["a", "dog", "and", "a", "cat"], ["the", "cat"]]


def test_special_ids_come_first_and_frequent_words_next():
    vocabulary = Vocabulary.from_captions(CAPTIONS)
    assert [vocabulary.word(i) for i in range(7)] == [
        "<PAD>", "<START>", "<END>", "<UNK>", "a", "cat", "dog",
    ]  # fmt: skip
    assert vocabulary.words[3:] == ("and", "runs", "the")
    assert (vocabulary.pad, vocabulary.start, vocabulary.end, vocabulary.unk) == (0, 1, 2, 3)
    assert len(vocabulary) == 10


def test_rare_words_become_unknown():
    vocabulary = Vocabulary.from_captions(CAPTIONS, min_count=2)
    assert vocabulary.words == ("a", "cat", "dog")
    assert vocabulary.encode(["a", "dog", "runs"]) == [4, 6, 3]
    assert "runs" not in vocabulary
    assert "dog" in vocabulary


def test_what_is_encoded_is_spelled():
    vocabulary = Vocabulary.from_captions(CAPTIONS)
    for caption in CAPTIONS:
        ids = vocabulary.encode(caption)
        assert vocabulary.spell(ids) == [(word, 1) for word in caption]
        assert vocabulary.pieces(caption) == [[i] for i in ids]
    assert vocabulary.encode(CAPTIONS[1], max_length=2) == vocabulary.encode(CAPTIONS[1])[:2]


def test_a_caption_cannot_speak_special_ids():
    vocabulary = Vocabulary.from_captions([["<END>", "<PAD>", "dog"]])
    ids = vocabulary.encode(["<END>", "<PAD>", "<START>", "dog"])
    assert min(ids) >= vocabulary.unk
    assert [word for word, _ in vocabulary.spell(ids)] == ["<END>", "<PAD>", "<UNK>", "dog"]


def test_saved_and_loaded_is_the_same(tmp_path):
    file = tmp_path / "vocabulary.json"
    vocabulary = Vocabulary.from_captions([*CAPTIONS, ["café", "犬", "\u2028", '"']])
    vocabulary.save(file)
    assert Vocabulary.load(file).words == vocabulary.words
    assert [f.name for f in tmp_path.iterdir()] == ["vocabulary.json"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "cannot be read"),
        ("[1]", "has format 'list'"),
        (json.dumps({"format": 9}), "has format 9"),
        (json.dumps({"format": 1, "words": [1]}), "holds no list of words"),
        (json.dumps({"format": 1, "words": ["a", "b", "a"]}), r"\['a'\] stand there again"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, said):
    file = tmp_path / "vocabulary.json"
    file.write_text(content)
    with pytest.raises(ModelError, match=said):
        Vocabulary.load(file)
    with pytest.raises(ModelError, match="cannot be read"):
        Vocabulary.load(tmp_path / "none.json")
