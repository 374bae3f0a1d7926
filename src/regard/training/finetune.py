"""A captioner that others finished, made ready to be trained further.

It learns captions as it will be scored on them: small letters, no punctuation, in pieces of its own
tokenizer, from its own start to its own end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from torch import Tensor, nn

from regard.config import Config
from regard.data.batches import Captions, PreparedPhotos, inputs_and_targets
from regard.data.dataset import Photo
from regard.describe import Decoding
from regard.errors import ModelError
from regard.finished import Finished, find_finished, load_finished, require_taught
from regard.models.library import quiet
from regard.text.tokenise import detokenise, tokenise
from regard.training.loss import surprise
from regard.training.trainee import Begin, Trainee

OPTION = "--from"

PAD = -1
"""No id of any tokenizer: some fill captions with the very id that ends them."""


class FinishedLearner(nn.Module):
    """Photos and captions to the loss of a finished captioner.

    Args:
        captioner: what is trained.
        label_smoothing: as of :class:`regard.training.learner.Learner`.
    """

    def __init__(self, captioner: Finished, *, label_smoothing: float) -> None:
        super().__init__()
        self.network = captioner.network
        self._captioner = captioner
        self._smoothing = label_smoothing

    def train(self, mode: bool = True) -> Self:
        """Set the training mode; see :meth:`regard.finished.Finished.train`."""
        super().train(mode)
        self._captioner.train(mode)
        return self

    def forward(
        self, photos: Tensor, captions: Tensor, done: float = 0.0, which: Sequence[int] = ()
    ) -> tuple[Tensor, Tensor]:
        """Sums over the pieces of the batch.

        Args:
            photos: ``(B, 3, H, W)``.
            captions: ``(B, K, T + 1)``, padded with :data:`PAD`.
            done: without effect here.
            which: likewise.

        Returns:
            As :meth:`regard.training.learner.Learner.forward`.
        """
        inputs, targets = inputs_and_targets(captions)
        said = targets != PAD  # (B, K, T)
        scores = self._captioner.read(photos, inputs.clamp_min(0))  # (B, K, T, V)
        return surprise(scores[said], targets[said], smoothing=self._smoothing)


def finished_trainee(
    config: Config, photos: Sequence[Photo], judged: Sequence[Photo], *, begin: Begin
) -> Trainee:
    """Load the captioner that the settings name, and unfreeze what they say.

    Args:
        config: the settings.
        photos: what is learnt.
        judged: what judges.
        begin: called before any work.

    Raises:
        ModelError: it cannot be had, or is not of a kind that is trained here.
    """
    source = str(config.captioner.id)
    revision = config.captioner.revision
    if (folder := find_finished(source, revision=revision, option=OPTION)) is None:
        raise ModelError(
            f"{source} is no captioner that others finished. Give {OPTION} the hub id of one, such "
            "as Salesforce/blip-image-captioning-base, or a folder of transformers with its "
            "config.json; captioners of regard's own go on with --resume."
        )
    require_taught(folder, option=OPTION)
    captioner = load_finished(source, revision=revision, device="cpu", option=OPTION)
    origin = captioner.describe_self()
    seeing, speaking = captioner.unfreeze(
        tower=config.train.freeze == "none", blocks=config.encoder.fine_tune_stages
    )
    begin(config, {"from": origin})
    decoding = Decoding(beam=config.validation.beam)

    def prepare(photo: Image.Image) -> np.ndarray:
        prepared: np.ndarray = captioner.prepare([photo])[0].numpy()
        return prepared

    def say(photos: Tensor) -> list[tuple[str, ...]]:
        found = captioner.describe_prepared(photos, decoding)
        return [tuple(tokenise(captions[0].text)) for captions in found]

    def keep(folder: Path, scores: Mapping[str, Any], data: str) -> None:
        captioner.write(folder, settings=config.in_use(), origin=origin, scores=scores, data=data)

    return Trainee(
        learner=FinishedLearner(captioner, label_smoothing=config.train.label_smoothing),
        rates=[
            (speaking, config.train.learning_rate), (seeing, config.train.encoder_learning_rate)
        ],
        captions=_encoded(photos, captioner, config.text.max_length),
        known=_encoded(judged, captioner, config.text.max_length),
        source=PreparedPhotos(prepare, [p.path for p in photos]),
        judging=PreparedPhotos(prepare, [p.path for p in judged]),
        at_once=8,
        speaker=lambda: say,
        keep=keep,
    )  # fmt: skip


def _encoded(photos: Sequence[Photo], captioner: Finished, most: int) -> Captions:
    with quiet():
        return Captions(
            tuple(
                tuple(
                    tuple(captioner.encode(detokenise(tokens), most=most))
                    for tokens in map(tokenise, photo.captions)
                    if tokens
                )
                for photo in photos
            ),
            pad=PAD,
            start=captioner.start,
            end=captioner.end,
        )
