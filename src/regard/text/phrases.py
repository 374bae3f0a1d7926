"""Phrases that a caption must not have: those that are forbidden, and those that it has."""

from __future__ import annotations

from collections.abc import Sequence

from regard.text.vocabulary import Lexicon, Vocabulary


class Phrases:
    """The ids that may not follow a beginning, for :attr:`regard.search.Rules.barred`.

    Args:
        vocabulary: what ids mean.
        forbidden: phrases, each as its words, at least one.
        no_repeat: no so many words in a row are said twice in a caption; none allows it (Paulus et
            al., "A deep reinforced model for abstractive summarization", 2018, section 2.5).
    """

    def __init__(
        self, vocabulary: Lexicon, forbidden: Sequence[Sequence[str]], no_repeat: int | None
    ) -> None:
        self._vocabulary = vocabulary
        self._forbidden = [tuple(phrase) for phrase in forbidden]
        self._n = no_repeat

    @property
    def repeats(self) -> int | None:
        """So many ids in a row are not said twice, if nothing else is barred; else none."""
        plain = isinstance(self._vocabulary, Vocabulary) and not self._forbidden
        return self._n if plain else None

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Those that would complete one of the phrases after ``ids``."""
        phrases = self._forbidden
        if self._n is not None and ids:
            phrases = [*phrases, *self._said_before(ids, self._n)]
        return [i for phrase in phrases for i in self._vocabulary.completing(ids, phrase)]

    def _said_before(self, ids: Sequence[int], n: int) -> set[tuple[str, ...]]:
        """Phrases of n words that were said, and all but whose last word could now be said again.

        The last word may be the next one, or the last of ``ids`` if it goes on.
        """
        words = tuple(spelled.word for spelled in self._vocabulary.spell(ids))
        grams = {words[i : i + n] for i in range(len(words) - n + 1)}
        nearly = {words[len(words) - n + 1 :], words[max(0, len(words) - n) : -1]}
        return {gram for gram in grams if gram[:-1] in nearly}
