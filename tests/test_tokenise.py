"""The words of captions are those of Stanford's tokeniser as the reference scorer uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from regard.data.dataset import read_dataset
from regard.text.tokenise import PUNCTUATION, _by_rules, detokenise, tokenise

STORED = json.loads((Path(__file__).parent / "data" / "ptb_cases.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("caption", "words"), STORED)
def test_what_the_java_program_said(caption, words):
    assert " ".join(tokenise(caption)) == words


def test_all_real_captions_as_the_java_program_has_them(shared):
    if shutil.which("java") is None:
        pytest.skip("no Java")
    ptb = pytest.importorskip("pycocoevalcap.tokenizer.ptbtokenizer")
    captions = [
        caption
        for name in ("flickr8k", "flickr30k-sample")
        for photo in read_dataset(shared / "data" / name).photos
        for caption in photo.captions
    ]
    theirs = ptb.PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(captions)})
    wrong = [
        (caption, ours, theirs[i][0])
        for i, caption in enumerate(captions)
        if (ours := " ".join(tokenise(caption))) != theirs[i][0]
    ]
    assert not wrong
    assert len(captions) > 36_000


@given(st.text())
def test_any_text_has_words(text):
    words = tokenise(text)
    assert not set(words) & PUNCTUATION
    assert all(word for word in words)


LETTERS = st.lists(
    st.one_of(
        st.text("abcdxDIT", min_size=1, max_size=3),
        st.sampled_from("cannot Gonna gotta etc Mr ill Ill no fig US st xD com".split()),
    ),
    max_size=5,
)


@given(LETTERS, st.sampled_from([" ", ", ", ",", " , "]), st.sampled_from(["", ".", " .", " . "]))
def test_the_short_way_gives_the_words_of_the_rules(words, between, end):
    caption = between.join(words) + end
    assert tokenise(caption) == _by_rules(caption)


def test_captions_are_readable_again():
    for caption in ("a man's hat", "it doesn't rain", "the dogs aren't they're", "a dog"):
        assert detokenise(tokenise(caption)) == caption
