"""Any text in pieces of words: byte-pair encoding of bytes, so that no word is unknown.

Source: Sennrich, Haddow and Birch, "Neural machine translation of rare words with subword units"
(2016), section 3.2, over bytes as in Radford et al., "Language models are unsupervised multitask
learners" (2019), section 2.2. A word is its UTF-8 bytes after a mark that only begins words;
pieces are joined only inside a word. Frequent words become one piece, and what was never seen is
still spelled, byte by byte if need be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from regard.errors import MissingExtraError, ModelError
from regard.text.vocabulary import END, PAD, START, Spelled

BEGIN = "▁"
"""Begins the first piece of each word. No byte is written so."""

_MARKS = re.compile(f"{BEGIN}+")

_BEFORE = len((PAD, START, END))  # ids before those of the pieces


class Subwords:
    """Pieces of words and ids: those of the tokenizer, after padding, start and end.

    Args:
        tokenizer: from :meth:`from_captions` or :meth:`load`.
    """

    file_name = "tokenizer.json"
    closed = False
    pad, start, end = range(_BEFORE)
    forbidden = (pad, start)

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._decoder = _library().decoders.ByteLevel()
        self._endings: dict[str, list[tuple[int, str]]] = {}

    @classmethod
    def from_captions(cls, captions: Iterable[Sequence[str]], *, size: int) -> Subwords:
        """The pieces that the words of some captions are best made of.

        Args:
            captions: as words.
            size: how many pieces; fewer if the captions do not have so many.

        Raises:
            MissingExtraError: the package tokenizers is not installed.
        """
        library = _library()
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = library.pre_tokenizers.Sequence(
            [
                library.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                library.pre_tokenizers.Metaspace(
                    replacement=BEGIN, prepend_scheme="always", split=False
                ),
            ]
        )
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=_alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator(([_encodable(w) for w in c] for c in captions), trainer)
        return cls(tokenizer)

    @property
    def words(self) -> tuple[str, ...]:
        """The pieces in the order of their ids: bytes as the tokenizer writes them."""
        return tuple(map(self._tokenizer.id_to_token, range(self._tokenizer.get_vocab_size())))

    def __len__(self) -> int:
        return _BEFORE + int(self._tokenizer.get_vocab_size())

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The ids of each word, at least one."""
        found = self._tokenizer.encode([_encodable(w) for w in words], is_pretokenized=True)
        ids: list[list[int]] = [[] for _ in words]
        for word, piece in zip(found.word_ids, found.ids, strict=True):
            ids[word].append(_BEFORE + piece)
        return ids

    def encode(self, words: Sequence[str], *, max_length: int | None = None) -> list[int]:
        """The ids of a caption's words, at most ``max_length`` of them; no start, no end."""
        return [i for word in self.pieces(words) for i in word][:max_length]

    def spell(self, ids: Iterable[int]) -> list[Spelled]:
        """The words that ids make, at least one, and of how many ids each is made.

        A decoder may say what no caption has: bytes that are no text, which are shown as the
        replacement character, or the beginning of a word without the rest of it, which is then
        part of the word beside it.
        """
        groups: list[list[str]] = []
        for i in ids:
            piece = self._tokenizer.id_to_token(i - _BEFORE)
            if not groups or (piece.startswith(BEGIN) and _letters(groups[-1])):
                groups.append([])
            groups[-1].append(piece)
        if len(groups) > 1 and not _letters(groups[-1]):
            rest = groups.pop()
            groups[-1] += rest
        words = (self._decoder.decode([_letters(group)]) for group in groups)
        return [
            Spelled(word or "\N{REPLACEMENT CHARACTER}", len(group))
            for word, group in zip(words, groups, strict=True)
        ]

    def completing(self, ids: Sequence[int], phrase: Sequence[str]) -> list[int]:
        """The ids after which a caption, so far ``ids``, would end with the words of a phrase.

        However the words are cut into pieces: what counts is how they are written. A piece after
        which a word could still go on, as ``man`` could to ``manhole``, is among them.
        """
        written = BEGIN + "".join(self._tokenizer.id_to_token(i - _BEFORE) for i in ids)
        written = _MARKS.sub(BEGIN, written)
        before = "".join(self._written(word) for word in phrase[:-1])
        found = []
        for id, rest in self._endings_of(phrase[-1]):
            # A mark after a mark is the same mark.
            here = written if rest else written.removesuffix(BEGIN)
            if here.endswith(before + rest):
                found.append(id)
        return found

    def _endings_of(self, word: str) -> list[tuple[int, str]]:
        """The pieces that a word can end with, and what of it is before each."""
        if word not in self._endings:
            whole = self._written(word)
            cuts = ((self._tokenizer.token_to_id(whole[k:]), whole[:k]) for k in range(len(whole)))
            self._endings[word] = [(_BEFORE + id, rest) for id, rest in cuts if id is not None]
        return self._endings[word]

    def _written(self, word: str) -> str:
        """A word as its pieces write it, the mark before it."""
        (pieces,) = self.pieces([word])
        return "".join(self._tokenizer.id_to_token(i - _BEFORE) for i in pieces)

    def save(self, file: Path) -> None:
        """Write the tokenizer as JSON, beside the file's place, then renamed."""
        beside = file.with_name(file.name + ".new")
        beside.write_text(self._tokenizer.to_str(pretty=True) + "\n", "utf-8")
        beside.replace(file)

    @classmethod
    def load(cls, file: Path) -> Subwords:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or another kind of tokenizer.
            MissingExtraError: the package tokenizers is not installed.
        """
        library = _library()
        try:
            tokenizer = library.Tokenizer.from_str(file.read_text(encoding="utf-8"))
        except Exception as error:  # tokenizers raises plain ones
            raise ModelError(
                f"The tokenizer {file} cannot be read: {error}. Copy it again."
            ) from error
        lacking = [b for b in _alphabet() if tokenizer.token_to_id(b) is None]
        if lacking:
            raise ModelError(
                f"The tokenizer {file} is not of a captioner: {len(lacking)} of its "
                f"{len(_alphabet())} smallest pieces are missing, the first is {lacking[0]!r}. "
                f"Take the {cls.file_name} of a model folder."
            )
        return cls(tokenizer)


def _library() -> Any:
    """The package tokenizers, imported only where pieces are used."""
    try:
        import tokenizers
        import tokenizers.decoders
        import tokenizers.models
        import tokenizers.pre_tokenizers
        import tokenizers.trainers
    except ImportError:
        raise MissingExtraError("A vocabulary of pieces (bpe:N)", "subwords") from None
    return tokenizers


def _alphabet() -> list[str]:
    """The smallest pieces: the beginning of a word, and every byte."""
    return [BEGIN, *sorted(_library().pre_tokenizers.ByteLevel.alphabet())]


def _letters(pieces: Sequence[str]) -> str:
    return "".join(pieces).replace(BEGIN, "")


def _encodable(word: str) -> str:
    """The word without halves of surrogate pairs, which no encoding has."""
    return (
        word
        if word.isascii()
        else word.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    )
