"""Phrases that must not be said, over words and over pieces of words."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from regard.describe import Decoding, rules_of
from regard.errors import ConfigError
from regard.text.phrases import Phrases
from regard.text.subwords import BEGIN, Subwords
from regard.text.tokenise import tokenise
from regard.text.vocabulary import Lexicon, Vocabulary

CAPTIONS = [
    "a man in a red shirt is standing by a manhole".split(),
    "a woman and a man stand on the red sand".split(),
    "the café 's chef is a man in red".split(),
] * 3
WORDS = Vocabulary.from_captions(CAPTIONS)
PIECES = Subwords.from_captions(CAPTIONS, size=310)
BYTES = Subwords.from_captions(CAPTIONS, size=259)  # hardly a word is one piece
LEXICONS = [WORDS, PIECES, BYTES]


def said(lexicon: Lexicon, ids: Sequence[int]) -> list[str]:
    return [spelled.word for spelled in lexicon.spell(ids)]


def has(words: Sequence[str], phrase: Sequence[str]) -> int:
    """How often a caption has a phrase."""
    n = len(phrase)
    return sum(list(words[i : i + n]) == list(phrase) for i in range(len(words) - n + 1))


def repeats(words: Sequence[str], n: int) -> bool:
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(grams)) < len(grams)


def babble(lexicon: Lexicon, barred: Phrases | None, seed: int, most: int = 40) -> list[int]:
    """A caption of what is probable in the captions and may follow, up to so many ids.

    The pieces of real words are preferred, so that phrases are often about to be completed.
    """
    rng = random.Random(seed)
    likely = [lexicon.pieces([w])[0] for c in CAPTIONS[:3] for w in c]
    ids: list[int] = []
    while len(ids) < most:
        for piece in rng.choice(likely):
            if barred is not None and piece in barred(ids):
                break
            ids.append(piece)
    return ids


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_what_is_forbidden_is_never_said_and_would_have_been(lexicon):
    phrases = [["man"], ["red", "shirt"], ["a", "manhole"], ["café", "'s"]]
    barred = Phrases(lexicon, phrases, None)
    often = 0
    for seed in range(30):
        free = said(lexicon, babble(lexicon, None, seed))
        kept = said(lexicon, babble(lexicon, barred, seed))
        assert not any(has(kept, phrase) for phrase in phrases), kept
        often += sum(has(free, phrase) for phrase in phrases)
    assert often > 20


@pytest.mark.parametrize("lexicon", LEXICONS)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_nothing_is_said_twice_and_would_have_been(lexicon, n):
    barred = Phrases(lexicon, [], n)
    often = 0
    for seed in range(30):
        # With n = 1 words run out.
        most = 12 if n == 1 else 40
        kept = said(lexicon, babble(lexicon, barred, seed, most=most))
        assert not repeats(kept[:-1], n), kept  # the last word may have been cut off
        often += repeats(said(lexicon, babble(lexicon, None, seed, most=most)), n)
    assert often > 0


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_only_what_completes_a_phrase_is_barred(lexicon):
    """Of the ids that may follow, exactly those that end the words with the phrase."""
    phrases = [["man"], ["red", "shirt"], ["red", "man"]]
    for seed in range(20):
        ids = babble(lexicon, None, seed, most=9)
        for phrase in phrases:
            barred = set(lexicon.completing(ids, phrase))
            for i, word in enumerate(lexicon.words, len(lexicon) - len(lexicon.words)):
                if word == BEGIN:  # begins a word that is not there yet
                    continue
                words = said(lexicon, [*ids, i])
                assert (i in barred) == (words[-len(phrase) :] == phrase), (words, phrase)


def test_a_word_is_barred_however_it_is_cut_into_pieces():
    special = len(PIECES) - len(PIECES.words)
    spelled = [special + PIECES.words.index(letter) for letter in (BEGIN, *"man")]
    assert said(PIECES, spelled) == ["man"]
    assert spelled[-1] in PIECES.completing(spelled[:-1], ["man"])
    # A mark that stands alone is part of the word after it.
    assert PIECES.pieces(["man"])[0][-1] in PIECES.completing(spelled[:1], ["man"])


def test_words_that_are_not_known_bar_nothing():
    assert WORDS.completing([], ["zebra"]) == []
    assert WORDS.completing([WORDS.id("red")], ["zebra", "man"]) == []
    assert WORDS.completing([WORDS.unk], ["zebra", "man"]) == []


# --- the options ---------------------------------------------------------------------------


@pytest.mark.parametrize("lexicon", LEXICONS)
def test_a_prefix_is_its_ids(lexicon):
    rules = rules_of(Decoding(prefix="A man, in red", min_length=2, max_length=40), lexicon)
    assert list(rules.prefix) == lexicon.encode(["a", "man", "in", "red"])
    assert (rules.min_length, rules.max_length, rules.barred) == (2, 40, None)
    assert rules_of(Decoding(), lexicon).prefix == ()


def test_a_prefix_that_cannot_be_said_is_an_error():
    with pytest.raises(ConfigError, match=r"does not know 'zebra', 'crossing'.*vocabulary.json"):
        rules_of(Decoding(prefix="a zebra crossing"), WORDS)
    assert rules_of(Decoding(prefix="a zebra crossing"), PIECES).prefix
    with pytest.raises(ConfigError, match="3 words .* max-length is 2"):
        rules_of(Decoding(prefix="a man in", max_length=2), WORDS)


def test_forbidden_phrases_are_words_as_captions_have_them():
    barred = rules_of(Decoding(forbid=("Red SHIRT!", "the")), WORDS).barred
    assert barred is not None
    assert set(barred([])) == {WORDS.id("the")}
    assert set(barred([WORDS.id("red")])) == {WORDS.id("the"), WORDS.id("shirt")}
    assert tokenise("Red SHIRT!") == ["red", "shirt"]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"min_length": 0}, "min-length is 0, it must be from 1 to max-length, which is 30"),
        ({"min_length": 31}, "min-length is 31"),
        ({"no_repeat": 0}, "no-repeat is 0, it must be at least 1"),
        ({"groups": 2}, "groups is 2, it must be a divisor of the beam, which is 3"),
        ({"groups": 0}, "groups is 0"),
        ({"groups": 3, "sampling": True}, "groups is 3, it must be 1 with sampling"),
        ({"diversity": -1.0}, "diversity is -1.0, it must be from 0 to 100"),
        ({"count": 4}, "count is 4, it must be at most the beam, which is 3"),
        ({"beam": 0}, "chosen: beam is 0, it must be from 1 to 50\\.$"),
        ({"forbid": ("a", ", .")}, "forbid is ', .', it must be at least one word"),
        ({"forbid": ("red man",), "prefix": "the red man"}, "no part of the prefix"),
    ],
)
def test_options_out_of_range_say_so(options, problem):
    with pytest.raises(ConfigError, match=problem):
        Decoding(**options)
    Decoding(count=4, sampling=True)
    Decoding(forbid=("red man",), prefix="the red")
