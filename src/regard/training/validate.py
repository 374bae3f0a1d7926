"""An epoch's judgement: the loss on known captions, the scores of free ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from regard.data.batches import inputs_and_targets
from regard.metrics.diagnosis import diagnose
from regard.metrics.scores import score_all
from regard.training.trainee import Trainee

if TYPE_CHECKING:
    from lightning.fabric import Fabric


def validate(
    trainee: Trainee, references: Sequence[Sequence[Sequence[str]]], *, fabric: Fabric
) -> dict[str, float]:
    """Loss and scores of a split.

    Args:
        trainee: what is trained; its learner is left in eval mode.
        references: captions of the photos that judge, as tokens, for the scores.
        fabric: launched; the photos are shared out over its processes.

    Returns:
        ``val_loss`` (nats a word), ``BLEU-4`` and ``CIDEr``, and of the captions the shares
        ``repeated`` and ``cut_off`` and the number ``words_used``
        (:func:`regard.metrics.diagnosis.diagnose`); the same in every process.
    """
    trainee.learner.eval()
    captions, say = trainee.known, trainee.speaker()
    nll, words = 0.0, 0
    written: dict[int, tuple[str, ...]] = {}
    mine = range(fabric.global_rank, len(references), fabric.world_size)
    with torch.inference_mode():
        for start in range(0, len(mine), trainee.at_once):
            indices = list(mine[start : start + trainee.at_once])
            photos = trainee.judging.read(indices).to(fabric.device)
            known = captions.padded([captions.by_photo[i] for i in indices]).to(fabric.device)
            with fabric.autocast():
                nll += float(trainee.learner(photos, known)[1])
            words += int((inputs_and_targets(known)[1] != captions.pad).sum())
            written |= dict(zip(indices, say(photos), strict=True))
    parts = _from_all_processes(fabric, (nll, words, written))
    everything = {i: c for _, _, part in parts for i, c in part.items()}
    said = [everything[i] for i in range(len(references))]
    scores, diagnosis = score_all(said, references), diagnose(said)
    return {
        "val_loss": sum(p[0] for p in parts) / max(1, sum(p[1] for p in parts)),
        "BLEU-4": float(scores["BLEU-4"].corpus),
        "CIDEr": float(scores["CIDEr"].corpus),
        "repeated": diagnosis["repeated"],
        "cut_off": diagnosis["cut off"],
        "words_used": diagnosis["words used"],
    }


def _from_all_processes(fabric: Fabric, value: Any) -> list[Any]:
    if fabric.world_size == 1:
        return [value]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, value)
    return parts
