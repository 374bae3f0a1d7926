"""Photos to captions: load a model, caption photos, see where it looked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regard.checkpoint import Model, read_model
from regard.describe import Caption, Decoding, describe
from regard.errors import ModelError, PhotoError
from regard.finished import Finished, find_finished, load_finished
from regard.images import open_photo, overlay_map
from regard.models.devices import find_device

PhotoLike = str | Path | bytes | BinaryIO | Image.Image
"""A photo: its path, its bytes, an open file, or a Pillow image."""


@dataclass(frozen=True, slots=True)
class PhotoCaption:
    """The caption of one photo and the gaze of its words."""

    best: Caption
    """The caption."""
    others: tuple[Caption, ...]
    """Other candidates, best first."""
    size: tuple[int, int]
    """Width and height of the upright photo in pixels."""
    placement: tuple[float, float, float, float]
    """Left, top, right, bottom of what the encoder saw, in pixels of the upright photo."""

    @property
    def text(self) -> str:
        """The caption."""
        return self.best.text

    @property
    def words(self) -> tuple[str, ...]:
        """Its T words."""
        return self.best.words

    @property
    def log_probabilities(self) -> tuple[float, ...]:
        """Natural logarithm of each word's probability given the words before it."""
        return self.best.log_probabilities

    @property
    def maps(self) -> np.ndarray:
        """``(T, H, W)``: the attention of each word over the encoder's grid; each map sums to 1.

        H and W are 0 for a finished captioner that has no gaze.
        """
        return self.best.maps

    def gaze(self, word: int) -> np.ndarray:
        """The map of one word on the upright photo, ``(height, width)``; zero where unseen.

        Raises:
            ModelError: the captioner has no gaze.
        """
        if not self.maps[word].size:
            raise ModelError(
                f"There is no gaze of {self.words[word]!r}: the words of this captioner do not "
                "attend to the photo apart from other words. Take one of regard's own, a BLIP or "
                "a vision-encoder-decoder."
            )
        return overlay_map(self.maps[word], self.size, self.placement)


class AnyCaptioner(ABC):
    """Photos to captions, whatever makes them; photos that cannot be opened hold up no others."""

    def caption(self, photo: PhotoLike, decoding: Decoding | None = None) -> PhotoCaption:
        """Caption one photo.

        Raises:
            PhotoError: it cannot be opened; the message names it.
        """
        found = next(self.captions([photo], decoding))
        if isinstance(found, PhotoError):
            raise found
        return found

    def captions(
        self, photos: Iterable[PhotoLike], decoding: Decoding | None = None, *, batch_size: int = 16
    ) -> Iterator[PhotoCaption | PhotoError]:
        """Caption photos in their order; one that cannot be opened gives its error in its place.

        Args:
            photos: any number, also without end.
            decoding: how captions are chosen.
            batch_size: photos at once.
        """
        waiting = iter(photos)
        while batch := list(islice(waiting, batch_size)):
            opened: list[Image.Image | PhotoError] = []
            for photo in batch:
                try:
                    opened.append(open_photo(photo))
                except PhotoError as error:
                    opened.append(error)
            good = [p for p in opened if not isinstance(p, PhotoError)]
            made = iter(self._batch(good, decoding or Decoding()) if good else [])
            for result in opened:
                yield result if isinstance(result, PhotoError) else next(made)

    @property
    def no_gaze(self) -> str | None:
        """Why its captions have no maps, in one line; none where they have."""
        return None

    @abstractmethod
    def _batch(self, photos: Sequence[Image.Image], decoding: Decoding) -> list[PhotoCaption]:
        """Captions of upright RGB photos, at least one."""


class Captioner(AnyCaptioner):
    """A model with a device to run on. Nothing about a request is kept: threads may share one.

    Args:
        model: from :func:`regard.checkpoint.read_model`.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, model: Model, *, device: str = "auto") -> None:
        self.model = model
        self.device = find_device(device)
        self.decoder = model.decoder.to(self.device)
        encoder = model.encoder.to(self.device)
        self.encode = encoder.fast(encoder.fast_precision())

    def describe(self, regions: Tensor, decoding: Decoding) -> list[list[Caption]]:
        """Candidates for photos given as regions ``(B, L, D)``, for each photo best first."""
        return describe(
            self.decoder,
            self.model.vocabulary,
            regions.to(self.device, torch.float32),
            grid=self.model.encoder.grid,
            decoding=decoding,
        )

    def _batch(self, photos: Sequence[Image.Image], decoding: Decoding) -> list[PhotoCaption]:
        preparation = self.model.encoder.preparation
        prepared = torch.from_numpy(np.stack([preparation(p) for p in photos]))
        with torch.inference_mode():
            # Regions are rounded as the cache rounds them, so that a photo's caption is the same
            # from both.
            regions = self.encode(prepared.to(self.device)).half()
        return [
            PhotoCaption(found[0], tuple(found[1:]), p.size, preparation.placement(*p.size))
            for p, found in zip(photos, self.describe(regions, decoding), strict=True)
        ]


class FinishedCaptioner(AnyCaptioner):
    """A captioner that others finished, such as BLIP; threads may share one.

    Args:
        model: from :func:`regard.finished.load_finished`.
    """

    def __init__(self, model: Finished) -> None:
        self.model = model

    @property
    def no_gaze(self) -> str | None:
        """Why its captions have no maps, in one line; none where they have."""
        return None if self.model.grid is not None else self.model.no_gaze

    def _batch(self, photos: Sequence[Image.Image], decoding: Decoding) -> list[PhotoCaption]:
        return [
            PhotoCaption(found[0], tuple(found[1:]), p.size, self.model.placement(p))
            for p, found in zip(photos, self.model.describe(photos, decoding), strict=True)
        ]


def load(
    source: str | Path,
    *,
    encoder: str | None = None,
    revision: str | None = None,
    device: str = "auto",
) -> AnyCaptioner:
    """Load a captioner.

    Args:
        source: a run, a model folder, or a hub id; or a folder or hub id of a finished captioner:
            a BLIP, a GIT, a BLIP-2 or a vision-encoder-decoder of transformers.
        encoder: another place of the encoder's weights than the model names.
        revision: commit or tag of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: the model or its encoder cannot be had, is damaged, or does not fit together.
        ConfigError: there is no such device here.
    """
    if find_finished(source, revision=revision) is not None:
        return FinishedCaptioner(load_finished(source, revision=revision, device=device))
    return Captioner(read_model(source, encoder=encoder, revision=revision), device=device)
