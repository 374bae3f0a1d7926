"""Photos to captions: load a model, caption photos, see where it looked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import regard
from regard.checkpoint import Model, read_model
from regard.describe import Caption, Decoding, describe
from regard.ensemble import Ensemble, read_ensemble
from regard.errors import ModelError, PhotoError
from regard.exported import Exported, find_exported, load_exported
from regard.files import hash_file
from regard.finished import Finished, find_finished, load_finished
from regard.images import Placement, open_photo, overlay_map
from regard.models.devices import find_device
from regard.models.encoders import Encoder
from regard.models.fast import WORTH_COMPILING
from regard.models.lanes import lanes

Describer = Callable[[Sequence[Any], Decoding], list[list[Caption]]]
"""Prepared photos to candidates, for each photo best first."""

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
                "attend to the photo apart from other words. Take one of regard's own, a BLIP, a "
                "Florence-2 or a vision-encoder-decoder."
            )
        return overlay_map(self.maps[word], self.size, self.placement)


class Prepared(NamedTuple):
    """A photo that waits for its batch."""

    value: Any
    """What its captioner makes of it."""
    size: tuple[int, int]
    """Width and height of the upright photo in pixels."""


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
        self,
        photos: Iterable[PhotoLike],
        decoding: Decoding | None = None,
        *,
        batch_size: int = 16,
        expected: int | None = None,
    ) -> Iterator[PhotoCaption | PhotoError]:
        """Caption photos in their order; one that cannot be opened gives its error in its place.

        Args:
            photos: any number, also without end; a few batches are read ahead.
            decoding: how captions are chosen.
            batch_size: photos at once, in each of as many threads as torch computes with.
            expected: how many there are about, where ``photos`` has no length: many are worth a
                preparation of some seconds.
        """
        chosen = decoding or Decoding()
        waiting = iter(photos)
        batch = list(islice(waiting, batch_size))
        following = list(islice(waiting, batch_size))
        if not following:
            yield from self._batch(batch, chosen, self._describer(1, batch_size))
            return
        if expected is None:
            expected = len(photos) if isinstance(photos, Sized) else 1
        describer = self._describer(expected, batch_size)
        count = torch.get_num_threads()
        with lanes(count) as threads:
            ahead = deque(
                threads.submit(self._batch, b, chosen, describer) for b in (batch, following)
            )
            while ahead:
                while len(ahead) <= count and (batch := list(islice(waiting, batch_size))):
                    ahead.append(threads.submit(self._batch, batch, chosen, describer))
                yield from ahead.popleft().result()

    def _batch(
        self, photos: Sequence[PhotoLike], decoding: Decoding, describer: Describer
    ) -> list[PhotoCaption | PhotoError]:
        """Caption photos, or say why one cannot be opened, in their order."""
        results: list[PhotoCaption | PhotoError | None] = []
        prepared: list[Prepared] = []
        for photo in photos:
            try:
                prepared.append(self.prepare(open_photo(photo)))
            except PhotoError as error:
                results.append(error)
                continue
            results.append(None)
        made = iter(self._caption(prepared, decoding, describer))
        return [next(made) if r is None else r for r in results]

    def prepare(self, photo: Image.Image) -> Prepared:
        """An upright RGB photo as it waits for its batch, which may be in another thread."""
        return Prepared(self._prepare(photo), photo.size)

    def caption_prepared(
        self, photos: Sequence[Prepared], decoding: Decoding
    ) -> list[PhotoCaption]:
        """Caption photos from :meth:`prepare` as one batch, with all threads of torch."""
        return self._caption(photos, decoding, self._describer(1, len(photos)))

    def _caption(
        self, photos: Sequence[Prepared], decoding: Decoding, describer: Describer
    ) -> list[PhotoCaption]:
        if not photos:
            return []
        found = describer([photo.value for photo in photos], decoding)
        return [
            PhotoCaption(best, tuple(others), photo.size, self.placement(photo.size))
            for photo, (best, *others) in zip(photos, found, strict=True)
        ]

    @property
    def no_gaze(self) -> str | None:
        """Why its captions have no maps, in one line; none where they have."""
        return None

    @property
    @abstractmethod
    def identity(self) -> str:
        """What its captions depend on beside photos and settings: a hash of its weights."""

    @property
    @abstractmethod
    def folder(self) -> Path | None:
        """Where it was read from; none if it was made here."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int] | None:
        """H and W of the maps; none where the captions have none."""

    @abstractmethod
    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the maps lie on an upright photo of this width and height, in its pixels."""

    @abstractmethod
    def _prepare(self, photo: Image.Image) -> Any:
        """What is kept of an upright RGB photo until its batch is together."""

    @abstractmethod
    def _describer(self, photos: int, batch_size: int) -> Describer:
        """What makes the captions, where so many photos are expected."""


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
        self._encoder = model.encoder.to(self.device)
        self._speaker = model.speaker()
        self.encode = _encode(self._encoder)
        self._encode_many: dict[int, Callable[[Tensor], Tensor]] = {}

    @property
    def identity(self) -> str:
        """A hash of its weights."""
        return self.model.weights_hash

    @property
    def folder(self) -> Path | None:
        """Where it was read from; none if it was made here."""
        return self.model.folder

    def describe(self, regions: Tensor, decoding: Decoding) -> list[list[Caption]]:
        """Candidates for photos given as regions ``(B, L, D)``, for each photo best first."""
        return describe(
            self._speaker,
            self.model.vocabulary,
            regions.to(self.device, torch.float32),
            grid=self.model.encoder.grid,
            decoding=decoding,
            frequencies=self.model.frequencies,
        )

    @property
    def grid(self) -> tuple[int, int]:
        """H and W of the maps."""
        return self._encoder.grid

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the maps lie on an upright photo of this width and height, in its pixels."""
        return self._encoder.preparation.placement(*size)

    def _prepare(self, photo: Image.Image) -> np.ndarray:
        return self._encoder.preparation(photo)

    def _describer(self, photos: int, batch_size: int) -> Describer:
        encode = self.encode
        if photos >= WORTH_COMPILING:
            if batch_size not in self._encode_many:  # compiled for the first many, then kept
                self._encode_many[batch_size] = _encode(self._encoder, photos, batch_size)
            encode = self._encode_many[batch_size]

        def describer(prepared: Sequence[np.ndarray], decoding: Decoding) -> list[list[Caption]]:
            with torch.inference_mode():
                # Regions are rounded as the cache rounds them, so that a photo's caption is the
                # same from both.
                regions = encode(torch.from_numpy(np.stack(prepared))).half()  # (B, L, D)
            return self.describe(regions, decoding)

        return describer


