"""The alignment of METEOR: which words of a caption stand for which of a reference.

Source: Denkowski and Lavie, "Meteor Universal: language specific translation evaluation for any
target language" (2014), section 2. Where the paper leaves a choice open, such as which of two
alignments of equal worth is taken, this file does what the program METEOR 1.5 does (the classes
``Aligner`` and ``Constants`` of github.com/cmu-mtlab/meteor), so that its numbers are the same to
the last digit.

One thing is left out: the program compares hashes of words, and takes two words of one hash, one
pair in four thousand million, for the same.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import chain
from typing import NamedTuple

from regard.metrics.meteor_tables import LONGEST_PHRASE
from regard.metrics.meteor_words import Word

BEAM = 40
"""How many alignments of the first words of a reference are followed further."""


class Stage(IntEnum):
    """Why words match, in the order of preference."""

    EXACT = 0
    STEM = 1
    SYNONYM = 2
    PARAPHRASE = 3


class Match(NamedTuple):
    """Words of a caption that may stand for words of a reference."""

    stage: Stage
    said: range
    """Where they are in the caption."""
    wanted: range
    """Where they are in the reference."""


class Alignment(NamedTuple):
    """The matches that were chosen; no word is in two of them."""

    matches: tuple[Match, ...]
    chunks: int
    """Runs of matches that follow each other in the caption and in the reference."""


@dataclass(frozen=True)
class Sentence:
    """A caption or a reference, with the phrases in it that have paraphrases or are such."""

    words: tuple[Word, ...]
    places: Mapping[str, list[range]]
    """Each such phrase, and where it stands."""
    paraphrases: list[tuple[range, list[str]]]
    """Where a phrase stands, and what it may be said as; in the order of the words."""

    @classmethod
    def of(
        cls, words: tuple[Word, ...], paraphrases: Mapping[str, list[str]], known: Collection[str]
    ) -> Sentence:
        """Find the phrases among the words.

        Args:
            words: those of the caption or the reference.
            paraphrases: what phrases may be said as.
            known: all phrases that these paraphrases know, on either side.
        """
        places: dict[str, list[range]] = {}
        found = []
        for place, phrase in phrases_of(words):
            if phrase in known:
                places.setdefault(phrase, []).append(place)
            if phrase in paraphrases:
                found.append((place, paraphrases[phrase]))
        return cls(words, places, found)


def phrases_of(words: Sequence[Word]) -> Iterator[tuple[range, str]]:
    """All runs of words that the paraphrase table might know, and where they stand."""
    texts = [word.text for word in words]
    for start in range(len(texts)):
        for stop in range(start + 1, min(start + LONGEST_PHRASE, len(texts)) + 1):
            yield range(start, stop), " ".join(texts[start:stop])


def align(said: Sentence, wanted: Sentence) -> Alignment:
    """The best alignment of a caption, ``said``, and a reference, ``wanted``.

    The best covers most words, then has the fewest chunks, then the shortest distances between
    matched words. It is searched for word by word of the reference, with at most ``BEAM``
    alignments at a time.
    """
    options = _find_matches(said, wanted)
    certain = _find_certain(options, len(said.words))
    paths = [_Path()]
    for position, matches in enumerate(options):
        longer = []
        for path in sorted(paths, key=_rank)[:BEAM]:
            if position < path.resume:
                longer.append(path)
            elif certain[position]:
                longer.append(path.take(matches[0], path.distance + _distance(matches[0])))
            else:
                # The program adds the distance of a match not to the alignment that takes it, but
                # to those that it makes of this one after it. Ties hang on that.
                distance = path.distance
                for match in matches:
                    if not path.used & _bits(match.said):
                        longer.append(path.take(match, distance))
                        distance += _distance(match)
                longer.append(path.skip(position, distance))
        paths = longer
    best = min((path.close() for path in sorted(paths, key=_rank)[:BEAM]), key=_rank)
    return Alignment(best.matches, best.chunks)


def _find_matches(said: Sentence, wanted: Sentence) -> list[list[Match]]:
    """All matches, by the word of the reference that they begin with, stage by stage."""
    found: list[list[Match]] = [[] for _ in wanted.words]
    # Of two equal sentences the search might miss that they are.
    only_exact = said.words == wanted.words
    for stage, agree in _AGREE.items():
        if only_exact and stage is not Stage.EXACT:
            return found
        for i, word in enumerate(wanted.words):
            for j, other in enumerate(said.words):
                if agree(word, other):
                    found[i].append(Match(stage, range(j, j + 1), range(i, i + 1)))
    # A pair of phrases may stand in the table both ways, and then matches twice.
    for place, phrases in wanted.paraphrases:
        for phrase in phrases:
            for there in said.places.get(phrase, ()):
                found[place.start].append(Match(Stage.PARAPHRASE, said=there, wanted=place))
    for place, phrases in said.paraphrases:
        for phrase in phrases:
            for there in wanted.places.get(phrase, ()):
                found[there.start].append(Match(Stage.PARAPHRASE, said=place, wanted=there))
    return found


_AGREE: Mapping[Stage, Callable[[Word, Word], bool]] = {
    Stage.EXACT: lambda a, b: a.text == b.text,
    Stage.STEM: lambda a, b: a.stem == b.stem and a.text != b.text,
    Stage.SYNONYM: lambda a, b: not a.synsets.isdisjoint(b.synsets) and a.text != b.text,
}


def _find_certain(options: Sequence[Sequence[Match]], words: int) -> list[bool]:
    """For each word of the reference: whether the only match there shares no word with another."""
    said, wanted = [0] * words, [0] * len(options)  # how many matches cover each word
    for match in chain.from_iterable(options):
        for j in match.said:
            said[j] += 1
        for i in match.wanted:
            wanted[i] += 1
    return [
        len(matches) == 1
        and all(said[j] == 1 for j in matches[0].said)
        and all(wanted[i] == 1 for i in matches[0].wanted)
        for matches in options
    ]


class _Path(NamedTuple):
    """An alignment of the first words of a reference."""

    covered: int = 0
    """Words matched, of both sides; of matches that are not exact, half of each side's."""
    chunks: int = 0
    """Those that are over."""
    distance: int = 0
    end: int | None = None
    """Where in the caption the last chunk may go on; none if it may not."""
    resume: int = 0
    """The next word of the reference to match."""
    used: int = 0
    """The words of the caption that are matched, as bits."""
    matches: tuple[Match, ...] = ()

    def take(self, match: Match, distance: int) -> _Path:
        stage, said, wanted = match
        share = 1 if stage is Stage.EXACT else 2
        return _Path(
            self.covered + len(said) // share + len(wanted) // share,
            self.chunks + (self.end not in (None, said.start)),
            distance,
            said.stop,
            wanted.stop,
            self.used | _bits(said),
            (*self.matches, match),
        )

    def skip(self, position: int, distance: int) -> _Path:
        chunks = self.chunks + (self.end is not None)
        return _Path(self.covered, chunks, distance, None, position + 1, self.used, self.matches)

    def close(self) -> _Path:
        return self.skip(self.resume, self.distance)


def _rank(path: _Path) -> tuple[int, int, int]:
    """Less is better. Sorting is stable, and so is the program's: ties keep their order."""
    return -path.covered, path.chunks, path.distance


def _bits(place: range) -> int:
    return (1 << place.stop) - (1 << place.start)


def _distance(match: Match) -> int:
    return abs(match.said.start - match.wanted.start)
