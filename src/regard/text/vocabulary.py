"""The words a captioner knows, and their ids."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from regard.errors import ModelError

PAD, START, END, UNK = "<PAD>", "<START>", "<END>", "<UNK>"
SPECIAL = (PAD, START, END, UNK)
"""What is no word, with ids 0 to 3. A caption that contains such a spelling does not mean them."""

FORMAT = 1


class Spelled(NamedTuple):
    """A word and of how many ids it is made."""

    word: str
    length: int


def same_words(one: Lexicon, other: Lexicon) -> bool:
    """Whether the ids of two vocabularies mean the same."""
    return (one.file_name, one.words) == (other.file_name, other.words)


class Lexicon(Protocol):
    """What a decoder's ids mean: words, or pieces of words."""

    @property
    def pad(self) -> int:
        """Id of the padding."""
        ...

    @property
    def start(self) -> int:
        """Id that every caption is begun with."""
        ...

    @property
    def end(self) -> int:
        """Id that ends a caption."""
        ...

    @property
    def forbidden(self) -> tuple[int, ...]:
        """Ids that no caption may have."""
        ...

    @property
    def words(self) -> tuple[str, ...]:
        """The words, or pieces of words, in the order of their ids, without what is special."""
        ...

    @property
    def closed(self) -> bool:
        """Whether these are all words that can be said."""
        ...

    @property
    def file_name(self) -> str:
        """What it is called in a model folder."""
        ...

    def __len__(self) -> int: ...

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The ids of each word, at least one."""
        ...

    def encode(self, words: Sequence[str], *, max_length: int | None = None) -> list[int]:
        """The ids of a caption's words, at most ``max_length`` of them; no start, no end."""
        ...

    def spell(self, ids: Iterable[int]) -> list[Spelled]:
        """The words that ids make, and of how many ids each is made."""
        ...

    def completing(self, ids: Sequence[int], phrase: Sequence[str]) -> list[int]:
        """The ids after which a caption, so far ``ids``, would end with the words of a phrase.

        Where words are made of pieces, one after which the last word could still go on is among
        them.
        """
        ...

    def save(self, file: Path) -> None:
        """Write it whole or not at all."""
        ...


class Vocabulary:
    """Words and ids.

    Args:
        words: the words in the order of their ids, without the special ones, each once.
    """

    file_name = "vocabulary.json"
    closed = True
    pad, start, end, unk = range(len(SPECIAL))
    forbidden = (pad, start, unk)

    def __init__(self, words: Iterable[str]) -> None:
        self._words: tuple[str, ...] = (*SPECIAL, *words)
        ids = enumerate(self._words[len(SPECIAL) :], len(SPECIAL))
        self._ids = {word: i for i, word in ids}
        if len(self._ids) != len(self._words) - len(SPECIAL):
            twice = [w for w, n in Counter(self._words[len(SPECIAL) :]).items() if n > 1]
            raise ModelError(f"A vocabulary holds each word once; {twice[:3]} stand there again.")

    @classmethod
    def from_captions(cls, captions: Iterable[Sequence[str]], *, min_count: int = 1) -> Vocabulary:
        """The words of some captions, the most frequent first, equally frequent ones by spelling.

        Args:
            captions: as tokens.
            min_count: words seen fewer times are left out.
        """
        counts = Counter(word for caption in captions for word in caption)
        ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
        return cls(word for word, count in ordered if count >= min_count)

    @property
    def words(self) -> tuple[str, ...]:
        """The words without the special ones, in the order of their ids."""
        return self._words[len(SPECIAL) :]

    def __len__(self) -> int:
        return len(self._words)

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def word(self, id: int) -> str:
        """The spelling of an id."""
        return self._words[id]

    def id(self, word: str) -> int:
        """The id of a word, that of ``<UNK>`` if it is not known."""
        return self._ids.get(word, self.unk)

    def pieces(self, words: Sequence[str]) -> list[list[int]]:
        """The id of each word."""
        return [[self.id(word)] for word in words]

    def encode(self, words: Sequence[str], *, max_length: int | None = None) -> list[int]:
        """The ids of a caption's words, at most ``max_length`` of them; no start, no end."""
        return [self.id(word) for word in words[:max_length]]

    def spell(self, ids: Iterable[int]) -> list[Spelled]:
        """The word of each id."""
        return [Spelled(self._words[i], 1) for i in ids]

    def completing(self, ids: Sequence[int], phrase: Sequence[str]) -> list[int]:
        """The id of the phrase's last word, where ``ids`` end with the words before it."""
        *before, last = (self._ids.get(word) for word in phrase)
        if last is None or None in before:
            return []
        return [last] if [*ids[len(ids) - len(before) :]] == [*before] else []

    def save(self, file: Path) -> None:
        """Write the words as JSON, beside the file's place, then renamed."""
        beside = file.with_name(file.name + ".new")
        content = {"format": FORMAT, "special": SPECIAL, "words": self.words}
        beside.write_text(json.dumps(content, ensure_ascii=False, indent=0) + "\n", "utf-8")
        beside.replace(file)

    @classmethod
    def load(cls, file: Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            ModelError: the file is missing, damaged, or of another format.
        """
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(
                f"The vocabulary {file} cannot be read: {error}. Copy it again."
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise ModelError(
                f"The vocabulary {file} has format {found!r}; format {FORMAT} is read here. "
                "Take the vocabulary.json of a model folder."
            )
        words = content.get("words")
        if not isinstance(words, list) or not all(isinstance(w, str) for w in words):
            raise ModelError(f"The vocabulary {file} holds no list of words. Copy it again.")
        return cls(words)
