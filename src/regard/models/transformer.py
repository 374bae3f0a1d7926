"""A Transformer that writes captions: all words of a caption learn at once.

Source: Vaswani et al., "Attention is all you need" (2017), the decoder of section 3.1. Each layer
attends to the words said so far, then to the regions of the photo, then widens and narrows each
word's vector by itself. Normalisation comes before each of the three (pre-norm; Xiong et al., "On
layer normalization in the transformer architecture", 2020), which trains without a long warm-up.
The feed-forward layers use GELU.

Before that, layers of its encoder (section 3.1 too) can let the regions of a photo ask each other.
Without them a region is what the vision encoder saw there, and a gaze at it means just that.

What is known of a photo, the keys and values of its regions in each layer, is computed once for
each photo: all words of its K captions ask the same ones.

Where it looked for a word is the mean over the heads of the last layer's attention to the regions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.models.decoder import Decoder, Parts, Read, Real, Rows, Step, scores
from regard.models.devices import Precision, lowered
from regard.models.dropout import Dropout, RegionDropout, WordDropout
from regard.models.fast import Narrow, keeps_sums
from regard.models.heads import Memory, attend, attend_joined, by_head

POSITIONS = 201
"""Learned positions: ``<START>`` and the most words that a caption may be asked to have."""


@dataclass(frozen=True, slots=True)
class TransformerState:
    """The decoder after t words. R rows, several of them may belong to one photo."""

    said: tuple[Memory, ...]
    """For each layer that of the t words, R rows."""
    rows: Rows
    """Which photo each row describes."""
    seen: tuple[Memory, ...]
    """For each layer that of the regions, B rows."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.photo.device

    def select(self, indices: Tensor) -> TransformerState:
        """The state of other rows: ``indices`` is ``(R,)``; repeats are allowed."""
        rows, left = self.rows.select(indices)
        seen = self.seen if left is None else tuple(memory.rows(left) for memory in self.seen)
        return TransformerState(tuple(memory.rows(indices) for memory in self.said), rows, seen)


