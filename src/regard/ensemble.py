"""Captioners that choose each word together (:mod:`regard.models.together`).

One that looks at several views of a photo (:data:`regard.images.VIEWS`: mirrored, cropped) is as
several that look at one each: of what it expects at a word it takes the mean, as classifiers do
(Krizhevsky, Sutskever and Hinton, "ImageNet classification with deep convolutional neural
networks", 2012, section 4.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from regard.checkpoint import Model, read_model
from regard.errors import ConfigError, ModelError
from regard.exported import find_exported
from regard.finished import find_finished
from regard.images import VIEWS, Viewed
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Speaker
from regard.models.encoders import Encoder
from regard.models.together import Together, side_by_side
from regard.text.vocabulary import Lexicon, same_words


@dataclass(frozen=True)
class Ensemble:
    """One or several models of one vocabulary; an encoder that several have is used once.

    Raises:
        ModelError: their vocabularies differ.
        ConfigError: there are not so many views.
    """

    members: tuple[Model, ...]
    """At least one."""
    views: int = 1
    """How many of :data:`regard.images.VIEWS` each encoder sees, the whole photo first."""

    def __post_init__(self) -> None:
        if not 1 <= self.views <= len(VIEWS):
            raise ConfigError(
                f"The number of views is {self.views}. Expected from 1, the whole photo alone, to "
                f"{len(VIEWS)}."
            )
        first = self.members[0]
        for other in self.members[1:]:
            ours, theirs = first.vocabulary, other.vocabulary
            if not same_words(ours, theirs):
                raise ModelError(
                    f"{_name(first)} and {_name(other)} cannot caption together: their "
                    f"vocabularies differ ({len(ours.words)} and {len(theirs.words)} words or "
                    "pieces of words). Take models that were trained on the same captions with the "
                    "same text.vocabulary."
                )

    @cached_property
    def _sources(self) -> tuple[tuple[Encoder, ...], tuple[int, ...]]:
        """The different encoders, and which of them each member has."""
        found: list[Encoder] = []
        described = []
        sources = []
        for member in self.members:
            if (one := member.encoder.describe()) not in described:
                described.append(one)
                found.append(member.encoder)
            sources.append(described.index(one))
        return tuple(found), tuple(sources)

    @property
    def sources(self) -> tuple[int, ...]:
        """Which of the encoders each member has."""
        return self._sources[1]

    @property
    def encoders(self) -> tuple[Encoder, ...]:
        """The different ones, in the order of the members."""
        return self._sources[0]

    @property
    def vocabulary(self) -> Lexicon:
        """Of all members."""
        return self.members[0].vocabulary

    def frequencies(self) -> DocumentFrequencies:
        """How many photos of the first member's training split have which phrase.

        Raises:
            ConfigError: its folder does not say.
            ModelError: what it says is damaged.
        """
        return self.members[0].frequencies()

    @property
    def preparations(self) -> tuple[Viewed, ...]:
        """Of every view of the first encoder, then of the next."""
        return tuple(
            Viewed(encoder.preparation, view)
            for encoder in self.encoders
            for view in VIEWS[: self.views]
        )

    @property
    def grid(self) -> tuple[int, int]:
        """H and W of the maps: the first member's."""
        return self.encoders[0].grid

    def to(self, device: torch.device) -> None:
        """Move the weights."""
        for member in self.members:
            member.decoder.to(device)
        for encoder in self.encoders:
            encoder.to(device)

    def speaker(self) -> Speaker:
        """What says the words, of :meth:`regions`, on the device where the weights are now."""
        if self._alone:
            return self.members[0].speaker()
        readers: list[tuple[Speaker, int]] = []
        gaze: list[int] = []
        for member, source in zip(self.members, self.sources, strict=True):
            if self.encoders[source].grid == self.grid:
                gaze.append(len(readers))  # the next, which reads the whole photo
            speaker = member.speaker()
            readers += [(speaker, source * self.views + view) for view in range(self.views)]
        shapes = [
            (encoder.grid[0] * encoder.grid[1], encoder.width)
            for encoder in self.encoders
            for _ in range(self.views)
        ]
        return Together(readers, shapes, gaze)

    def regions(self, each: Sequence[Tensor]) -> Tensor:
        """What :meth:`speaker` starts from: of regions ``(B, L, D)``, as :attr:`preparations`."""
        return each[0] if self._alone else side_by_side(each)

    @property
    def _alone(self) -> bool:
        return len(self.members) == self.views == 1


def read_ensemble(
    sources: Sequence[str | Path],
    *,
    encoder: str | None = None,
    revision: str | None = None,
    views: int = 1,
) -> Ensemble:
    """Read models, as :func:`regard.checkpoint.read_model` does each.

    Args:
        sources: runs, model folders or hub ids of regard's own.
        encoder: another place of the encoders' weights than the folders name.
        revision: commit or tag of the hub ids.
        views: how many each sees of a photo.

    Raises:
        ModelError: one cannot be read, or is a finished or exported captioner beside others or
            with several views; or their vocabularies differ; or there is none.
        ConfigError: there are not so many views.
    """
    if not sources:
        raise ModelError("There is no model. Give a run, a model folder, or a hub id.")
    if len(sources) > 1 or views != 1:
        together = "together with others" if len(sources) > 1 else f"from {views} views"
        for source in sources:
            _require_own(source, revision, together)
    members = tuple(read_model(s, encoder=encoder, revision=revision) for s in sources)
    return Ensemble(members, views)


def _require_own(source: str | Path, revision: str | None, together: str) -> None:
    finished = find_finished(source, revision=revision) is not None
    if finished or find_exported(source, revision=revision) is not None:
        raise ModelError(
            f"{source} cannot caption {together}: it is "
            f"{'a finished' if finished else 'an exported'} captioner. Take models that "
            "`regard train` wrote, or this one alone and one view."
        )


def _name(model: Model) -> str:
    return "A model" if model.folder is None else str(model.folder)
