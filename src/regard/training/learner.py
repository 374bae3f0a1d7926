"""One iteration's loss, as one module: what each process runs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from regard.data.batches import Expected, inputs_and_targets
from regard.models.decoder import Decoder, Real
from regard.models.devices import multiplied
from regard.models.encoders import Encoder
from regard.training.loss import NOTHING, Taught, surprise

NEVER = -1e4
"""A score of what cannot be. Not minus infinity: no mean over the vocabulary has that."""


class Learner(nn.Module):
    """Photos and captions to the loss.

    Args:
        encoder: the encoder if it is trained here; none if photos come as cached regions.
        decoder: what is trained.
        pad: id of the padding, which is never a target.
        label_smoothing: share of the target spread evenly over the vocabulary (Szegedy et al.,
            "Rethinking the Inception architecture", 2016, section 7).
        attention_penalty: lambda of the penalty that makes a caption's words together look at each
            region once: ``lambda sum_i (1 - sum_t alpha_ti)^2`` (Xu et al., "Show, attend and
            tell", 2015, section 4.2.1).
        scheduled_sampling: in training, the share of the words read that the decoder draws itself
            at the end of the run; it rises from 0 with the iterations (Bengio et al., "Scheduled
            sampling for sequence prediction", 2015, section 2.4). All words of a caption are drawn
            at once, each after the known words before it (Mihaylova and Martins, "Scheduled
            sampling for Transformers", 2019), so that one more reading is all it takes.
        teaching: share of the target that is what teachers expect, where there are teachers.
        end: id that ends a caption, and never is its first.
        forbidden: ids that are never drawn.
    """

    def __init__(
        self,
        *,
        encoder: Encoder | None,
        decoder: Decoder,
        pad: int,
        end: int,
        label_smoothing: float,
        attention_penalty: float = 0.0,
        scheduled_sampling: float = 0.0,
        teaching: float = 0.0,
        forbidden: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self._pad = pad
        self._smoothing = label_smoothing
        self._penalty = attention_penalty
        self._sampling = scheduled_sampling
        self._teaching = teaching
        self._end, self._forbidden = end, list(forbidden)

    def regions(self, photos: Tensor) -> Tensor:
        """Regions ``(B, L, D)``: of prepared photos ``(B, 3, H, W)``, or the cached ones."""
        if self.encoder is not None:
            regions: Tensor = self.encoder(photos)
            return regions
        return multiplied(photos)

    def forward(
        self,
        photos: Tensor,
        captions: Tensor,
        *,
        done: float = 0.0,
        weights: NDArray[np.float32] | None = None,
        expected: Expected | None = None,
        drawn: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Sums over the words of the batch.

        Args:
            photos: ``(B, L, D)`` or ``(B, 3, H, W)``.
            captions: ``(B, K, T + 1)``.
            done: share of the run's iterations that are done.
            weights: ``(B, K)``: of each caption in what is minimised; none is 1.
            expected: ``(B, K, T, k)``: what teachers expect at each word.
            drawn: whether what is minimised is the surprise among the words that can be drawn,
                rather than among all.

        Returns:
            The sum of what is minimised, and the plain sum of ``-log p(word)`` (nats, without a
            gradient, without weights).
        """
        inputs, targets = inputs_and_targets(captions)
        regions = self.regions(photos)
        if self.training and self._sampling:
            inputs = self._partly_drawn(regions.detach(), inputs, self._sampling * done)
        said = targets != self._pad  # (B, K, T)
        real = Real(said)
        read = self.decoder.read(regions, inputs, real)
        scores = self.decoder.logits(read.hidden)  # (M, V)
        each, targets = None, targets.masked_fill(~said, NOTHING).flatten()[real.places]  # (M,)
        if weights is not None:
            by_caption = torch.from_numpy(weights).to(scores.device).unsqueeze(-1)  # (B, K, 1)
            each = by_caption.expand_as(said).flatten()[real.places]  # (M,)
        if drawn:
            first = torch.zeros_like(said)
            first[..., 0] = True
            scores = self._drawable(scores, targets, first.flatten()[real.places])
        taught = None
        if expected is not None:
            ids, shares = (
                torch.from_numpy(of).to(scores.device).flatten(0, 2)[real.places] for of in expected
            )
            taught = Taught(ids, shares, self._teaching)
        total, nll = surprise(
            scores, targets, smoothing=self._smoothing, weights=each, taught=taught
        )
        if self.training and self._penalty:
            looked = (read.attention * said.unsqueeze(-1)).sum(dim=2)  # (B, K, L)
            used = said.any(dim=-1, keepdim=True)  # not the padding of a photo with fewer captions
            total = total + self._penalty * ((1 - looked).square() * used).sum()
        return total, nll

    @torch.no_grad()
    def _partly_drawn(self, regions: Tensor, inputs: Tensor, share: float) -> Tensor:
        """The words read, ``(B, K, T)``, some of them drawn from what the decoder expected there.

        Args:
            regions: ``(B, L, D)``.
            inputs: ``(B, K, T)``, the known words.
            share: of the known words that are replaced.
        """
        replaced = (torch.rand(inputs.shape, device=inputs.device) < share) & (inputs != self._pad)
        replaced[..., 0] = False  # the start
        if not replaced.any():
            return inputs
        read = self.decoder.read(regions, inputs)
        scores = self.decoder.logits(read.hidden[:, :, :-1][replaced[..., 1:]]).float()  # (M, V)
        scores[:, [*self._forbidden, self._end]] = -torch.inf
        drawn = torch.multinomial(scores.softmax(dim=-1), 1).squeeze(1)
        inputs = inputs.clone()
        inputs[replaced] = drawn
        return inputs

    def _drawable(self, scores: Tensor, targets: Tensor, first: Tensor) -> Tensor:
        """Scores ``(M, V)``, in place, without what cannot be drawn.

        Where people said what cannot be, all words stay: ``targets`` ``(M,)`` is what was said, and
        ``first`` whether it begins a caption.
        """
        forbidden = torch.tensor(self._forbidden, device=scores.device)
        drawn = ~torch.isin(targets, forbidden)  # (M,)
        scores[:, forbidden] = scores[:, forbidden].masked_fill(drawn.unsqueeze(1), NEVER)
        scores[first & drawn, self._end] = NEVER
        return scores
