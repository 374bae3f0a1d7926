"""One iteration's loss, as one module: what each process runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from regard.data.batches import inputs_and_targets
from regard.models.decoder import Decoder
from regard.models.encoders import Encoder
from regard.training.loss import surprise


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
        unreadable: ids that are never drawn to be read, such as the end of a caption.
    """

    def __init__(
        self,
        *,
        encoder: Encoder | None,
        decoder: Decoder,
        pad: int,
        label_smoothing: float,
        attention_penalty: float = 0.0,
        scheduled_sampling: float = 0.0,
        unreadable: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self._pad = pad
        self._smoothing = label_smoothing
        self._penalty = attention_penalty
        self._sampling = scheduled_sampling
        self._unreadable = list(unreadable)

    def regions(self, photos: Tensor) -> Tensor:
        """Regions ``(B, L, D)``: of prepared photos ``(B, 3, H, W)``, or the cached ones."""
        if self.encoder is not None:
            regions: Tensor = self.encoder(photos)
            return regions
        kind = photos.device.type
        narrow = torch.is_autocast_enabled(kind)
        return photos.to(torch.get_autocast_dtype(kind) if narrow else torch.float32)

    def forward(
        self, photos: Tensor, captions: Tensor, done: float = 0.0, which: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Sums over the words of the batch.

        Args:
            photos: ``(B, L, D)`` or ``(B, 3, H, W)``.
            captions: ``(B, K, T + 1)``.
            done: share of the run's iterations that are done.
            which: without effect here.

        Returns:
            The sum of what is minimised, and the plain sum of ``-log p(word)`` (nats, without a
            gradient).
        """
        inputs, targets = inputs_and_targets(captions)
        regions = self.regions(photos)
        if self.training and self._sampling:
            inputs = self._partly_drawn(regions.detach(), inputs, self._sampling * done)
        read = self.decoder.read(regions, inputs)
        said = targets != self._pad  # (B, K, T)
        scores = self.decoder.logits(read.hidden[said])  # (M, V)
        total, nll = surprise(scores, targets[said], smoothing=self._smoothing)
        if self.training and self._penalty:
            looked = (read.attention * said.unsqueeze(-1)).sum(dim=2)  # (B, K, L)
            real = said.any(dim=-1, keepdim=True)  # not the padding of a photo with fewer captions
            total = total + self._penalty * ((1 - looked).square() * real).sum()
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
        scores[:, self._unreadable] = -torch.inf
        drawn = torch.multinomial(scores.softmax(dim=-1), 1).squeeze(1)
        inputs = inputs.clone()
        inputs[replaced] = drawn
        return inputs
