"""From a caption to the words that METEOR compares.

The captions come as tokens already; METEOR 1.5 with ``-norm`` breaks them up once more (``it's``
into ``it 's``, ``t-shirt`` into ``t shirt``), and so must whoever wants its numbers. The rules are
facts about that program, taken from its classes; so are those that lead from a form to the words
whose synonyms count.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import zip_longest

from regard.errors import MissingExtraError, ScoreUnavailable
from regard.metrics.meteor_tables import Tables
from regard.metrics.score import Tokens


@dataclass(frozen=True, slots=True)
class Word:
    """A word and what METEOR compares of it."""

    text: str
    stem: str
    synsets: frozenset[str]
    """The sets of synonyms that it, or what it is a form of, belongs to."""
    is_function: bool
    """Whether it counts little, as ``the`` does."""


class Lexicon:
    """Reads captions as words, and looks up each word once.

    Raises:
        MissingExtraError: snowballstemmer is not installed.
        ScoreUnavailable: a snowballstemmer with other rules is.
    """

    def __init__(self, tables: Tables) -> None:
        # Not snowballstemmer.stemmer(), which takes PyStemmer and its rules where that is present.
        try:
            from snowballstemmer.english_stemmer import EnglishStemmer
        except ImportError as error:
            raise MissingExtraError("METEOR", "meteor") from error
        stemmer = EnglishStemmer()
        if (found := stemmer.stemWord("added")) != "ad":
            raise ScoreUnavailable(
                f'The installed snowballstemmer makes "{found}" of "added", where METEOR makes '
                '"ad": version 3 has other rules. Install: pip install "snowballstemmer<3"'
            )
        self._stem = stemmer.stemWord
        self._tables = tables
        self._words: dict[str, Word] = {}

    def read(self, tokens: Tokens) -> tuple[Word, ...]:
        """The words of a caption."""
        return tuple(
            self._words.get(text) or self._look_up(text)
            for text in normalise(" ".join(tokens), self._tables.abbreviations)
        )

    def _look_up(self, text: str) -> Word:
        word = self._words[text] = Word(
            text,
            self._stem(text),
            _synsets(text, self._tables),
            text in self._tables.function_words,
        )
        return word


_LETTERS = "A-Za-zÀ-ÖØ-öø-žЀ-ԧꙀ-ꙮ꙾-ꚗᴀ-ᵿ"
_DOT = "\ue000"  # in a run of full stops; of private use, so that no other rule knows it

_RULES = [
    (re.compile(pattern, re.ASCII), replacement)
    for pattern, replacement in [
        (rf"([^0-9{_LETTERS}\s.'`,\-‘’])", r" \1 "),
        (r"(?<=\.)\.|\.(?=\.)", _DOT),
        (rf"({_DOT}+)", r" \1 "),
        # Three rules and not one: each goes on after the letters that it has looked at.
        (r"([^0-9]),([^0-9])", r"\1 , \2"),
        (r"([0-9]),([^0-9])", r"\1 , \2"),
        (r"([^0-9]),([0-9])", r"\1 , \2"),
        (r"[`‘’]", "'"),
        (r"[“”]|''", ' " '),
        (r"–|--", "-"),
        (rf"([0-9{_LETTERS}.])-([0-9{_LETTERS}])", r"\1 \2"),
        (rf"([^{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
        (rf"([^{_LETTERS}0-9])'([{_LETTERS}])", r"\1 ' \2"),
        (rf"([{_LETTERS}])'([^{_LETTERS}])", r"\1 ' \2"),
        (rf"([{_LETTERS}])'([{_LETTERS}])", r"\1 '\2"),
        (r"([0-9])'s", r"\1 's"),
    ]
]


def normalise(text: str, abbreviations: Mapping[str, bool]) -> list[str]:
    """The words of a text, in small letters, with punctuation as words.

    Args:
        text: words with spaces between.
        abbreviations: words that keep the full stop after them, as in :class:`Tables`.
    """
    text = f" {text} "
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    tokens = re.findall(r"\S+", text, re.ASCII)
    spaced = [
        _free_full_stop(token, following, abbreviations)
        for token, following in zip_longest(tokens, tokens[1:], fillvalue="")
    ]
    return " ".join(spaced).replace(_DOT, ".").lower().split()


def _free_full_stop(token: str, following: str, abbreviations: Mapping[str, bool]) -> str:
    """A token with its last full stop kept, taken out, or set apart by a space."""
    before = token[:-1]
    if not (before and token.endswith(".")):
        return token
    if "." in before and re.search(f"[{_LETTERS}]", before):
        return token.replace(".", "")
    only_numbers = abbreviations.get(before)
    if only_numbers is False or re.match("[a-z]", following):
        return token
    if only_numbers and re.match("[0-9]", following):
        return token
    return f"{before} ."


_ENDINGS = [
    ("s", ""), ("ses", "s"), ("xes", "x"), ("zes", "z"), ("ches", "ch"), ("shes", "sh"),
    ("men", "man"), ("ies", "y"), ("es", "e"), ("es", ""), ("ed", "e"), ("ed", ""), ("ing", "e"),
    ("ing", ""), ("er", ""), ("est", ""), ("er", "e"), ("est", "e"),
]  # fmt: skip
"""WordNet's rules of detachment, those for nouns, verbs and adjectives in one list."""


def _synsets(text: str, tables: Tables) -> frozenset[str]:
    bases = tables.bases.get(text) or [_base(text, tables.synsets)]
    return frozenset(
        synset for word in [text, *bases] for synset in tables.synsets.get(word, "").split()
    )


def _base(text: str, known: Mapping[str, str]) -> str:
    """The first known word that a regular form may come from; itself if there is none."""
    if len(text) > 2 and not text.endswith("ss"):
        for ending, replacement in _ENDINGS:
            base = text.removesuffix(ending) + replacement
            if text.endswith(ending) and base in known:
                return base
    return text
