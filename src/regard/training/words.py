"""An encoder without pre-trained weights first learns which words a photo's captions hold.

A decoder and an encoder that both begin at random wait for each other: where to look is worth
learning once the regions say something, and what they should say is learnt only where the decoder
looks. Here each region is asked for every word at once, and the photo has a word if some region
has it strongly: weak supervision of parts by words about the whole, as in Fang et al., "From
captions to visual concepts and back" (2015), section 3, with the smooth maximum of Pinheiro and
Collobert, "From image-level to pixel-level labeling with convolutional networks" (2015), section
3.3, in place of the noisy OR::

    s_w = 1/r log sum_i exp(r (u_w . a_i + b_w))          r = 4
    loss = - sum_w [ y_w log sigmoid(s_w) + (1 - y_w) log sigmoid(-s_w) ]

with ``y_w`` whether word w is in one of the photo's captions. ``u`` and ``b`` are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from regard.config import TrainConfig
from regard.data.batches import PhotoSource, Plan
from regard.models.encoders import Encoder
from regard.training.loop import TrainingError
from regard.training.schedule import rate

if TYPE_CHECKING:
    from lightning.fabric import Fabric

SHARPNESS = 4.0
"""r: the larger, the nearer to the maximum over the regions."""


def learn_words(
    encoder: Encoder,
    source: PhotoSource,
    plan: Plan,
    config: TrainConfig,
    *,
    words: Tensor,
    fabric: Fabric,
    on_epoch: Callable[[int, float], None],
) -> None:
    """Train an encoder, in place, with the rate, decay and schedule of the training to come.

    Args:
        encoder: on the device of ``fabric``.
        source: the prepared photos.
        plan: batches of photos with their captions, of one process.
        config: how it learns; ``word_epochs`` is how long.
        words: ``(V,)``, bool: which ids are words, rather than marks such as the end.
        fabric: for the device and the precision.
        on_epoch: told after each epoch how many are done and the mean loss (nats a photo).

    Raises:
        TrainingError: the loss is not a finite number.
    """
    detector = nn.Linear(encoder.width, len(words)).to(fabric.device)
    nn.init.constant_(detector.bias, -1)  # most words are not there
    weights = [*encoder.parameters(), *detector.parameters()]
    optimizer = torch.optim.AdamW(weights, weight_decay=config.weight_decay, fused=True)
    words = words.to(fabric.device)
    steps = config.word_epochs * len(plan)
    step = 0
    encoder.train()
    for epoch in range(config.word_epochs):
        total = 0.0
        for batch in plan.batches(source, epoch=epoch):
            factor = rate(config, step=step, steps_per_epoch=len(plan), steps=steps)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            with fabric.autocast():
                regions = encoder(batch.photos.to(fabric.device))
                scores = has_word(detector(regions))
            there = said(batch.captions.to(fabric.device), len(words))
            losses = F.binary_cross_entropy_with_logits(scores, there, reduction="none")
            loss = losses[:, words].sum(1).mean()
            value = float(loss.detach())
            if not math.isfinite(value):
                raise TrainingError(
                    f"While the encoder learnt words, the loss became {value} at iteration {step}: "
                    "it must be a finite number. Begin again with a smaller rate (--set "
                    "train.learning_rate=...) or in float32 (--set train.precision=float32)."
                )
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            total += value
            step += 1
        on_epoch(epoch + 1, total / len(plan))


def has_word(scores: Tensor) -> Tensor:
    """Scores of words for each region, ``(B, L, V)``, to those for the photo, ``(B, V)``."""
    return torch.logsumexp(SHARPNESS * scores.float(), dim=1) / SHARPNESS


def said(captions: Tensor, vocabulary_size: int) -> Tensor:
    """Which ids are in the captions ``(B, K, T)`` of each photo: 1 or 0, ``(B, V)``."""
    there = torch.zeros(len(captions), vocabulary_size, device=captions.device)
    return there.scatter_(1, captions.flatten(1), 1.0)
