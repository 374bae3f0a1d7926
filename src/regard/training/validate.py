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


WATCHED = {"repeated": "repeated", "cut off": "cut_off", "words used": "words_used"}
"""Faults that learning from a reward is known for: it repeats, breaks off and narrows captions."""


def validate(
    trainee: Trainee, references: Sequence[Sequence[Sequence[str]]], *, fabric: Fabric
) -> dict[str, float]:
    """Loss and scores of a split.

    Args:
        trainee: what is trained; its learner is left in eval mode.
        references: captions of the photos that judge, as tokens, for the scores.
        fabric: launched; the photos are shared out over its processes.

    Returns:
        ``val_loss`` (nats a word), ``BLEU-4`` and ``CIDEr``, the same in every process;
        ``repeated``, ``cut_off`` and ``words_used`` (:mod:`regard.metrics.diagnosis`) if the
        trainee is watched for them.
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
    scores = score_all(said, references)
    faults = diagnose(said) if trainee.watched else {}
    return {
        "val_loss": sum(p[0] for p in parts) / max(1, sum(p[1] for p in parts)),
        "BLEU-4": float(scores["BLEU-4"].corpus),
        "CIDEr": float(scores["CIDEr"].corpus),
        **{column: faults[name] for name, column in WATCHED.items() if name in faults},
    }


def _from_all_processes(fabric: Fabric, value: Any) -> list[Any]:
    if fabric.world_size == 1:
        return [value]
    parts: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(parts, value)
    return parts