class EnsembleCaptioner(AnyCaptioner):
    """Several models that caption together, or one from several views; threads may share it.

    Args:
        ensemble: from :func:`regard.ensemble.read_ensemble`.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
    """

    def __init__(self, ensemble: Ensemble, *, device: str = "auto") -> None:
        self.ensemble = ensemble
        self.device = find_device(device)
        ensemble.to(self.device)
        self._speaker = ensemble.speaker()
        self._preparations = ensemble.preparations
        self._encode = [_encode(encoder) for encoder in ensemble.encoders]

    @property
    def identity(self) -> str:
        """A hash of the weights of each, and of how many views they see."""
        hashes = [member.weights_hash for member in self.ensemble.members]
        return blake2b(f"{'+'.join(hashes)} {self.ensemble.views}".encode()).hexdigest()

    @property
    def folder(self) -> Path | None:
        """Where the first was read from; none if it was made here."""
        return self.ensemble.members[0].folder

    @property
    def grid(self) -> tuple[int, int]:
        """H and W of the maps."""
        return self.ensemble.grid

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the maps lie on an upright photo of this width and height, in its pixels."""
        return self.ensemble.encoders[0].preparation.placement(*size)

    def _prepare(self, photo: Image.Image) -> list[np.ndarray]:
        return [prepare(photo) for prepare in self._preparations]

    def _describer(self, photos: int, batch_size: int) -> Describer:
        encoders = self._encode
        if photos >= WORTH_COMPILING:
            encoders = [_encode(e, photos, batch_size) for e in self.ensemble.encoders]
        encoders = [encode for encode in encoders for _ in range(self.ensemble.views)]

        def describer(
            prepared: Sequence[Sequence[np.ndarray]], decoding: Decoding
        ) -> list[list[Caption]]:
            with torch.inference_mode():
                each = [
                    encode(torch.from_numpy(np.stack(images))).half()
                    for encode, images in zip(encoders, zip(*prepared, strict=True), strict=True)
                ]
            regions = self.ensemble.regions(each).to(self.device, torch.float32)
            return describe(
                self._speaker, self.ensemble.vocabulary, regions, grid=self.grid, decoding=decoding,
                frequencies=self.ensemble.frequencies,
            )  # fmt: skip

        return describer


class FinishedCaptioner(AnyCaptioner):
    """A captioner that others finished, such as BLIP; threads may share one.

    Args:
        model: from :func:`regard.finished.load_finished`.
    """

    def __init__(self, model: Finished) -> None:
        self.model = model

    @property
    def identity(self) -> str:
        """A hash of its weights."""
        return str(self.model.describe_self()["weights"])

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        return self.model.folder

    @property
    def no_gaze(self) -> str | None:
        """Why its captions have no maps, in one line; none where they have."""
        return None if self.grid is not None else self.model.no_gaze

    @property
    def grid(self) -> tuple[int, int] | None:
        """H and W of the maps; none where the captions have none."""
        return self.model.grid

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the maps lie on an upright photo of this width and height, in its pixels."""
        return self.model.placement(size)

    def _prepare(self, photo: Image.Image) -> Image.Image:
        return photo

    def _describer(self, photos: int, batch_size: int) -> Describer:
        return self.model.describe


