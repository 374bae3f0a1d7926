"""What captioners that were trained before expect at each word of people's captions.

Beside the one word that a person chose, a captioner in training is told what else could have stood
there: what its teachers expect, each given the photo and the person's words before (Hinton et al.,
"Distilling the knowledge in a neural network", 2015, section 2; for words, Kim and Rush,
"Sequence-level knowledge distillation", 2016, section 3.1; of one's own kind, Furlanello et al.,
"Born-again neural networks", 2018). Several teachers expect the mean of their probabilities, as
when they caption together (:mod:`regard.models.together`).

It is found out once, before the first epoch, of the whole photos: the captioner learns it of every
view of them. Of each place the :data:`MOST` most probable words are kept, scaled to sum to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from regard.checkpoint import Model, read_model
from regard.data.batches import Captions, Expected, FeatureReader, inputs_and_targets
from regard.data.features import build_features
from regard.ensemble import Ensemble
from regard.errors import ModelError
from regard.files import write_whole
from regard.models.decoder import Real
from regard.models.devices import multiplied, photos_at_once
from regard.text.vocabulary import Lexicon, same_words

if TYPE_CHECKING:
    from lightning.fabric import Fabric

MOST = 16
"""Words that are kept of what is expected at a place."""

AT_ONCE = 32
"""Photos whose captions are read at once."""


def read_teachers(
    names: Sequence[str], vocabulary: Lexicon, *, place: str | None
) -> Ensemble | None:
    """The teachers of these names; none if there are none.

    Args:
        names: runs, model folders or hub ids.
        vocabulary: of the captioner that is trained.
        place: of its encoder's weights, if that was said. A teacher that has the same encoder finds
            it there, one that has another where its own folder names it.

    Raises:
        ModelError: one cannot be had, or knows other words than the captioner that is trained.
    """
    if not names:
        return None
    try:
        teachers = Ensemble(tuple(_teacher(name, place) for name in names))
    except ModelError as error:
        raise ModelError(f"--teacher {', '.join(names)}: {error}") from error
    theirs = teachers.vocabulary
    if not same_words(theirs, vocabulary):
        raise ModelError(
            f"--teacher {names[0]} knows {len(theirs.words)} words or pieces of words, and the "
            f"captioner that is trained {len(vocabulary.words)} others. Take teachers that were "
            "trained on the same captions with the same text.vocabulary, or begin with one of them "
            "(--init)."
        )
    return teachers


def _teacher(name: str, place: str | None) -> Model:
    if place is not None:
        with suppress(ModelError):
            return read_model(name, encoder=place)
    return read_model(name)


def expected_by(
    teachers: Ensemble,
    captions: Captions,
    paths: Sequence[Path],
    *,
    file: Path,
    fabric: Fabric,
    cache: Path | None,
    message: Callable[[str], None],
    features: Callable[[int, int], None],
) -> Expected:
    """What teachers expect at each word of the captions, ``(words, k)``.

    Args:
        teachers: moved to the device of ``fabric``.
        captions: of the photos.
        paths: of the photos.
        file: where the first process leaves it for the others, and for a run that is resumed.
        fabric: launched.
        cache: root of the feature cache; none is the default one.
        message: told one line at a time.
        features: told photos encoded and photos in all.
    """
    words = captions.bounds[-1]
    if fabric.is_global_zero and _read(file, words) is None:
        teachers.to(fabric.device)
        at_once = photos_at_once(fabric.device)
        stores = [
            build_features(
                paths, encoder, cache, batch_size=at_once, on_progress=features, on_message=message
            )
            for encoder in teachers.encoders
        ]
        count = len(teachers.members)
        message(
            f"Reading the captions of {len(paths)} photos with {count} teacher"
            f"{'s' * (count > 1)} ..."
        )
        found = _find(teachers, stores, captions, paths, fabric)
        try:
            write_whole(file, save({"ids": found.ids, "shares": found.shares}))
        except OSError as error:
            raise ModelError(
                f"What the teachers expect cannot be written to {file}: {error.strerror}. Make "
                "room, then go on with --resume."
            ) from error
    fabric.barrier()
    known = _read(file, words)
    if known is None:
        raise ModelError(f"{file} cannot be read, though it was just written. Look at the disk.")
    return known


def _read(file: Path, words: int) -> Expected | None:
    """What was found before; none if it was not, or of other captions, or is damaged."""
    try:
        found = load_file(file)
        ids, shares = found["ids"], found["shares"]
    except (OSError, SafetensorError, KeyError):
        return None
    return Expected(ids, shares) if len(ids) == len(shares) == words else None


@torch.no_grad()
def _find(
    teachers: Ensemble,
    stores: Sequence[FeatureReader],
    captions: Captions,
    paths: Sequence[Path],
    fabric: Fabric,
) -> Expected:
    """Read all captions, those of like lengths together; in as few bytes as they need."""
    decoders = [member.decoder.eval() for member in teachers.members]
    bounds = captions.bounds
    longest = [max(map(len, group), default=-1) for group in captions.by_photo]
    order = sorted(np.flatnonzero(np.diff(bounds)).tolist(), key=longest.__getitem__)
    shape = bounds[-1], min(MOST, len(teachers.vocabulary))
    expected = Expected(np.empty(shape, np.int32), np.empty(shape, np.float16))
    for first in range(0, len(order), AT_ONCE):
        batch = order[first : first + AT_ONCE]
        known = captions.padded([captions.by_photo[i] for i in batch]).to(fabric.device)
        inputs, targets = inputs_and_targets(known)
        said = targets != captions.pad
        real = Real(said)
        chosen = [paths[i] for i in batch]
        regions = [torch.from_numpy(store.read(chosen)).to(fabric.device) for store in stores]
        total: Tensor | float = 0.0
        for decoder, source in zip(decoders, teachers.sources, strict=True):
            with fabric.autocast():
                read = decoder.read(multiplied(regions[source]), inputs, real)
                scores = decoder.logits(read.hidden)[: int(said.sum())]  # the places begin with it
            total = total + scores.float().softmax(-1)  # (M, V)
        shares, ids = torch.topk(torch.as_tensor(total), shape[1])  # (M, k)
        rows = np.concatenate([np.arange(bounds[i], bounds[i + 1]) for i in batch])
        expected.ids[rows] = ids.cpu().numpy()
        expected.shares[rows] = (shares / shares.sum(-1, keepdim=True)).cpu().numpy()
    return expected
