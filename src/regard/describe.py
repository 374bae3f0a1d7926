"""Regions to captions in words: a decoder, a vocabulary, and one way of choosing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from regard.errors import ConfigError
from regard.metrics.agreement import agreement
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Speaker, State
from regard.models.together import Together
from regard.search import Hypothesis, Rules, beam_search, draw, sample
from regard.text.phrases import Phrases
from regard.text.tokenise import detokenise, tokenise
from regard.text.vocabulary import Lexicon


@dataclass(frozen=True, slots=True)
class Decoding:
    """How captions are chosen.

    Raises:
        ConfigError: a value out of range.
    """

    beam: int = 3
    """Width of the beam; 1 is greedy. Not used when sampling."""
    max_length: int = 30
    """Most words (or pieces of words, if the vocabulary is made of them) of a caption."""
    length_penalty: float = 0.7
    """Exponent of the length that a candidate's log-probability is divided by."""
    min_length: int = 1
    """Fewest words (or pieces of words) of a caption."""
    no_repeat: int | None = None
    """No so many words in a row are said twice in a caption; none allows it."""
    forbid: tuple[str, ...] = ()
    """Words and phrases that no caption has. A phrase that ends a longer word's spelling, where
    words are made of pieces, ends it there too: without ``man`` there may be no ``manhole``."""
    prefix: str = ""
    """What every caption begins with, such as "a photo of"."""
    groups: int = 1
    """Groups that the beam is divided into, which say different things; divides the beam."""
    diversity: float = 0.5
    """How much less probable (nats) a group finds a word each time that an earlier one chose it at
    the same place."""
    sampling: bool = False
    """Whether words are drawn at random instead."""
    seed: int = 0
    """Seed of the draws."""
    count: int = 1
    """Captions for each photo: drawn when sampling; else shown, of those that the beam found."""
    temperature: float = 1.0
    """Sharpness of the distribution drawn from: below 1 sharper, above 1 flatter."""
    top_k: int | None = None
    """Draw from this many most probable words only."""
    top_p: float | None = None
    """Draw from the most probable words that together reach this probability."""
    consensus: int = 0
    """Captions drawn of each photo (with ``seed``, at temperature 1) with which its candidates are
    compared: the one that they agree with most comes first. They keep to the lengths, and to no
    prefix or forbidden phrase. 0 leaves candidates in the order of their score. See
    :mod:`regard.metrics.agreement`."""

    def __post_init__(self) -> None:
        checks = [
            ("beam", self.beam, 1 <= self.beam <= 50, "from 1 to 50"),
            ("max-length", self.max_length, 1 <= self.max_length <= 200, "from 1 to 200"),
            (
                "min-length",
                self.min_length,
                1 <= self.min_length <= self.max_length,
                f"from 1 to max-length, which is {self.max_length}",
            ),
            ("count", self.count, 1 <= self.count <= 100, "from 1 to 100"),
            (
                "count",
                self.count,
                self.sampling or not 1 <= self.beam < self.count,
                f"at most the beam, which is {self.beam}, or with sampling",
            ),
            ("length-penalty", self.length_penalty, 0 <= self.length_penalty <= 5, "from 0 to 5"),
            (
                "no-repeat",
                self.no_repeat,
                self.no_repeat is None or self.no_repeat >= 1,
                "at least 1",
            ),
            (
                "groups",
                self.groups,
                self.groups >= 1 and self.beam % self.groups == 0,
                f"a divisor of the beam, which is {self.beam}",
            ),
            (
                "groups",
                self.groups,
                self.groups == 1 or not self.sampling,
                "1 with sampling, which has no beam",
            ),
            ("diversity", self.diversity, 0 <= self.diversity <= 100, "from 0 to 100"),
            (
                "temperature",
                self.temperature,
                0 < self.temperature <= 100,
                "above 0, at most 100",
            ),
            ("seed", self.seed, 0 <= self.seed < 2**40, "at least 0 and below 2^40"),
            ("consensus", self.consensus, 0 <= self.consensus <= 1000, "from 0 to 1000"),
            ("top-k", self.top_k, self.top_k is None or self.top_k >= 1, "at least 1"),
            ("top-p", self.top_p, self.top_p is None or 0 < self.top_p <= 1, "above 0, at most 1"),
            *(
                ("forbid", phrase, bool(tokenise(phrase)), "at least one word")
                for phrase in self.forbid
            ),
            *(
                ("forbid", phrase, not _within(phrase, self.prefix), "no part of the prefix")
                for phrase in self.forbid
            ),
        ]
        problems = [
            f"{name} is {value!r}, it must be {wanted}"
            for name, value, good, wanted in checks
            if not good
        ]
        if problems:
            raise ConfigError("These captions cannot be chosen: " + "; ".join(problems) + ".")


