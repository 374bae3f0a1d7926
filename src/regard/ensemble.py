"""Captioners that choose each word together (:mod:`regard.models.together`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from regard.checkpoint import Model, read_model
from regard.errors import ModelError
from regard.exported import find_exported
from regard.finished import find_finished
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
    """

    members: tuple[Model, ...]
    """At least one."""

    def __post_init__(self) -> None:
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
        if len(self.members) == 1:
            return self.members[0].speaker()
        shapes = [(encoder.grid[0] * encoder.grid[1], encoder.width) for encoder in self.encoders]
        return Together([member.speaker() for member in self.members], self.sources, shapes)

    def regions(self, each: Sequence[Tensor]) -> Tensor:
        """What :meth:`speaker` starts from: of the regions ``(B, L, D)`` of each encoder."""
        return each[0] if len(self.members) == 1 else side_by_side(each)


def read_ensemble(
    sources: Sequence[str | Path], *, encoder: str | None = None, revision: str | None = None
) -> Ensemble:
    """Read models, as :func:`regard.checkpoint.read_model` does each.

    Args:
        sources: runs, model folders or hub ids of regard's own.
        encoder: another place of the encoders' weights than the folders name.
        revision: commit or tag of the hub ids.

    Raises:
        ModelError: one cannot be read, or is a finished or exported captioner beside others; or
            their vocabularies differ; or there is none.
    """
    if not sources:
        raise ModelError("There is no model. Give a run, a model folder, or a hub id.")
    if len(sources) > 1:
        for source in sources:
            _require_own(source, revision)
    return Ensemble(tuple(read_model(s, encoder=encoder, revision=revision) for s in sources))


def _require_own(source: str | Path, revision: str | None) -> None:
    finished = find_finished(source, revision=revision) is not None
    if finished or find_exported(source, revision=revision) is not None:
        raise ModelError(
            f"{source} cannot caption together with others: it is "
            f"{'a finished' if finished else 'an exported'} captioner. Take models that "
            "`regard train` wrote, or this one alone."
        )


def _name(model: Model) -> str:
    return "A model" if model.folder is None else str(model.folder)
