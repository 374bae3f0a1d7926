"""The report's decoder: an LSTM whose every gate sees the word, its own past, and where it looks.

Source: Xu et al., "Show, attend and tell" (2015), section 3.1, soft attention. One concatenated
input ``[x_t, h_(t-1), z_t]`` feeds the four gates. Their joint weight is kept as three blocks,
which is exact: the words' block is one product for all words before the loop, and the scores of
the vocabulary are one product after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from regard.models.attention import AdditiveAttention
from regard.models.beams import Beams, Searched, Wanted
from regard.models.decoder import Decoder, Parts, Read, Real, Rows, Step, scores
from regard.models.devices import Precision, lowered
from regard.models.dropout import Dropout, RegionDropout, WordDropout
from regard.models.fast import Packed
from regard.models.native import native
from regard.models.reading import recur
from regard.models.recurrence import Weights, cell


@dataclass(frozen=True, slots=True)
class LstmState:
    """The decoder between two words. R rows, several of them may belong to one photo."""

    h: Tensor
    """``(R, N)``"""
    c: Tensor
    """``(R, N)``"""
    rows: Rows
    """Which photo each row describes."""
    keys: Tensor
    """``(B, L, A)``"""
    regions: Tensor
    """``(B, L, D)``; their part of the gates, ``(B, L, 4N)``, where :class:`_Joined` has it so"""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.h.device

    def select(self, indices: Tensor) -> LstmState:
        """The state of other rows: ``indices`` is ``(R,)``; repeats are allowed."""
        rows, left = self.rows.select(indices)
        keys, regions = self.keys, self.regions
        if left is not None:
            keys, regions = keys[left], regions[left]
        h, c = self.h.index_select(0, indices), self.c.index_select(0, indices)
        return LstmState(h, c, rows, keys, regions)


class LstmDecoder(Decoder):
    """An LSTM that looks at the photo before each word.

    Args:
        vocabulary_size: V.
        feature_width: D.
        embedding_width: E.
        hidden_width: N.
        attention_width: A.
        start_state: ``"mean"``: the state before the first word is a layer on the mean region (Xu
            et al., section 3.1.2); ``"zeros"``: it is zero.
        gate: whether a gate ``beta_t``, a sigmoid layer on ``h_(t-1)``, scales each channel of the
            context (Xu et al., section 4.2.1, with one value a channel).
        dropout: share of values dropped in training, of the words' vectors and of the hidden
            values before the scores.
        word_dropout: share of words left out in training
            (:class:`regard.models.dropout.WordDropout`).
        region_dropout: share of regions left out in training
            (:class:`regard.models.dropout.RegionDropout`).
        fresh: whether the first weights are drawn as training needs them; loading has no use for
            orthogonal matrices.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        feature_width: int,
        embedding_width: int = 300,
        hidden_width: int = 512,
        attention_width: int = 512,
        start_state: Literal["mean", "zeros"] = "mean",
        gate: bool = False,
        dropout: float = 0.0,
        word_dropout: float = 0.0,
        region_dropout: float = 0.0,
        fresh: bool = True,
    ) -> None:
        super().__init__()
        self.hidden_width = hidden_width
        self.embedding = nn.Embedding(vocabulary_size, embedding_width)
        self.attention = AdditiveAttention(
            feature_width=feature_width, hidden_width=hidden_width, attention_width=attention_width
        )
        self.start_h = nn.Linear(feature_width, hidden_width) if start_state == "mean" else None
        self.start_c = nn.Linear(feature_width, hidden_width) if start_state == "mean" else None
        self.gate = nn.Linear(hidden_width, feature_width) if gate else None
        # Rows in the order input, forget, output, candidate.
        self.of_word = nn.Linear(embedding_width, 4 * hidden_width)
        self.of_hidden = nn.Linear(hidden_width, 4 * hidden_width, bias=False)
        self.of_context = nn.Linear(feature_width, 4 * hidden_width, bias=False)
        self.output = nn.Linear(hidden_width, vocabulary_size)
        self.dropout = Dropout(dropout)
        self.word_dropout = WordDropout(word_dropout)
        self.region_dropout = RegionDropout(region_dropout)
        self.joined: _Joined | None = None  # of a fast copy
        if fresh:
            self._initialise()

    def read(self, regions: Tensor, captions: Tensor, real: Real | None = None) -> Read:
        """Read known captions; see :meth:`Decoder.read`."""
        regions = self.region_dropout(lowered(regions))
        _, each, steps = captions.shape
        h, c = (x.unsqueeze(1).expand(-1, each, -1) for x in self._start(regions))  # (B, K, N)
        vectors = self.embedding(captions.permute(2, 0, 1))  # (T, B, K, E)
        places = torch.arange(steps, device=captions.device).view(-1, 1, 1)
        words = self.of_word(self.dropout(self.word_dropout(vectors, places)))
        keys = self.attention.keys(regions)
        past = [self.of_hidden, self.attention.of_hidden, *([self.gate] if self.gate else [])]
        context: Tensor | None = self.of_context.weight
        if self.gate is None and regions.shape[1] < each * steps:
            regions, context = self.of_context(regions), None  # (B, L, 4N)
        hidden, attention = recur(
            words,  # (T, B, K, 4N)
            keys,
            regions,
            h,
            c,
            Weights(
                past=torch.cat([layer.weight.to(keys.dtype) for layer in past]),
                score=self.attention.score.weight.squeeze(0),
                context=context,
                gate_bias=None if self.gate is None else self.gate.bias,
            ),
        )
        hidden, attention = (x.permute(1, 2, 0, 3) for x in (hidden, attention))
        return Read(hidden if real is None else real.pick(hidden), attention)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of the next word, ``(..., V)``, from hidden values ``(..., N)``."""
        hidden = self.dropout(hidden)
        if isinstance(self.output, Packed):  # of a fast copy
            packed: Tensor = self.output(hidden)
            return packed
        return scores(hidden, self.output.weight, self.output.bias)

    def wide(self) -> Sequence[nn.Module]:
        """The layer that scores words."""
        return (self.output,)

    def fast(self, precision: Precision | Literal["auto"] = "auto") -> Self:
        """A copy for use; see :meth:`Decoder.fast`."""
        copied = super().fast(precision)
        if isinstance(copied.of_word, Packed) and copied.of_word.compiled:
            copied.joined = _Joined(copied, self, copied.of_word)
        return copied

    @torch.no_grad()
    def start(self, regions: Tensor) -> LstmState:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""
        regions = lowered(regions).contiguous()
        h, c = self._start(regions)
        keys = self.attention.keys(regions)
        if self.joined is not None:
            keys = keys.to(self.joined.dtype)  # as in training; bf16 has a quicker tanh
            if self.joined.ahead:
                regions = self.of_context(regions)
        return LstmState(h, c, Rows.in_order(h.shape[0], 1, h.device), keys, regions)

    @torch.no_grad()
    def step(self, tokens: Tensor, state: LstmState) -> Step:
        """Say one word, ``(R,)`` ids, in each row of the state."""
        if self.joined is not None and (said := self.joined.say(tokens, state)) is not None:
            return said
        rows, opening = state.rows, None
        if self.joined is not None:
            past, query, opening = self.joined.past(state.h)
            words = self.joined.words[tokens]
        else:
            past = self.of_hidden(state.h)  # (R, 4N)
            query = self.attention.of_hidden(state.h)  # (R, A)
            opening = None if self.gate is None else self.gate(state.h)  # (R, D)
            words = self.of_word(self.dropout(self.embedding(tokens)))
        context, attention = self.attention(rows.by_photo(query), state.keys, state.regions)
        seen = rows.by_row(context)  # (R, D)
        if opening is not None:
            seen = seen * torch.sigmoid(opening)
        if self.joined is None or not self.joined.ahead:
            seen = self.of_context(seen)  # (R, 4N)
        wide = torch.promote_types(past.dtype, torch.float32)
        before = state.c.to(wide)
        gates, c = before.new_empty(past.shape), torch.empty_like(before)
        h = torch.empty_like(before, dtype=past.dtype)
        cell(past, seen, words, before, gates=gates, after=c, h=h)
        after = LstmState(h, c, rows, state.keys, state.regions)
        return Step(self.logits(h), rows.by_row(attention), after)

    def search(self, state: LstmState, wanted: Wanted) -> Searched | None:
        """A whole beam search in one compiled call; see :meth:`Speaker.search`."""
        return None if self.joined is None else self.joined.search(state, wanted)

    def apart(self, state: LstmState) -> Parts:
        """A state as plain tensors."""
        return Parts({"h": state.h, "c": state.c}, {"keys": state.keys, "values": state.regions})

    def together(self, parts: Parts, rows: Rows) -> LstmState:
        """The state of these parts; see :meth:`Decoder.together`."""
        (h, c), (keys, regions) = (tuple(tensors.values()) for tensors in parts)
        return LstmState(h, c, rows, keys, regions)

    def _start(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """The state before the first word, two of ``(B, N)``."""
        if self.start_h is None or self.start_c is None:
            zero = regions.new_zeros(regions.shape[0], self.hidden_width)
            return zero, zero
        if regions.dtype == torch.bfloat16 and regions.device.type == "cpu":
            # Torch would add them up in a copy in float32, which takes longer than the product.
            count = regions.shape[1]
            mean = (regions.new_ones(1, count) @ regions).squeeze(1) / count  # (B, D)
        else:
            mean = regions.mean(dim=1)
        return torch.tanh(self.start_h(mean)), self.start_c(mean)

    def _initialise(self) -> None:
        """Small random words; forget gates open, so that memory survives the first steps.

        The forget bias of 1 is from Jozefowicz, Zaremba and Sutskever, "An empirical exploration
        of recurrent network architectures" (2015), section 3.2.
        """
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        n = self.hidden_width
        nn.init.zeros_(self.of_word.bias)
        with torch.no_grad():
            self.of_word.bias[n : 2 * n] = 1.0
        for gate in range(4):
            nn.init.orthogonal_(self.of_hidden.weight[gate * n : (gate + 1) * n])


class _Joined(nn.Module):
    """What a fast copy has beside its layers: fewer, larger products with the same results.

    Without a gate the regions' part of the gates is a weighted sum of one for each region, which is
    computed once, before the first word: half of the weights are then not read again for each.

    Args:
        copied: the copy.
        decoder: the decoder.
        of_word: the layer of its copy.
    """

    words: Tensor
    """Each word's part of the gates, ``(V, 4N)``."""
    score: Tensor
    """The attention's ``v``, ``(A,)``."""
    dtype: torch.dtype
    """In which it multiplies."""
    ahead: bool
    """Whether a state has each region's part of the gates in the region's place."""

    def __init__(self, copied: LstmDecoder, decoder: LstmDecoder, of_word: Packed) -> None:
        super().__init__()
        layers = [decoder.of_hidden, decoder.attention.of_hidden]
        layers += [] if decoder.gate is None else [decoder.gate]
        self.ahead = decoder.gate is None
        self.dtype = of_word.dtype
        self._widths = [layer.out_features for layer in layers]
        nothing = decoder.embedding.weight.new_zeros(())
        biases: list[Tensor] = [
            nothing.expand(x.out_features) if x.bias is None else x.bias for x in layers
        ]
        weights: list[Tensor] = [layer.weight for layer in layers]
        self._past = Packed(torch.cat(weights), torch.cat(biases), self.dtype)
        self.register_buffer("words", of_word(decoder.embedding.weight.detach()))
        self.register_buffer("score", decoder.attention.score.weight.detach().squeeze(0))
        after = (copied.of_context, copied.output)
        self._after = [layer for layer in after if isinstance(layer, Packed)]
        even = not any(w % 2 for w in (decoder.hidden_width, decoder.of_context.in_features))
        like = torch.empty(0, dtype=self.dtype, device=nothing.device)
        fits = even and len(self._after) == len(after)
        self._say = native("say", like) if fits else None
        self._speak = native("speak", like) if fits else None

    def say(self, tokens: Tensor, state: LstmState) -> Step | None:
        """A step in one compiled call, as :meth:`LstmDecoder.step`; none without it."""
        if self._say is None or state.h.dtype != torch.float32:
            return None
        (rows, n), places, empty = state.h.shape, state.regions.shape[1], state.h.new_empty
        h, c, alpha = empty(rows, n), empty(rows, n), empty(rows, places)
        logits = empty(rows, len(self.words))
        self._say(
            state.h, state.c, tokens.contiguous(), state.rows.photo, *self._known(state), h, c,
            alpha, logits, rows, *self._sizes(state),
        )  # fmt: skip
        after = LstmState(h, c, state.rows, state.keys, state.regions)
        return Step(logits, alpha, after)

    def search(self, state: LstmState, wanted: Wanted) -> Searched | None:
        """A whole beam search; none without its function, or where a row is not each photo's."""
        photos, places = state.regions.shape[:2]
        if self._speak is None or state.h.dtype != torch.float32:
            return None
        if wanted.width > len(self.words) or not state.rows.are_in_order():
            return None
        beams = Beams(wanted, photos=photos, regions=places)
        self._speak(state.h, state.c, *self._known(state), beams.fields, *self._sizes(state))
        return beams.searched()

    def _known(self, state: LstmState) -> tuple[Any, ...]:
        """What a compiled function reads for every word."""
        of_context, output = self._after
        return (
            state.keys, state.regions, self.score, self._past.weight, self._past.bias,
            None if self.ahead else of_context.weight, self.words, output.weight, output.bias,
        )  # fmt: skip

    def _sizes(self, state: LstmState) -> tuple[int, ...]:
        """L, D, A, N, the width of what is made of the past, V."""
        regions = state.regions.shape[1:]
        return *regions, len(self.score), state.h.shape[1], sum(self._widths), len(self.words)

    def past(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Of hidden states ``(R, N)``: gates ``(R, 4N)``, query ``(R, A)``, opening ``(R, D)``."""
        of_gates, query, *opening = self._past(h).split(self._widths, dim=-1)
        return of_gates, query, opening[0] if opening else None