class ExportedCaptioner(AnyCaptioner):
    """A captioner exported to ONNX; threads may share one.

    Args:
        model: from :func:`regard.exported.load_exported`.
    """

    def __init__(self, model: Exported) -> None:
        self.model = model

    @property
    def identity(self) -> str:
        """A hash of its weights."""
        return hash_file(self.model.folder / "config.json")

    @property
    def folder(self) -> Path:
        """Where it was read from."""
        return self.model.folder

    @property
    def grid(self) -> tuple[int, int]:
        """H and W of the maps."""
        return self.model.grid

    def placement(self, size: tuple[int, int]) -> Placement:
        """Where the maps lie on an upright photo of this width and height, in its pixels."""
        return self.model.preparation.placement(*size)

    def _prepare(self, photo: Image.Image) -> np.ndarray:
        return self.model.preparation(photo)

    def _describer(self, photos: int, batch_size: int) -> Describer:
        model = self.model

        def describer(prepared: Sequence[np.ndarray], decoding: Decoding) -> list[list[Caption]]:
            regions = model.encode(torch.from_numpy(np.stack(prepared)))  # (B, L, D)
            return describe(
                model.decoder, model.vocabulary, regions, grid=model.grid, decoding=decoding,
                frequencies=model.frequencies,
            )  # fmt: skip

        return describer


def _encode(encoder: Encoder, photos: int = 1, batch_size: int = 8) -> Callable[[Tensor], Tensor]:
    """The encoder's fast form for so many photos."""
    return encoder.fast(encoder.fast_precision(), photos=photos, batch_size=batch_size)


def load(
    source: str | Path | Sequence[str | Path] = regard.DEFAULT_MODEL,
    *,
    encoder: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    views: int = 1,
) -> AnyCaptioner:
    """Load a captioner.

    Args:
        source: a run, a model folder, or a hub id; none is the captioner that comes with the
            package. Or a folder or hub id of a captioner that `regard export` made, or of a
            finished one: a BLIP, a GIT, a BLIP-2, a Florence-2 or a vision-encoder-decoder of
            transformers. Several of regard's own caption together, see
            :mod:`regard.models.together`.
        encoder: another place of the encoder's weights than the model names.
        revision: commit or tag of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        views: how many of :data:`regard.images.VIEWS` one of regard's own sees of a photo.

    Raises:
        ModelError: the model or its encoder cannot be had, is damaged, or does not fit together.
        ConfigError: there is no such device here, or there are not so many views.
    """
    sources = [source] if isinstance(source, str | Path) else source
    if len(sources) != 1 or views != 1:
        together = read_ensemble(sources, encoder=encoder, revision=revision, views=views)
        return EnsembleCaptioner(together, device=device)
    (source,) = sources
    if find_finished(source, revision=revision) is not None:
        return FinishedCaptioner(load_finished(source, revision=revision, device=device))
    if find_exported(source, revision=revision) is not None:
        return ExportedCaptioner(load_exported(source, revision=revision, device=device))
    return Captioner(read_model(source, encoder=encoder, revision=revision), device=device)