class TransformerDecoder(Decoder):
    """A stack of layers that attend to the words said so far and to the regions.

    Args:
        vocabulary_size: V.
        feature_width: D.
        embedding_width: E; where it is not N, a layer without bias brings the words to N.
        hidden_width: N, even and a multiple of ``heads``.
        layers: how many there are.
        region_layers: how many let the regions ask each other first.
        heads: of each attention.
        feed_forward_width: to which each word's vector is widened between two attentions.
        positions: ``"sinusoidal"``: sines and cosines of the position (Vaswani et al., section
            3.5), for any length; ``"learned"``: vectors that begin as those. What stands after
            :data:`POSITIONS` words takes the last learned one.
        tied: whether the words' vectors are also the rows that score them (Press and Wolf, "Using
            the output embedding to improve language models", 2017).
        dropout: share of values dropped in training, of the regions, of the words' vectors, and of
            what each attention and each feed-forward layer adds to those.
        word_dropout: share of words left out in training
            (:class:`regard.models.dropout.WordDropout`).
        region_dropout: share of regions left out in training
            (:class:`regard.models.dropout.RegionDropout`).
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        embedding_width: int,
        hidden_width: int,
        layers: int,
        heads: int,
        feed_forward_width: int,
        region_layers: int = 0,
        positions: Literal["sinusoidal", "learned"] = "sinusoidal",
        tied: bool = True,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        region_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        narrow = embedding_width != hidden_width
        self.embedding = nn.Embedding(vocabulary_size, embedding_width)
        self.enter = nn.Linear(embedding_width, hidden_width, bias=False) if narrow else None
        self.positions = (
            nn.Parameter(_sinusoids(torch.arange(POSITIONS), self.embedding.weight, hidden_width))
            if positions == "learned"
            else None
        )
        self.see = nn.Linear(feature_width, hidden_width)
        self.among = nn.ModuleList(
            _RegionLayer(hidden_width, heads, feed_forward_width, dropout)
            for _ in range(region_layers)
        )
        self.norm_seen = nn.LayerNorm(hidden_width)
        self.layers = nn.ModuleList(
            _Layer(hidden_width, heads, feed_forward_width, dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(hidden_width)
        self.leave = (
            nn.Linear(hidden_width, embedding_width, bias=False) if tied and narrow else None
        )
        self.output = None if tied else nn.Parameter(torch.empty(vocabulary_size, hidden_width))
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))
        self.dropout = Dropout(dropout)
        self.word_dropout = WordDropout(word_dropout)
        self.region_dropout = RegionDropout(region_dropout)
        self.scorer: Narrow | None = None  # of a fast copy
        for rows in (self.embedding.weight, self.output):
            if rows is not None:  # scores of about 1 from normalised hidden values
                nn.init.normal_(rows, std=rows.shape[1] ** -0.5)

    def read(self, regions: Tensor, captions: Tensor, real: Real | None = None) -> Read:
        """Read known captions; see :meth:`Decoder.read`."""
        places = torch.arange(captions.shape[-1], device=captions.device)
        if real is not None:
            places = places.expand_as(captions).flatten()[real.places]
            captions = captions.flatten()[real.places]
        words = self._enter(captions, places)  # (B, K, T, N) or (M, N)
        regions = self._seen(self.region_dropout(regions))
        for layer in self._layers():
            words, weights = layer.read(words, layer.of_seen(regions), real)
        shape = words.shape[:-1] if real is None else real.shape
        return Read(self.norm(words), _gaze(weights).view(*shape, -1))

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next word, ``(..., V)``, from hidden values ``(..., N)``."""
        if self.leave is not None:
            hidden = self.leave(hidden)  # (..., E)
        if self.scorer is not None:
            narrow: Tensor = self.scorer(hidden)
            return narrow
        return scores(hidden, self._rows(), self.bias)

    def fast(self, precision: Precision | Literal["auto"] = "auto") -> Self:
        """A copy for use; see :meth:`Decoder.fast`."""
        copied = super().fast(precision)
        if isinstance(copied.see, Narrow) and keeps_sums(self.bias.device):
            copied.scorer = Narrow(self._rows(), self.bias)
        return copied

    def _rows(self) -> Tensor:
        """What scores the words, ``(V, E)`` or ``(V, N)``."""
        return self.embedding.weight if self.output is None else self.output

    @torch.no_grad()
    def start(self, regions: Tensor) -> TransformerState:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""
        regions = self._seen(regions)
        seen = tuple(
            Memory(*by_head(layer.of_seen(regions), 2, layer.heads)) for layer in self._layers()
        )
        photos, heads, _, width = seen[0].keys.shape
        nothing = seen[0].keys.new_empty(photos, heads, 0, width)
        rows = Rows.in_order(photos, 1, regions.device)
        return TransformerState((Memory(nothing, nothing),) * len(seen), rows, seen)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: TransformerState) -> Step:
        """Say one word, ``(R,)`` ids, in each row of the state."""
        length = state.said[0].keys.shape[2]
        places = torch.full((1,), length, device=tokens.device)
        words, said = self._enter(tokens, places), []  # (R, N)
        for layer, seen, before in zip(self._layers(), state.seen, state.said, strict=True):
            words, now, weights = layer.step(words, seen, before, state.rows)
            said.append(now)
        after = TransformerState(tuple(said), state.rows, state.seen)
        return Step(self.logits(self.norm(words)), state.rows.by_row(_gaze(weights)), after)

    def apart(self, state: TransformerState) -> Parts:
        """A state as plain tensors."""
        return Parts(_named("said", state.said), _named("seen", state.seen))

    def together(self, parts: Parts, rows: Rows) -> TransformerState:
        """The state of these parts; see :meth:`Decoder.together`."""
        said, seen = (_memories(tensors) for tensors in parts)
        return TransformerState(said, rows, seen)

    def _enter(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Words with their positions, ``(..., N)``, of ids ``(...)`` and places that fit them."""
        words = lowered(self.embedding(tokens) * math.sqrt(self.embedding.embedding_dim))
        words = self.word_dropout(words, places)
        if self.enter is not None:
            words = self.enter(words)
        if self.positions is None:
            known = _sinusoids(places, self.embedding.weight, words.shape[-1])
        else:
            known = self.positions[places.clamp_max(POSITIONS - 1)]
        words = words + known.to(words.dtype)
        entered: Tensor = self.dropout(words)
        return entered

    def _seen(self, regions: Tensor) -> Tensor:
        """What the layers ask of the photos, ``(B, L, N)``, from regions ``(B, L, D)``."""
        regions = self.see(regions)
        for layer in self.among:
            regions = layer(regions)
        shown: Tensor = self.dropout(self.norm_seen(regions))
        return shown

    def _layers(self) -> Iterator[_Layer]:
        return iter(self.layers)  # type: ignore[arg-type]


class _Layer(nn.Module):
    """Attention to the words, attention to the regions, feed-forward: each adds to the words."""

    def __init__(self, width: int, heads: int, feed_forward_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm_said = nn.LayerNorm(width)
        self.of_said = nn.Linear(width, 3 * width)  # queries, keys, values
        self.from_said = nn.Linear(width, width)
        self.norm_seen = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.of_seen = nn.Linear(width, 2 * width)  # keys, values
        self.from_seen = nn.Linear(width, width)
        self.norm_wide = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feed_forward_width)
        self.narrow = nn.Linear(feed_forward_width, width)
        self.dropout = Dropout(dropout)

    def read(self, words: Tensor, seen: Tensor, real: Real | None) -> tuple[Tensor, Tensor]:
        """All words of captions.

        Args:
            words: ``(B, K, T, N)``, or ``(M, N)``, those at the real places.
            seen: :attr:`of_seen` of the regions, ``(B, L, 2 N)``.
            real: where the M words are; none if there is one in every place.

        Returns:
            The words; the attention to the regions, ``(B, heads, K T, L)``.
        """
        said = _spread(self.of_said(self.norm_said(words)), real).flatten(0, 1)  # (B K, T, 3 N)
        heard, _ = attend_joined(said, None, self.heads, causal=True)
        words = words + self.dropout(self.from_said(_picked(heard, words, real)))
        asked = _spread(self.query(self.norm_seen(words)), real).flatten(1, 2)  # (B, K T, N)
        found, weights = attend_joined(asked, seen, self.heads)
        words = words + self.dropout(self.from_seen(_picked(found, words, real)))
        return _widened(self, words), weights

    def step(
        self, words: Tensor, seen: Memory, said: Memory, rows: Rows
    ) -> tuple[Tensor, Memory, Tensor]:
        """One more word of each row.

        Args:
            words: ``(R, N)``.
            seen: of the regions, B rows.
            said: of the t words before, R rows.
            rows: which photos the rows describe.

        Returns:
            The words; the memory of all words up to here; the attention to the regions, ``(B,
            heads, K, L)``.
        """
        projected = self.of_said(self.norm_said(words)).unsqueeze(1)  # (R, 1, 3 N)
        query, *now = by_head(projected, 3, self.heads)
        said = said.then(Memory(*now))
        heard, _ = attend(query, said)  # (R, heads, 1, N / heads)
        words = words + self.from_said(heard.flatten(1))
        (asked,) = by_head(rows.by_photo(self.query(self.norm_seen(words))), 1, self.heads)
        found, weights = attend(asked, seen)
        words = words + self.from_seen(rows.by_row(found.transpose(1, 2).flatten(2)))
        return _widened(self, words), said, weights


def _gaze(weights: Tensor) -> Tensor:
    """The mean over the heads, ``(B, K T, L)``, at least float32."""
    return weights.mean(dim=1, dtype=torch.promote_types(weights.dtype, torch.float32))


def _spread(words: Tensor, real: Real | None) -> Tensor:
    """To all places, ``(B, K, T, N)``."""
    return words if real is None else real.spread(words)


def _picked(padded: Tensor, words: Tensor, real: Real | None) -> Tensor:
    """In the shape of the words, from all places."""
    return padded.view_as(words) if real is None else real.pick(padded.view(*real.shape, -1))


class _RegionLayer(nn.Module):
    """Attention of the regions to each other, feed-forward: each adds to the regions."""

    def __init__(self, width: int, heads: int, feed_forward_width: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.of_regions = nn.Linear(width, 3 * width)  # queries, keys, values
        self.from_regions = nn.Linear(width, width)
        self.norm_wide = nn.LayerNorm(width)
        self.widen = nn.Linear(width, feed_forward_width)
        self.narrow = nn.Linear(feed_forward_width, width)
        self.dropout = Dropout(dropout)

    def forward(self, regions: Tensor) -> Tensor:
        """``(B, L, N)`` to ``(B, L, N)``."""
        found, _ = attend_joined(self.of_regions(self.norm(regions)), None, self.heads)
        return _widened(self, regions + self.dropout(self.from_regions(found)))


def _widened(layer: _Layer | _RegionLayer, values: Tensor) -> Tensor:
    """What the feed-forward part of a layer makes of ``(..., N)``."""
    wide = F.gelu(layer.widen(layer.norm_wide(values)))  # (..., feed-forward width)
    after: Tensor = values + layer.dropout(layer.narrow(wide))
    return after


def _named(what: str, memories: Sequence[Memory]) -> dict[str, Tensor]:
    """The keys and values of each layer, by names."""
    return {
        f"{what}_{part}_{i}": tensor
        for i, memory in enumerate(memories)
        for part, tensor in memory._asdict().items()
    }


def _memories(tensors: Mapping[str, Tensor]) -> tuple[Memory, ...]:
    """The memory of each layer, from what :func:`_named` made."""
    parts = list(tensors.values())
    return tuple(map(Memory, parts[::2], parts[1::2]))


def _sinusoids(places: Tensor, like: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions ``(T,)``, ``(T, N)``; wavelengths from 2 pi to 20,000 pi."""
    rates = torch.arange(0, width, 2).to(like) * (-math.log(10_000) / width)
    angles = places.to(like).unsqueeze(1) * rates.exp()  # (T, N / 2)
    return torch.cat([angles.sin(), angles.cos()], dim=1)
