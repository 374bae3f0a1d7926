"""An epoch's judgement: the loss on known captions, the scores of free ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from regard.data.batches import Captions, PhotoSource, inputs_and_targets
from regard.describe import Decoding, describe
from regard.metrics.scores import score_all
from regard.models.devices import Precision
from regard.text.vocabulary import Lexicon
from regard.training.learner import Learner

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def validate(
    learner: Learner,
    vocabulary: Lexicon,
    source: PhotoSource,
    captions: Captions,
    references: Sequence[Sequence[Sequence[str]]],
    *,
    grid: tuple[int, int],
    decoding: Decoding,
    precision: Precision | Literal["auto"],
    fabric: Fabric,
    batch_size: int = 50,
) -> dict[str, float]:
    """Loss and scores of a split.

    Args:
        learner: what is trained; left in eval mode.
        vocabulary: of its decoder.
        source: the split's photos.
        captions: their captions as ids, for the loss.
        references: their captions as tokens, for the scores.
        grid: of the encoder.
        decoding: how captions are chosen.
        precision: of the products when captions are chosen.
        fabric: launched; the photos are shared out over its processes.
        batch_size: photos at once.

    Returns:
        ``val_loss`` (nats a word), ``BLEU-4`` and ``CIDEr``, the same in every process.
    """
    learner.eval()
    speaker = learner.decoder.fast(precision)
    nll, words = 0.0, 0
    written: dict[int, tuple[str, ...]] = {}
    mine = range(fabric.global_rank, len(references), fabric.world_size)
    with torch.inference_mode():
        for start in range(0, len(mine), batch_size):
            indices = list(mine[start : start + batch_size])
            photos = source.read(indices).to(fabric.device)
            known = captions.padded([captions.by_photo[i] for i in indices]).to(fabric.device)
            inputs, targets = inputs_and_targets(known)
            said = targets != captions.pad
            with fabric.autocast():
                read = learner.decoder.read(learner.regions(photos), inputs)
                logits = learner.decoder.logits(read.hidden[said])
            nll += float(
                torch.nn.functional.cross_entropy(logits.float(), targets[said], reduction="sum")
            )
            words += int(said.sum())
            regions = learner.regions(photos).float()
            found = describe(speaker, vocabulary, regions, grid=grid, decoding=decoding)
            written |= {i: c[0].words for i, c in zip(indices, found, strict=True)}
    parts = _from_all_processes(fabric, (nll, words, written))
    everything = {i: c for _, _, part in parts for i, c in part.items()}
    scores = score_all([everything[i] for i in range(len(references))], references)
    return {
        "val_loss": sum(p[0] for p in parts) / max(1, sum(p[1] for p in parts)),
        "BLEU-4": float(scores["BLEU-4"].corpus),
        "CIDEr": float(scores["CIDEr"].corpus),
    }


def _from_all_processes(fabric: Fabric, value: Any) -> list[Any]:
    if fabric.world_size == 1:
        return [value]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, value)
    return parts
