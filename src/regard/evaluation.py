"""The scores of a saved model, or of a file of captions, on a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

import regard
from regard.checkpoint import Model
from regard.data.dataset import Dataset, Photo
from regard.data.features import build_features
from regard.describe import Decoding, describe
from regard.errors import DataError
from regard.metrics.score import Score
from regard.metrics.scores import score_all
from regard.text.tokenise import tokenise


@dataclass(frozen=True)
class Evaluation:
    """Scores with what they were measured on and how."""

    settings: dict[str, Any]
    """Split, number of photos, model, decoding, tokenisation."""
    scores: dict[str, Score]
    """By name, each with its engine, the corpus value and one value a photo."""
    photos: tuple[Photo, ...]
    """What was captioned, in order."""
    captions: tuple[str, ...]
    """The captions, in the order of the photos."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: settings, scores, and caption, references, scores by photo."""
        return {
            "settings": self.settings,
            "scores": {name: score.corpus for name, score in self.scores.items()},
            "engines": {name: score.engine for name, score in self.scores.items()},
            "photos": [
                {
                    "id": photo.id,
                    "caption": caption,
                    "references": list(photo.captions),
                    "scores": {
                        name: float(score.per_photo[i]) for name, score in self.scores.items()
                    },
                }
                for i, (photo, caption) in enumerate(zip(self.photos, self.captions, strict=True))
            ],
        }

    def write(self, file: Path) -> None:
        """Write :meth:`as_dict` as JSON, beside its place, then renamed."""
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_name(file.name + ".new")
        beside.write_text(json.dumps(self.as_dict(), indent=1, ensure_ascii=False) + "\n", "utf-8")
        beside.replace(file)


def evaluate_model(
    dataset: Dataset,
    split: str,
    model: Model,
    decoding: Decoding,
    *,
    cache: Path | None = None,
    batch_size: int = 50,
    on_features: Callable[[int, int], None] | None = None,
    on_captions: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Caption a split and score it.

    Args:
        dataset: photos with their references.
        split: ``train``, ``val`` (or ``dev``), ``test`` or ``all``.
        model: from :func:`regard.checkpoint.read_model`.
        decoding: how captions are chosen.
        cache: root of the feature cache; none is the default one.
        batch_size: photos at once.
        on_features: told photos encoded and photos in all.
        on_captions: told photos captioned and photos in all.

    Raises:
        DataError: the split is empty or a photo has no reference.
    """
    photos = _with_references(dataset, split)
    paths = [p.path for p in photos]
    encoder = model.encoder
    store = build_features(paths, encoder, cache, on_progress=on_features)
    captions: list[str] = []
    for start in range(0, len(paths), batch_size):
        regions = torch.from_numpy(store.read(paths[start : start + batch_size])).float()
        found = describe(
            model.decoder, model.vocabulary, regions, grid=encoder.grid, decoding=decoding
        )
        captions += [c[0].text for c in found]
        if on_captions is not None:
            on_captions(len(captions), len(paths))
    settings = {
        "model": model.weights_hash,
        "encoder": encoder.describe(),
        "decoding": asdict(decoding),
    }
    return _scored(dataset, split, photos, captions, settings)


def evaluate_captions(
    dataset: Dataset, split: str, captions: dict[str, str], *, source: str
) -> Evaluation:
    """Score captions made elsewhere.

    Args:
        dataset: photos with their references.
        split: whose photos must all have a caption.
        captions: by photo: its id, or its file's name with or without the ending.
        source: where they came from, for the record.

    Raises:
        DataError: a photo has no caption; the first few and the count are listed.
    """
    photos = _with_references(dataset, split)
    found = [
        next((captions[k] for k in (p.id, p.path.name, p.path.stem) if k in captions), None)
        for p in photos
    ]
    missing = [p.id for p, caption in zip(photos, found, strict=True) if caption is None]
    if missing:
        raise DataError(
            f"{source} has no caption for {len(missing)} of the {len(photos)} photos of {split}: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}. Captions are found "
            "by the photo's id or file name."
        )
    return _scored(
        dataset, split, photos, [c for c in found if c is not None], {"captions": source}
    )


def read_captions(file: Path) -> dict[str, str]:
    """Captions by photo from JSON lines or a COCO result file; see :func:`evaluate_captions`.

    Raises:
        DataError: the file cannot be read, or a line has no caption.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"The captions in {file} cannot be read: {error}.") from error
    captions: dict[str, str] = {}
    try:
        whole = json.loads(text) if text.lstrip().startswith("[") else None
        rows = (
            whole if whole is not None else [json.loads(x) for x in text.splitlines() if x.strip()]
        )
    except ValueError as error:
        raise DataError(
            f"{file} is neither JSON lines nor a COCO result file: {error}. Write a line a photo "
            "such as "
            '{"path": "a.jpg", "caption": "a dog"}.'
        ) from error
    for number, row in enumerate(rows, 1):
        keys = ("image_id", "id", "image", "path", "file_name")
        key = next((row[k] for k in keys if isinstance(row, dict) and k in row), None)
        if key is None or not isinstance(row.get("caption"), str):
            raise DataError(
                f"Row {number} of {file} is {json.dumps(row)[:80]}: it needs a photo (one of "
                f"{', '.join(keys)}) and a caption."
            )
        captions[str(key)] = row["caption"]
        captions.setdefault(Path(str(key)).name, row["caption"])
    return captions


def _with_references(dataset: Dataset, split: str) -> tuple[Photo, ...]:
    photos = tuple(sorted(dataset.split(split), key=lambda p: p.id))
    bare = [p.id for p in photos if not p.captions]
    if bare:
        raise DataError(
            f"{len(bare)} photos of {split} have no caption to compare with, the first is "
            f"{bare[0]}. `regard data check` names them all."
        )
    return photos


def _scored(
    dataset: Dataset,
    split: str,
    photos: Sequence[Photo],
    captions: Sequence[str],
    settings: dict[str, Any],
) -> Evaluation:
    references = [[tokenise(c) for c in p.captions] for p in photos]
    scores = score_all([tokenise(c) for c in captions], references)
    return Evaluation(
        {
            "regard": regard.__version__,
            "data": dataset.name,
            "layout": dataset.layout,
            "split": split,
            "splits": dataset.split_source,
            "number_of_photos": len(photos),
            "tokenisation": "PTB, lower case, no punctuation (regard.text.tokenise)",
            **settings,
        },
        scores,
        tuple(photos),
        tuple(captions),
    )