@dataclass(frozen=True, slots=True)
class Caption:
    """What was said of a photo, and where each word looked."""

    text: str
    """A lower-case sentence; of a finished captioner, what it wrote."""
    words: tuple[str, ...]
    """The T words it is made of."""
    log_probabilities: tuple[float, ...]
    """Natural logarithm of each word's probability given the words before it: the sum over its
    pieces where it has several."""
    maps: np.ndarray
    """``(T, H, W)``, float32: each word's attention over the encoder's grid; sums to 1. Where a
    word has several pieces it is their mean, each with the same weight. H and W are 0 where a
    finished captioner has no gaze."""
    score: float
    """What candidates of a photo are ordered by."""
    cut: bool
    """Whether it was ended because it had reached the greatest length."""
    similarity: float | None = None
    """Cosine of photo and caption by a CLIP that candidates were ordered by, else none."""
    agreement: float | None = None
    """Mean CIDEr-D with captions drawn of the photo that candidates were ordered by, else none."""

    @property
    def standing(self) -> float:
        """What it was ordered by: similarity, agreement or score."""
        return next(v for v in (self.similarity, self.agreement, self.score) if v is not None)


def describe(
    decoder: Speaker,
    vocabulary: Lexicon,
    regions: Tensor,
    *,
    grid: tuple[int, int],
    decoding: Decoding,
    frequencies: Callable[[], DocumentFrequencies] | None = None,
) -> list[list[Caption]]:
    """Caption photos.

    Args:
        decoder: in eval mode; or one that was exported.
        vocabulary: of the decoder.
        regions: ``(B, L, D)`` in float32 on the decoder's device.
        grid: H and W, with H x W = L.
        decoding: how captions are chosen.
        frequencies: for a consensus: how many training photos have which phrase.

    Returns:
        For each photo its captions, best first, at least one.

    Raises:
        ConfigError: the vocabulary lacks a word of the prefix, or the prefix is too long; no
            caption can be begun because every word is forbidden; or there is a consensus to find
            and there are no frequencies.
    """
    rules = rules_of(decoding, vocabulary)
    known = None
    if decoding.consensus:
        if frequencies is None:
            raise ConfigError("A consensus needs to know how common phrases are; give frequencies.")
        known = frequencies()
    with torch.inference_mode():
        state = decoder.start(regions)
    photos = len(regions)
    if decoding.sampling:
        found = sample(
            decoder.step, state, photos, rules=rules, seed=decoding.seed, count=decoding.count,
            temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p,
        )  # fmt: skip
    else:
        found = beam_search(
            decoder.step, state, photos, rules=rules, width=decoding.beam,
            groups=decoding.groups, diversity=decoding.diversity, at_once=decoder.search,
        )  # fmt: skip
    captions = [[_in_words(h, vocabulary, grid) for h in hypotheses] for hypotheses in found]
    if known is None:
        return captions
    drawn = _drawn(decoder, vocabulary, state, photos, rules, decoding)
    return [_in_agreement(*each, known) for each in zip(captions, drawn, strict=True)]


def _in_agreement(
    candidates: Sequence[Caption], drawn: Sequence[Sequence[str]], frequencies: DocumentFrequencies
) -> list[Caption]:
    """The captions of one photo, those that the drawn ones agree with most first."""
    agreed = agreement([caption.words for caption in candidates], drawn, frequencies)
    known = map(lambda c, a: replace(c, agreement=a), candidates, agreed.tolist())
    return sorted(known, key=lambda caption: -(caption.agreement or 0.0))  # equals: by score


_AT_ONCE = 4096
"""Captions that are drawn at once: their scores are this many times V."""


