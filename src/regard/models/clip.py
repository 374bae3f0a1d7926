"""CLIP: photos and texts as points of one space, near each other where they fit.

It judges captions (:mod:`regard.metrics.clipscore`) and takes no part in making them. The network,
its words and the way it wants photos prepared are transformers' own. ``E`` is the width of the
common space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.errors import ModelError
from regard.images import Source, open_photo
from regard.models.devices import find_device
from regard.models.hub import WEIGHTS, fetch, is_hub_id
from regard.models.library import SAFELY, load_network, reading, transformers
from regard.models.processors import PROCESSORS

# SigLIP has learned from texts filled up to the full length; CLIP does not see what fills a batch.
_FILLING: dict[str, bool | str] = {"clip": True, "siglip": "max_length"}

_WORDS_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_FILES = ("config.json", *PROCESSORS, *_WORDS_SETTINGS, "tokenizer.json", WEIGHTS)


class Clip:
    """A CLIP or SigLIP, ready for photos and texts.

    Attributes:
        name: what leads back to it: its hub id, or its folder.
        weights_hash: a hash of its file of weights.

    Args:
        model: transformers' ``CLIPModel`` or ``SiglipModel``.
        pixels: its image processor.
        words: its tokenizer.
        name: see above.
        weights_hash: see above.
        device: where it computes.
    """

    def __init__(
        self,
        *,
        model: Any,
        pixels: Any,
        words: Any,
        name: str,
        weights_hash: str,
        device: torch.device,
    ) -> None:
        self.name, self.weights_hash = name, weights_hash
        self._model = model.to(device).eval().requires_grad_(False)
        self._pixels, self._words, self._device = pixels, words, device

    def embed_photos(
        self, photos: Sequence[Source], *, batch_size: int = 32
    ) -> NDArray[np.float32]:
        """Photos to vectors of length 1, ``(n, E)``.

        Raises:
            PhotoError: one of them cannot be opened.
        """

        def embed(batch: Sequence[Source]) -> Tensor:
            images = [open_photo(photo) for photo in batch]
            pixels = self._pixels(images=images, return_tensors="pt")["pixel_values"]
            # (B, 3, height, width)
            found: Tensor = self._model.get_image_features(pixels.to(self._device)).pooler_output
            return found

        return _embed(embed, photos, batch_size)

    def embed_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
        """Texts to vectors of length 1, ``(n, E)``; what is too long for the model is cut off."""
        config = self._model.config
        longest = config.text_config.max_position_embeddings

        def embed(batch: Sequence[str]) -> Tensor:
            ids = self._words(
                list(batch), padding=_FILLING[config.model_type], truncation=True,
                max_length=longest, return_tensors="pt",
            )["input_ids"]  # (B, T)  # fmt: skip
            # Without a mask: CLIP looks back from the end of the text, SigLIP at the filling too.
            found: Tensor = self._model.get_text_features(ids.to(self._device)).pooler_output
            return found

        return _embed(embed, texts, batch_size)


def load_clip(
    source: str,
    *,
    revision: str | None = None,
    device: str = "auto",
    offline: bool = False,
    option: str = "--clip",
) -> Clip:
    """Load a CLIP or SigLIP in transformers' layout.

    Args:
        source: a folder, or a hub id such as ``openai/clip-vit-large-patch14``. A folder that
            exists goes before a hub id of the same name. It must have ``model.safetensors``; no
            pickle is read, and no code that comes with a model is run.
        revision: branch, tag or commit on the hub.
        device: see :func:`regard.models.devices.find_device`.
        offline: never ask the hub; use what an earlier download left.
        option: the option by which a folder is given, for errors.

    Raises:
        ModelError: there is no such model, or it is incomplete or of another kind.
        MissingExtraError: transformers is not installed.
        ConfigError: there is no such device here.
    """
    where = find_device(device)
    folder = Path(source).expanduser()
    if folder.is_dir():
        source = str(folder.resolve())
    elif is_hub_id(source):
        folder = fetch(
            source,
            _FILES,
            optional=(*PROCESSORS, *_WORDS_SETTINGS),
            revision=revision,
            offline=offline,
            subject="CLIP model",
            option=option,
        )
    else:
        raise ModelError(
            f"CLIP model {source!r}: there is no such folder, and it is not a hub id. Expected a "
            "folder in transformers' layout, or a hub id such as openai/clip-vit-large-patch14."
        )
    model, pixels, words = _read(folder, _check(folder))
    with (folder / WEIGHTS).open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    return Clip(
        model=model, pixels=pixels, words=words, name=source, weights_hash=digest, device=where
    )


def _check(folder: Path) -> str:
    """``clip`` or ``siglip``, if a folder has all that it needs.

    transformers itself would take a folder of another kind, or without words, and go on with fresh
    weights or three words, with no more than a warning.
    """
    needed = [(name,) for name in ("config.json", "tokenizer.json", WEIGHTS)] + [PROCESSORS]
    missing = [
        " or ".join(names)
        for names in needed
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise ModelError(
            f"CLIP model {folder} has no {', no '.join(missing)}. A CLIP's folder has all of them; "
            "pickled weights are not read. Fetch it again, or save it anew by transformers."
        )
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(
            f"{folder / 'config.json'} describes no model: {error!r}. Fetch the file again."
        ) from error
    if kind not in _FILLING:
        raise ModelError(
            f"{folder} is a model of the kind {kind!r}; photos and texts are compared by "
            f"{' and '.join(_FILLING)}. Take a whole CLIP such as openai/clip-vit-large-patch14."
        )
    return str(kind)


def _read(folder: Path, kind: str) -> tuple[Any, Any, Any]:
    """The network in float32, what prepares photos, and what encodes texts."""
    library = transformers("CLIP")
    network = {"clip": library.CLIPModel, "siglip": library.SiglipModel}[kind]
    subject = "CLIP model"
    model = load_network(network, folder, subject=subject)
    pixels = reading(
        # By Pillow even where torchvision is installed: its resizing gives other pixels.
        lambda: library.AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFELY),
        folder, subject=subject,
    )  # fmt: skip
    words = reading(
        lambda: library.AutoTokenizer.from_pretrained(folder, **SAFELY), folder, subject=subject
    )
    return model, pixels, words


def _embed(
    embed: Callable[[Sequence[Any]], Tensor], items: Sequence[Any], batch_size: int
) -> NDArray[np.float32]:
    """All items in batches, each vector brought to length 1: ``(n, E)``."""
    batches = [items[i : i + batch_size] for i in range(0, len(items), batch_size)]
    with torch.inference_mode():
        found = [torch.nn.functional.normalize(embed(batch), dim=-1).cpu() for batch in batches]
    vectors: NDArray[np.float32] = torch.cat(found).numpy()
    return vectors
