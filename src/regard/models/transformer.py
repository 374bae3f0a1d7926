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
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.models.beams import Beams, Searched, Wanted
from regard.models.decoder import Decoder, Parts, Read, Real, Rows, Step, scores
from regard.models.devices import Precision, lowered
from regard.models.dropout import Dropout, RegionDropout, WordDropout
from regard.models.fast import Packed
from regard.models.heads import Memory, attend, attend_joined, by_head
from regard.models.native import native

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


@dataclass(frozen=True, slots=True)
class CompiledState:
    """The same of a fast copy: what is kept of the words is neither moved nor copied.

    A row that goes on from another only knows which that was.
    """

    said: tuple[Tensor, ...]
    """For each of the t words ``(rows of its step, layers, 2 N)``: keys and values."""
    where: Tensor
    """``(R, t)``: which rows of those each row has."""
    rows: Rows
    """Which photo each row describes."""
    seen: Tensor
    """``(layers, B, L, 2 N)``: keys and values of the regions."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.where.device

    def select(self, indices: Tensor) -> CompiledState:
        """The state of other rows: ``indices`` is ``(R,)``; repeats are allowed."""
        rows, left = self.rows.select(indices)
        seen = self.seen if left is None else self.seen[:, left]
        return CompiledState(self.said, self.where.index_select(0, indices), rows, seen)


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
        self.scorer: Packed | None = None  # of a fast copy
        self.compiled: _Compiled | None = None  # of a fast copy
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
            packed: Tensor = self.scorer(hidden)
            return packed
        return scores(hidden, self._rows(), self.bias)

    def fast(self, precision: Precision | Literal["auto"] = "auto") -> Self:
        """A copy for use; see :meth:`Decoder.fast`."""
        copied = super().fast(precision)
        if isinstance(copied.see, Packed) and copied.see.compiled:
            copied.scorer = Packed(self._rows(), self.bias, copied.see.dtype)
            copied.compiled = _Compiled.of(copied, next(self._layers()).widen.out_features)
        return copied

    def _rows(self) -> Tensor:
        """What scores the words, ``(V, E)`` or ``(V, N)``."""
        return self.embedding.weight if self.output is None else self.output

    @torch.no_grad()
    def start(self, regions: Tensor) -> TransformerState | CompiledState:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""
        regions = self._seen(regions)
        if self.compiled is not None:
            return self.compiled.start(regions)
        seen = tuple(
            Memory(*by_head(layer.of_seen(regions), 2, layer.heads)) for layer in self._layers()
        )
        photos, heads, _, width = seen[0].keys.shape
        nothing = seen[0].keys.new_empty(photos, heads, 0, width)
        rows = Rows.in_order(photos, 1, regions.device)
        return TransformerState((Memory(nothing, nothing),) * len(seen), rows, seen)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: TransformerState | CompiledState) -> Step:
        """Say one word, ``(R,)`` ids, in each row of the state."""
        if isinstance(state, CompiledState):
            assert self.compiled is not None
            return self.compiled.step(tokens, state)
        length = state.said[0].keys.shape[2]
        places = torch.full((1,), length, device=tokens.device)
        words, said = self._enter(tokens, places), []  # (R, N)
        for layer, seen, before in zip(self._layers(), state.seen, state.said, strict=True):
            words, now, weights = layer.step(words, seen, before, state.rows)
            said.append(now)
        after = TransformerState(tuple(said), state.rows, state.seen)
        return Step(self.logits(self.norm(words)), state.rows.by_row(_gaze(weights)), after)

    def search(self, state: Any, wanted: Wanted) -> Searched | None:
        """A whole beam search in one compiled call; see :meth:`Speaker.search`."""
        return None if self.compiled is None else self.compiled.search(state, wanted)

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
        entered: Tensor = self.dropout(words + self.of_places(places).to(words.dtype))
        return entered

    def of_places(self, places: Tensor) -> Tensor:
        """What is added to the words in these places ``(...)``, ``(..., N)``."""
        if self.positions is None:
            return _sinusoids(places, self.embedding.weight, self.norm.normalized_shape[0])
        return self.positions[places.clamp_max(POSITIONS - 1)]

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


class _Compiled(nn.Module):
    """A fast copy's words in one compiled call each, and whole searches.

    Args:
        copied: the copy, which has this as a part.
        wide: to what its feed-forward layers widen.
        dtype: in which they multiply.
        say: what says a word.
        speak: what searches.
    """

    words: Tensor
    """How each word enters, ``(V, N)``."""

    @classmethod
    def of(cls, copied: TransformerDecoder, wide: int) -> Self | None:
        """None without a compiler, or where widths are not those that the functions take."""
        assert copied.scorer is not None
        like = copied.bias.new_empty(0, dtype=copied.scorer.dtype)
        say, speak = native("say_words", like), native("speak_words", like)
        if say is None or speak is None or copied.bias.dtype != torch.float32:
            return None
        width, scored = copied.norm.normalized_shape[0], copied._rows().shape[1]
        if width // next(copied._layers()).heads % 32 or scored % 2 or wide % 2:
            return None
        return cls(copied, wide, like.dtype, say, speak)

    def __init__(
        self,
        copied: TransformerDecoder,
        wide: int,
        dtype: torch.dtype,
        say: Callable[..., None],
        speak: Callable[..., None],
    ) -> None:
        super().__init__()
        self._say, self._speak, self._wide = say, speak, wide
        self._dtype = dtype
        # In a list and a tuple they stay parts of the copy alone.
        self._layers = list(copied._layers())
        self._ends = copied.norm, copied.leave, copied.scorer
        self._of_places = copied.of_places
        rows = copied.embedding.weight.detach()
        entered = rows * math.sqrt(rows.shape[1])
        self.register_buffer("words", entered if copied.enter is None else copied.enter(entered))
        self._scored = copied._rows().shape[1]

    def start(self, regions: Tensor) -> CompiledState:
        """The state before the first word, of regions ``(B, L, N)`` as the layers ask them."""
        seen = torch.stack([layer.of_seen(regions).to(self._dtype) for layer in self._layers])
        nothing = torch.empty(len(regions), 0, dtype=torch.long)
        return CompiledState((), nothing, Rows.in_order(len(regions), 1, seen.device), seen)

    def step(self, tokens: Tensor, state: CompiledState) -> Step:
        """One more word of each row."""
        (rows, t), (depth, _, regions, both) = state.where.shape, state.seen.shape
        empty, known = self.words.new_empty, self._known(state, t)
        now = state.seen.new_empty(rows, depth, both)
        alpha, logits = empty(rows, regions), empty(rows, len(self.words))
        said = torch.tensor([step.data_ptr() for step in state.said], dtype=torch.long)
        self._say(
            known.fields, tokens.contiguous(), state.rows.photo, said, state.where, now, alpha,
            logits, rows, t,
        )  # fmt: skip
        where = torch.cat([state.where, torch.arange(rows).unsqueeze(1)], dim=1)
        return Step(logits, alpha, CompiledState((*state.said, now), where, state.rows, state.seen))

    def search(self, state: CompiledState, wanted: Wanted) -> Searched | None:
        """A whole beam search; none where a row is not each photo's."""
        _, photos, regions, _ = state.seen.shape
        if wanted.width > len(self.words) or state.said or not state.rows.are_in_order():
            return None
        beams = Beams(wanted, photos=photos, regions=regions)
        known = self._known(state, wanted.longest)
        self._speak(known.fields, beams.fields)
        return beams.searched()

    def _known(self, state: CompiledState, longest: int) -> _Known:
        """What is read for every word, up to that after ``longest``."""
        places = self._of_places(torch.arange(longest + 1)).detach().contiguous()  # (T, N)
        depth, photos, regions, both = state.seen.shape
        layers = torch.tensor([
            address
            for layer in self._layers
            for part in (
                layer.norm_said, layer.of_said, layer.from_said, layer.norm_seen, layer.query,
                layer.from_seen, layer.norm_wide, layer.widen, layer.narrow,
            )
            for address in _addresses(part)
        ])  # fmt: skip
        fields = torch.tensor([
            *(x.data_ptr() for x in (self.words, places, layers, state.seen)),
            *(address for part in self._ends for address in _addresses(part)),
            depth, photos, regions, both // 2, self._layers[0].heads, self._wide, self._scored,
            len(self.words),
        ])  # fmt: skip
        return _Known(fields, layers, places)


class _Known(NamedTuple):
    """``Transformer`` of ``kernels/transformer.cpp``: the same fields in the same order."""

    fields: Tensor
    layers: Tensor
    """For each layer its parts' weights and biases. Here, as the places are, to stay in memory."""
    places: Tensor


def _addresses(part: Any) -> tuple[int, int]:
    """Where the weight and the bias of a part are; 0 where it has none."""
    if part is None:
        return 0, 0
    return part.weight.data_ptr(), 0 if part.bias is None else part.bias.data_ptr()


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