def _drawn(
    decoder: Speaker,
    vocabulary: Lexicon,
    state: State,
    photos: int,
    rules: Rules,
    decoding: Decoding,
) -> list[list[tuple[str, ...]]]:
    """Captions of each photo, drawn with the same numbers whatever photos are beside it.

    Of several who speak together each draws its share, in turn: captions of the mixture of them,
    for the work of one.
    """
    random = np.random.default_rng(decoding.seed)
    numbers = random.random((decoding.consensus, rules.max_length + 1), dtype=np.float32)
    drawn: list[list[tuple[str, ...]]] = [[] for _ in range(photos)]
    at_once = max(1, _AT_ONCE // photos)
    speakers = decoder.each(state) if isinstance(decoder, Together) else [(decoder, state)]
    for place, (speaker, own) in enumerate(speakers[: decoding.consensus]):
        share = torch.from_numpy(numbers[place :: len(speakers)]).to(state.device)
        for uniform in torch.split(share, at_once):
            ids = draw(
                speaker.step, own, rules=rules, uniform=uniform.expand(photos, *uniform.shape)
            ).ids
            for captions, each in zip(drawn, ids.tolist(), strict=True):
                captions += (drawn_words(one, vocabulary) for one in each)
    return drawn


def drawn_words(ids: Sequence[int], vocabulary: Lexicon) -> tuple[str, ...]:
    """The words of a caption of :func:`regard.search.draw`."""
    said = [i for i in ids if i not in (-1, vocabulary.end)]
    return tuple(spelled.word for spelled in vocabulary.spell(said))


def rules_of(decoding: Decoding, vocabulary: Lexicon) -> Rules:
    """What search has to keep to, in ids.

    Raises:
        ConfigError: the vocabulary lacks a word of the prefix, or the prefix is too long.
    """
    prefix = tokenise(decoding.prefix)
    pieces = vocabulary.pieces(prefix) if prefix else []
    unsaid = set(vocabulary.forbidden)
    unknown = [repr(w) for w, ids in zip(prefix, pieces, strict=True) if unsaid & set(ids)]
    if unknown:
        raise ConfigError(
            f"No caption can begin with {decoding.prefix!r}: the captioner does not know "
            f"{', '.join(unknown)}. Take words of its {vocabulary.file_name}."
        )
    ids = [i for word in pieces for i in word]
    if len(ids) > decoding.max_length:
        raise ConfigError(
            f"No caption can begin with {decoding.prefix!r}: that is {len(ids)} words (or pieces "
            f"of words), and max-length is {decoding.max_length}. Take a greater one."
        )
    forbidden = [tokenise(phrase) for phrase in decoding.forbid]
    barring = forbidden or decoding.no_repeat is not None
    return Rules(
        start=vocabulary.start,
        end=vocabulary.end,
        forbidden=vocabulary.forbidden,
        barred=Phrases(vocabulary, forbidden, decoding.no_repeat) if barring else None,
        prefix=tuple(ids),
        min_length=decoding.min_length,
        max_length=decoding.max_length,
        length_penalty=decoding.length_penalty,
    )


def _within(phrase: str, text: str) -> bool:
    """Whether a text has the words of a phrase, one after the other."""
    return f" {' '.join(tokenise(phrase))} " in f" {' '.join(tokenise(text))} "


def mean_by_word(maps: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The maps of words from those of their pieces: the mean, each piece with the same weight.

    Args:
        maps: ``(pieces, ...)``; what lies beyond the last word's is left out.
        lengths: of how many pieces each of the T words is made, at least one.

    Returns:
        ``(T, ...)``, of the same dtype.
    """
    each = np.array(lengths, maps.dtype).reshape(-1, *[1] * (maps.ndim - 1))
    means: np.ndarray = _sum_by_word(maps, lengths) / each
    return means


def _sum_by_word(values: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    first = np.cumsum([0, *lengths])
    sums: np.ndarray = np.add.reduceat(values[: first[-1]], first[:-1])
    return sums


def _in_words(hypothesis: Hypothesis, vocabulary: Lexicon, grid: tuple[int, int]) -> Caption:
    spelled = vocabulary.spell(hypothesis.ids)
    words, lengths = tuple(word for word, _ in spelled), [length for _, length in spelled]
    log_probabilities = _sum_by_word(np.array(hypothesis.log_probabilities), lengths)
    return Caption(
        text=detokenise(words),
        words=words,
        log_probabilities=tuple(log_probabilities.tolist()),
        maps=mean_by_word(hypothesis.attention.numpy(), lengths).reshape(-1, *grid),
        score=hypothesis.score,
        cut=hypothesis.cut,
    )
