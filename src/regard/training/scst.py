"""Self-critical sequence training: a captioner learns from the scores of its own captions.

For each photo, K captions ``s_k`` are drawn from the captioner, each is scored, and what scores
better than the others becomes likelier (Rennie et al., "Self-critical sequence training for image
captioning", 2017, section 3.3; the mean of the other draws as the baseline: Luo, "A better variant
of self-critical sequence training", 2020)::

    A_k  = r(s_k) - mean_(j != k) r(s_j)
    loss = - sum_k A_k sum_t log p(s_kt | s_k1 .. s_k(t-1))      over the words of the batch

The reward is CIDEr-D with the document frequencies of the training split. The end of a caption is
counted as a word of it and of the references: without that, captions which stop in the middle of a
phrase ("a man in a") are not punished for it.

Captions are drawn in eval mode, word by word without a gradient. The gradient is that of reading
all of them at once, as known captions are read; with dropout, unless ``decoder.dropout`` is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from regard.data.batches import inputs_and_targets
from regard.metrics.cider import DocumentFrequencies, cider
from regard.metrics.score import Tokens
from regard.models.decoder import Decoder
from regard.text.vocabulary import Lexicon
from regard.training.learner import Learner

END = "\n"
"""The end of a caption as a word; no tokeniser makes it."""


class Reward:
    """CIDEr-D with the end counted as a word.

    Args:
        references: of each training photo, as tokens.
    """

    def __init__(self, references: Sequence[Sequence[Tokens]]) -> None:
        self._references = [[[*caption, END] for caption in group] for group in references]
        self._frequencies = DocumentFrequencies.of(self._references)

    def __call__(self, captions: Sequence[Tokens], photos: Sequence[int]) -> np.ndarray:
        """The reward of each caption, from 0 to 10, float64.

        Args:
            captions: n captions as tokens, with :data:`END` where they have one.
            photos: for each the number of its photo among the references.
        """
        references = [self._references[photo] for photo in photos]
        return cider(captions, references, self._frequencies).per_photo


class ScstLearner(Learner):
    """Photos to the loss of captions that are drawn for them.

    Args:
        decoder: what is trained.
        vocabulary: of the decoder.
        reward: of captions.
        samples: K, captions drawn for each photo, at least 2.
        max_length: most words (or pieces) of a drawn caption.
        known_share: w, from 0 to 1: the loss is ``w`` times that of known captions and ``1 - w``
            times the one above.
        **learner: as for :class:`Learner`.
    """

    def __init__(
        self,
        *,
        decoder: Decoder,
        vocabulary: Lexicon,
        reward: Reward,
        samples: int,
        max_length: int,
        known_share: float,
        **learner: object,
    ) -> None:
        super().__init__(decoder=decoder, pad=vocabulary.pad, **learner)  # type: ignore[arg-type]
        self._vocabulary = vocabulary
        self._reward = reward
        self._samples = samples
        self._max_length = max_length
        self._known_share = known_share

    def forward(
        self, photos: Tensor, captions: Tensor, done: float = 0.0, which: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Sums over the words of the batch, in training; when judging, those of known captions.

        Args:
            photos: ``(B, L, D)`` or ``(B, 3, H, W)``.
            captions: ``(B, K, T + 1)``, the known ones.
            done: share of the run's iterations that are done.
            which: the number of each photo.

        Returns:
            What is minimised, and minus the mean reward, both times the known captions' words: the
            loop divides by them.
        """
        if not self.training:
            return super().forward(photos, captions, done, which)
        words = int((inputs_and_targets(captions)[1] != self._pad).sum())
        if not words:  # a process without a photo of its own takes part and adds nothing
            return super().forward(photos, captions, done, which)
        regions = self.regions(photos)
        drawn = self.draw(regions.detach())  # (B, K, T + 1)
        rewards = self._rewards(drawn, which)  # (B, K)
        loss = self._loss(regions, drawn, leave_one_out(rewards))
        if self._known_share:
            known, _ = super().forward(photos, captions, done, which)
            loss = (1 - self._known_share) * loss + self._known_share * known / words
        return loss * words, -rewards.mean() * words

    @torch.no_grad()
    def draw(self, regions: Tensor) -> Tensor:
        """Captions from the captioner's own distribution.

        Args:
            regions: ``(B, L, D)``.

        Returns:
            Ids ``(B, K, T + 1)`` from the start to the end, then padding. One that has reached
            ``max_length`` has no end.
        """
        vocabulary, photos = self._vocabulary, len(regions)
        never = torch.tensor(vocabulary.forbidden, device=regions.device)
        with _eval_mode(self.decoder):
            state = self.decoder.start(regions)
            rows = torch.arange(photos, device=regions.device).repeat_interleave(self._samples)
            state = state.select(rows)
            words = torch.full_like(rows, vocabulary.start)
            over = torch.zeros_like(rows, dtype=torch.bool)
            drawn = [words]
            for t in range(self._max_length + 1):
                said = self.decoder.step(words, state)
                scores = said.logits.float().index_fill_(-1, never, -torch.inf)
                if t == 0:
                    scores[:, vocabulary.end] = -torch.inf
                words = torch.multinomial(scores.softmax(dim=-1), 1).squeeze(1)
                if t == self._max_length:  # the end if it is said now, else it is left without one
                    words = words.where(words == vocabulary.end, vocabulary.pad)
                words = words.where(~over, vocabulary.pad)
                drawn.append(words)
                over |= (words == vocabulary.end) | (words == vocabulary.pad)
                if bool(over.all()):
                    break
                state = said.state
                words = words.where(~over, vocabulary.end)  # what is read after it has no effect
        return torch.stack(drawn, dim=1).view(photos, self._samples, -1)

    def _rewards(self, drawn: Tensor, which: Sequence[int]) -> Tensor:
        """``(B, K)``, float32."""
        captions = []
        for ids in drawn.flatten(0, 1)[:, 1:].tolist():
            said = [i for i in ids if i not in (self._pad, self._vocabulary.end)]
            words = [word for word, _ in self._vocabulary.spell(said)]
            captions.append([*words, END] if self._vocabulary.end in ids else words)
        photos = np.repeat(np.asarray(which), self._samples).tolist()
        rewards = torch.from_numpy(self._reward(captions, photos)).float()
        return rewards.view(-1, self._samples).to(drawn.device)

    def _loss(self, regions: Tensor, drawn: Tensor, advantages: Tensor) -> Tensor:
        """The mean over the drawn words of ``- A log p``."""
        inputs, targets = inputs_and_targets(drawn)
        said = targets != self._pad  # (B, K, T)
        scores = self.decoder.logits(self.decoder.read(regions, inputs).hidden[said]).float()
        never = torch.tensor(self._vocabulary.forbidden, device=scores.device)
        nll = torch.nn.functional.cross_entropy(
            scores.index_fill(-1, never, -torch.inf), targets[said], reduction="none"
        )  # (M,)
        weights = advantages.unsqueeze(-1).expand(said.shape)[said]
        loss: Tensor = (weights * nll).mean()
        return loss


def leave_one_out(rewards: Tensor) -> Tensor:
    """What each of K rewards ``(B, K)`` is above the mean of the others."""
    others = (rewards.sum(dim=1, keepdim=True) - rewards) / (rewards.shape[1] - 1)
    return rewards - others


@contextmanager
def _eval_mode(module: torch.nn.Module) -> Iterator[None]:
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
