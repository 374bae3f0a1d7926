"""Self-critical sequence training: to say what is rewarded, rather than what people said.

Source: Rennie et al., "Self-critical sequence training for image captioning" (2017), section 3,
with the baseline of Luo, "A better variant of self-critical sequence training" (2020), section 2:
of the K captions drawn of a photo, each is compared with the mean reward of the others::

    a_k  = r_k - 1 / (K - 1) sum_(j != k) r_j
    loss = 1 / (B K) sum_b sum_k - a_bk sum_t log p(w_bkt | w_bk1 ... w_bk(t-1))

over words and the end. Its gradient is, without bias, that of the mean reward of the captions that
the model draws: so the sum over a caption's words is not divided by their number, which the model
chooses. They are drawn at temperature 1 by the decoder as it captions (:meth:`Decoder.fast`:
without dropout, the forbidden words left out), then read again all at once for the gradient. In
that reading the forbidden words are left out too, and there is ``decoder.dropout``: where it is not
0, the gradient is that of another model than the one that drew, which regularises.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.data.batches import Batch, inputs_and_targets
from regard.describe import drawn_words
from regard.models.devices import Precision
from regard.search import Rules, draw
from regard.text.vocabulary import Lexicon
from regard.training.learner import Learner
from regard.training.lesson import Lesson
from regard.training.reward import Reward


class SelfCritical:
    """What an iteration learns from: captions drawn of its photos, weighted by their advantages.

    Args:
        learner: its decoder draws.
        vocabulary: of the decoder.
        reward: what is rewarded.
        samples: K.
        longest: most words, or pieces of words, of a drawn caption.
        cross_entropy: weight of the cross-entropy of people's captions, the mean over their words.
        precision: that drawing computes in.
        seed: of the draws.
    """

    def __init__(
        self,
        learner: Learner,
        vocabulary: Lexicon,
        reward: Reward,
        *,
        samples: int,
        longest: int,
        cross_entropy: float,
        precision: Precision | Literal["auto"],
        seed: int,
    ) -> None:
        self._learner, self._vocabulary, self._reward = learner, vocabulary, reward
        self._samples, self._longest = samples, longest
        self._cross_entropy, self._precision, self._seed = cross_entropy, precision, seed

    def __call__(self, batch: Batch, step: int) -> Lesson:
        """Draw, judge, weigh.

        A photo's captions depend on the weights, the iteration and the photo: not on the photos
        beside it, nor on the process that draws them.
        """
        samples = batch.items * self._samples
        if not batch.indices:  # nothing but padding: this process takes part and adds nothing
            weights = np.zeros(batch.captions.shape[:2], np.float32)
            nothing = dict.fromkeys(MEASURES, (0.0, 0.0))
            return Lesson(batch.captions, 0, samples, weights, drawn=True, measures=nothing)
        ids, log_probabilities = self.draw(batch, step)  # (B, K, T)
        words, ended = self.spell(ids)
        rewards = self._reward(batch.indices, words, ended)  # (B, K)
        weights = advantages(rewards).astype(np.float32)
        start = ids.new_full((*ids.shape[:2], 1), self._vocabulary.start)
        captions = torch.cat([start, ids.masked_fill(ids < 0, self._vocabulary.pad)], dim=2)
        said = int((ids >= 0).sum())
        measures = {
            "reward": (float(rewards.sum()), float(rewards.size)),
            "spread": (float(rewards.std(axis=1).sum()), float(len(rewards))),
            "surprise": (-float(log_probabilities.sum()), float(said)),
        }
        if self._cross_entropy:
            captions = _together(captions, batch.captions, self._vocabulary.pad)
            share = self._cross_entropy * samples / batch.targets
            people = np.full(batch.captions.shape[:2], share, np.float32)
            people *= 1 if batch.weights is None else batch.weights
            weights = np.concatenate([weights, people], axis=1)
            said += int((inputs_and_targets(batch.captions)[1] != self._vocabulary.pad).sum())
        return Lesson(captions, said, samples, weights, drawn=True, measures=measures)

    @torch.no_grad()
    def draw(self, batch: Batch, step: int) -> tuple[Tensor, Tensor]:
        """Captions of the photos: as :class:`regard.search.Draws`, on the learner's device."""
        decoder = self._learner.decoder.fast(self._precision)
        rules = Rules(
            start=self._vocabulary.start,
            end=self._vocabulary.end,
            forbidden=self._vocabulary.forbidden,
        )
        uniform = np.stack(
            [
                np.random.default_rng([self._seed, step, index]).random(
                    (self._samples, self._longest + 1), dtype=np.float32
                )
                for index in batch.indices
            ]
        )
        state = decoder.start(self._learner.regions(batch.photos).float())
        return draw(
            decoder.step, state, rules=rules,
            uniform=torch.from_numpy(uniform).to(batch.photos.device),
        )  # fmt: skip

    def spell(self, ids: Tensor) -> tuple[list[list[tuple[str, ...]]], NDArray[np.bool_]]:
        """The words of drawn captions ``(B, K, T)``, and which of them ended, ``(B, K)``."""
        words = [[drawn_words(one, self._vocabulary) for one in group] for group in ids.tolist()]
        return words, (ids == self._vocabulary.end).any(-1).cpu().numpy()


MEASURES = ("reward", "spread", "surprise")
"""What is logged of the drawn captions, see :mod:`regard.training.log`."""


def advantages(rewards: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rewards ``(B, K)`` less the mean of the others of the photo."""
    each = rewards.shape[1]
    found: NDArray[np.float64] = (rewards - rewards.mean(1, keepdims=True)) * (each / (each - 1))
    return found


def _together(first: Tensor, second: Tensor, pad: int) -> Tensor:
    """Captions ``(B, K, T)`` and ``(B, J, U)`` as one, ``(B, K + J, max(T, U))``."""
    longest = max(first.shape[2], second.shape[2])
    return torch.cat(
        [
            torch.nn.functional.pad(captions, (0, longest - captions.shape[2]), value=pad)
            for captions in (first, second)
        ],
        dim=1,
    )
