"""Photos to captions: load a model, caption photos, see where it looked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
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
from regard.errors import PhotoError
from regard.images import open_photo, overlay_map
from regard.models.devices import find_device
from regard.models.fast import WORTH_COMPILING
from regard.models.lanes import lanes

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
        """The caption as a lower-case sentence."""
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
        """``(T, H, W)``: the attention of each word over the encoder's grid; each map sums to 1."""
        return self.best.maps

    def gaze(self, word: int) -> np.ndarray:
        """The map of one word on the upright photo, ``(height, width)``; zero where unseen."""
        return overlay_map(self.maps[word], self.size, self.placement)


class Captioner:
    """A model with a device to run on. Nothing about a request is kept: threads may share one.

    Args:
        model: from :func:`regard.checkpoint.read_model`.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, model: Model, *, device: str = "auto") -> None:
        self.model = model
        self.device = find_device(device)
        self.decoder = model.decoder.to(self.device)
        self._encoder = model.encoder.to(self.device)
        self.encode = self._encoder.fast(self._encoder.fast_precision())

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
            photos: any number, also without end; a few batches are read ahead.
            decoding: how captions are chosen.
            batch_size: photos at once, in each of as many threads as torch computes with.
        """
        chosen = decoding or Decoding()
        waiting = iter(photos)
        batch = list(islice(waiting, batch_size))
        following = list(islice(waiting, batch_size))
        if not following:
            yield from self._batch(batch, chosen, self.encode)
            return
        encode = self.encode
        if isinstance(photos, Sized) and len(photos) >= WORTH_COMPILING:
            encode = self._encoder.fast(
                self._encoder.fast_precision(), photos=len(photos), batch_size=batch_size
            )
        count = torch.get_num_threads()
        with lanes(count) as threads:
            ahead = deque(
                threads.submit(self._batch, b, chosen, encode) for b in (batch, following)
            )
            while ahead:
                while len(ahead) <= count and (batch := list(islice(waiting, batch_size))):
                    ahead.append(threads.submit(self._batch, batch, chosen, encode))
                yield from ahead.popleft().result()

    def describe(self, regions: Tensor, decoding: Decoding) -> list[list[Caption]]:
        """Candidates for photos given as regions ``(B, L, D)``, for each photo best first."""
        return describe(
            self.decoder,
            self.model.vocabulary,
            regions.to(self.device, torch.float32),
            grid=self.model.encoder.grid,
            decoding=decoding,
        )

    def _batch(
        self, photos: Sequence[PhotoLike], decoding: Decoding, encode: Callable[[Tensor], Tensor]
    ) -> list[PhotoCaption | PhotoError]:
        """Caption photos, or say why one cannot be opened, in their order."""
        results: list[PhotoCaption | PhotoError | None] = []
        preparation = self._encoder.preparation
        prepared: list[np.ndarray] = []
        sizes: list[tuple[int, int]] = []
        for photo in photos:
            try:
                opened = open_photo(photo)
            except PhotoError as error:
                results.append(error)
                continue
            prepared.append(preparation(opened))
            sizes.append(opened.size)
            results.append(None)
        if not prepared:
            return [r for r in results if r is not None]
        with torch.inference_mode():
            # Regions are rounded as the cache rounds them, so that a photo's caption is the same
            # from both.
            regions = encode(torch.from_numpy(np.stack(prepared))).half()  # (B, L, D)
        made = (
            PhotoCaption(found[0], tuple(found[1:]), size, preparation.placement(*size))
            for size, found in zip(sizes, self.describe(regions, decoding), strict=True)
        )
        return [next(made) if r is None else r for r in results]


def load(
    source: str | Path,
    *,
    encoder: str | None = None,
    revision: str | None = None,
    device: str = "auto",
) -> Captioner:
    """Load a captioner.

    Args:
        source: a run, a model folder, or a hub id.
        encoder: another place of the encoder's weights than the model names.
        revision: commit or tag of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: the model or its encoder cannot be had, is damaged, or does not fit together.
        ConfigError: there is no such device here.
    """
    return Captioner(read_model(source, encoder=encoder, revision=revision), device=device)
