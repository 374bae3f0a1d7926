"""The scores of a saved model, or of a file of captions, on a split."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

import regard
from regard.checkpoint import Model
from regard.data.dataset import Dataset, Photo
from regard.data.features import build_features, build_views
from regard.describe import Caption, Decoding, describe
from regard.ensemble import Ensemble
from regard.errors import DataError, MissingExtraError, ModelError, ScoreUnavailable
from regard.files import write_json
from regard.finished import Finished
from regard.images import open_photo
from regard.metrics.clipscore import PROMPT, clip_scores
from regard.metrics.diagnosis import diagnose
from regard.metrics.meteor import combine, meteor
from regard.metrics.score import Score, Tokens
from regard.metrics.scores import score_all
from regard.metrics.spice import spice
from regard.models.clip import Clip, load_clip
from regard.models.devices import find_device
from regard.models.hub import commit_of
from regard.rerank import rerank
from regard.text.tokenise import tokenise

TOKENISATION = "PTB, lower case, no punctuation (regard.text.tokenise)"


@dataclass(frozen=True)
class Extras:
    """Scores beyond those that need nothing but the captions."""

    meteor: bool | None = None
    """METEOR; none: where its tables are installed."""
    spice: bool = False
    """SPICE, which needs Java and its models."""
    clip: str | None = None
    """CLIPScore and RefCLIPScore, with the CLIP of this folder or hub id."""


@dataclass(frozen=True)
class Evaluation:
    """Scores with what they were measured on and how."""

    settings: dict[str, Any]
    """Split, number of photos, model, decoding, tokenisation."""
    scores: dict[str, Score]
    """By name, each with its engine, the corpus value and one value a photo."""
    human: dict[str, float]
    """The same scores of one human caption against the others, the mean over whose turn it is;
    empty where photos have fewer than two captions."""
    diagnosis: dict[str, float]
    """Variety, lengths and faults; see :func:`regard.metrics.diagnosis.diagnose`."""
    human_diagnosis: dict[str, float]
    """The same of as many human captions."""
    left_out: tuple[str, ...]
    """Scores that were asked for and could not be had, each with its reason."""
    photos: tuple[Photo, ...]
    """What was captioned, in order."""
    captions: tuple[str, ...]
    """The captions, in the order of the photos."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON: all of it, and for each photo its caption, references, scores."""
        summed = {
            name.partition("-")[0]: score.statistics
            for name, score in self.scores.items()
            if score.statistics is not None
        }
        return {
            "settings": self.settings,
            "scores": {name: score.corpus for name, score in self.scores.items()},
            "engines": {name: score.engine for name, score in self.scores.items()},
            "human": self.human,
            "diagnosis": self.diagnosis,
            "human_diagnosis": self.human_diagnosis,
            "left_out": list(self.left_out),
            "photos": [
                {
                    "id": photo.id,
                    "caption": caption,
                    "references": list(photo.captions),
                    "scores": {
                        name: float(score.per_photo[i]) for name, score in self.scores.items()
                    },
                    "statistics": {name: rows[i].tolist() for name, rows in summed.items()},
                }
                for i, (photo, caption) in enumerate(zip(self.photos, self.captions, strict=True))
            ],
        }

    def write(self, file: Path) -> None:
        """Write :meth:`as_dict` as JSON, beside its place, then renamed."""
        write_json(file, self.as_dict())


def evaluate_model(
    dataset: Dataset,
    split: str,
    model: Model | Ensemble,
    decoding: Decoding,
    *,
    extras: Extras | None = None,
    device: str = "auto",
    cache: Path | None = None,
    batch_size: int = 50,
    clip: Clip | None = None,
    on_features: Callable[[int, int], None] | None = None,
    on_captions: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Caption a split and score it.

    Args:
        dataset: photos with their references.
        split: ``train``, ``val`` (or ``dev``), ``test`` or ``all``.
        model: from :func:`regard.checkpoint.read_model` or :func:`regard.ensemble.read_ensemble`;
            moved to the device.
        decoding: how captions are chosen.
        extras: scores beyond the usual ones.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        cache: root of the feature cache; none is the default one.
        batch_size: photos at once.
        clip: what orders the candidates of a photo instead of their score.
        on_features: told photos encoded and photos in all.
        on_captions: told photos captioned and photos in all.

    Raises:
        DataError: the split is empty or a photo has no reference.
        ConfigError: there is no such device here.
    """
    photos = _with_references(dataset, split)
    paths = [p.path for p in photos]
    there = find_device(device)
    ensemble = Ensemble((model,)) if isinstance(model, Model) else model
    ensemble.to(there)
    speaker = ensemble.speaker()
    stores = []
    for encoder in ensemble.encoders:
        stores.append(build_features(paths, encoder, cache, on_progress=on_features))
        stores += build_views(paths, encoder, cache, views=ensemble.views, on_progress=on_features)

    def say(batch: Sequence[Path]) -> list[list[Caption]]:
        each = [torch.from_numpy(store.read(batch)) for store in stores]
        regions = ensemble.regions(each).to(there, torch.float32)
        return describe(
            speaker, ensemble.vocabulary, regions, grid=ensemble.grid, decoding=decoding,
            frequencies=ensemble.frequencies,
        )  # fmt: skip

    captions, cut = _captioned(paths, say, batch_size, clip, on_captions)
    settings = {
        **_described(ensemble.members[0]),
        "decoding": asdict(decoding),
        **_reranked_by(clip),
    }
    if ensemble.views > 1:
        settings["views"] = ensemble.views
    if len(ensemble.members) > 1:
        settings["together_with"] = [_described(other) for other in ensemble.members[1:]]
    return _evaluated(
        dataset, split, photos, captions, settings, extras or Extras(), device,
        vocabulary=ensemble.vocabulary.words if ensemble.vocabulary.closed else None, cut=cut,
    )  # fmt: skip


def _described(model: Model) -> dict[str, Any]:
    return {
        "model": model.weights_hash,
        "revision": None if model.folder is None else commit_of(model.folder),
        "encoder": model.encoder.describe(),
    }


def evaluate_finished(
    dataset: Dataset,
    split: str,
    captioner: Finished,
    decoding: Decoding,
    *,
    extras: Extras | None = None,
    device: str = "auto",
    batch_size: int = 16,
    clip: Clip | None = None,
    on_captions: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Caption a split by a captioner that others finished, and score it.

    Args:
        dataset: photos with their references.
        split: ``train``, ``val`` (or ``dev``), ``test`` or ``all``.
        captioner: from :func:`regard.finished.load_finished`.
        decoding: how captions are chosen.
        extras: scores beyond the usual ones.
        device: where a CLIP computes.
        batch_size: photos at once.
        clip: what orders the candidates of a photo instead of their score.
        on_captions: told photos captioned and photos in all.

    Raises:
        DataError: the split is empty or a photo has no reference.
        PhotoError: a photo cannot be opened.
    """
    photos = _with_references(dataset, split)

    def say(batch: Sequence[Path]) -> list[list[Caption]]:
        return captioner.describe([open_photo(path) for path in batch], decoding)

    captions, cut = _captioned([p.path for p in photos], say, batch_size, clip, on_captions)
    settings = {
        "captioner": captioner.describe_self(),
        "decoding": asdict(decoding),
        **_reranked_by(clip),
    }
    return _evaluated(
        dataset, split, photos, captions, settings, extras or Extras(), device, cut=cut
    )


def _captioned(
    paths: Sequence[Path],
    say: Callable[[Sequence[Path]], list[list[Caption]]],
    batch_size: int,
    clip: Clip | None,
    on_captions: Callable[[int, int], None] | None,
) -> tuple[list[str], list[bool]]:
    """The best caption of each photo, and whether it was cut off; ``say`` gives candidates."""
    captions: list[str] = []
    cut: list[bool] = []
    for start in range(0, len(paths), batch_size):
        batch = paths[start : start + batch_size]
        found = say(batch)
        if clip is not None:
            found = rerank(clip, batch, found)
        captions += [c[0].text for c in found]
        cut += [c[0].cut for c in found]
        if on_captions is not None:
            on_captions(len(captions), len(paths))
    return captions, cut


def evaluate_captions(
    dataset: Dataset,
    split: str,
    captions: dict[str, str],
    *,
    source: str,
    extras: Extras | None = None,
    device: str = "auto",
) -> Evaluation:
    """Score captions made elsewhere.

    Args:
        dataset: photos with their references.
        split: whose photos must all have a caption.
        captions: by photo: its id, or its file's name with or without the ending.
        source: where they came from, for the record.
        extras: scores beyond the usual ones.
        device: where a CLIP computes.

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
    return _evaluated(
        dataset, split, photos, [c for c in found if c is not None], {"captions": source},
        extras or Extras(), device,
    )  # fmt: skip


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


def _reranked_by(clip: Clip | None) -> dict[str, Any]:
    return {} if clip is None else {"rerank": {"id": clip.name, "weights": clip.weights_hash}}


def _with_references(dataset: Dataset, split: str) -> tuple[Photo, ...]:
    photos = tuple(sorted(dataset.split(split), key=lambda p: p.id))
    bare = [p.id for p in photos if not p.captions]
    if bare:
        raise DataError(
            f"{len(bare)} photos of {split} have no caption to compare with, the first is "
            f"{bare[0]}. `regard data check` names them all."
        )
    return photos


def _evaluated(
    dataset: Dataset,
    split: str,
    photos: Sequence[Photo],
    captions: Sequence[str],
    settings: dict[str, Any],
    extras: Extras,
    device: str,
    *,
    vocabulary: Sequence[str] | None = None,
    cut: Sequence[bool] | None = None,
) -> Evaluation:
    said = _Said(captions, [p.captions for p in photos])
    turns = _human_turns(photos)
    (scores, *human), left_out = _score([said, *turns], [p.path for p in photos], extras, device)
    known = {
        tuple(tokenise(c)) for p in dataset.photos if p.split == "train" for c in p.captions
    } or None
    human_ways = [diagnose(turn.tokens, known=known) for turn in turns]
    return Evaluation(
        settings={
            "regard": regard.__version__,
            "data": dataset.name,
            "layout": dataset.layout,
            "split": split,
            "splits": dataset.split_source,
            "number_of_photos": len(photos),
            "tokenisation": TOKENISATION,
            **settings,
        },
        scores=scores,
        human=_means([{n: s.corpus for n, s in turn.items()} for turn in human]),
        diagnosis=diagnose(said.tokens, known=known, vocabulary=vocabulary, cut=cut),
        human_diagnosis=_means(human_ways),
        left_out=tuple(left_out),
        photos=tuple(photos),
        captions=tuple(captions),
    )


class _Said:
    """A caption of each photo, and what it is compared with, as texts and as tokens."""

    def __init__(self, texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        self.texts, self.references = texts, references
        self.tokens: list[Tokens] = [tokenise(text) for text in texts]
        self.reference_tokens = [[tokenise(text) for text in group] for group in references]


def _human_turns(photos: Sequence[Photo]) -> Sequence[_Said]:
    """Each caption of the photos as the one to score, the others as its references.

    The first turn takes the first caption of every photo, and so on; photos with fewer captions
    than others have some of them twice. No turn where a photo has a single caption.
    """
    if min(len(p.captions) for p in photos) < 2:
        return []
    turns = []
    for turn in range(max(len(p.captions) for p in photos)):
        places = [turn % len(p.captions) for p in photos]
        texts = [p.captions[k] for p, k in zip(photos, places, strict=True)]
        others = [
            [c for i, c in enumerate(p.captions) if i != k]
            for p, k in zip(photos, places, strict=True)
        ]
        turns.append(_Said(texts, others))
    return turns


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: fmean(row[name] for row in rows) for name in (rows[0] if rows else ())}


def _score(
    turns: Sequence[_Said], paths: Sequence[Path], extras: Extras, device: str
) -> tuple[list[dict[str, Score]], list[str]]:
    """Every score of every turn; what cannot be had is left out, and the reason kept."""
    scorers: dict[str, Callable[[Sequence[_Said]], list[list[Score]]]] = {
        "BLEU, ROUGE-L and CIDEr": lambda turns: [
            list(score_all(turn.tokens, turn.reference_tokens).values()) for turn in turns
        ]
    }
    if extras.meteor is not False:
        scorers["METEOR"] = lambda turns: _in_one_go(turns, meteor, lambda s: combine(s.sum(0)))
    if extras.spice:
        scorers["SPICE"] = lambda turns: _in_one_go(turns, spice)
    if (clip := extras.clip) is not None:
        scorers["CLIPScore"] = lambda turns: _by_clip(turns, paths, clip, device)
    scores: list[dict[str, Score]] = [{} for _ in turns]
    left_out = []
    for name, scorer in scorers.items():
        try:
            for found, made in zip(scores, scorer(turns), strict=True):
                found |= {score.name: score for score in made}
        except (ScoreUnavailable, MissingExtraError, ModelError) as error:
            left_out.append(f"{name} is left out: {error}")
    return scores, left_out


def _in_one_go(
    turns: Sequence[_Said],
    scorer: Callable[[Sequence[Tokens], Sequence[Sequence[Tokens]]], Score],
    corpus_of: Callable[[np.ndarray], np.ndarray] = np.mean,
) -> list[list[Score]]:
    """All turns by one call of a scorer that is slow to start, whose photos are independent.

    Args:
        turns: each with n captions.
        scorer: captions and references to a score.
        corpus_of: the value of a turn from the statistics ``(n, S)`` of its photos; a score
            without statistics is the mean over photos.

    Returns:
        For each turn its score, alone in a list.
    """
    whole = scorer(
        [tokens for turn in turns for tokens in turn.tokens],
        [group for turn in turns for group in turn.reference_tokens],
    )
    parts = []
    for photos in np.split(np.arange(len(whole.per_photo)), len(turns)):
        each = whole.per_photo[photos]
        if whole.statistics is None:
            parts.append([Score(whole.name, float(each.mean()), each, whole.engine)])
        else:
            sums = whole.statistics[photos]
            parts.append([Score(whole.name, float(corpus_of(sums)), each, whole.engine, sums)])
    return parts


def _by_clip(
    turns: Sequence[_Said], paths: Sequence[Path], source: str, device: str
) -> list[list[Score]]:
    """CLIPScore and RefCLIPScore of each turn; every photo and every text is read once."""
    clip = load_clip(source, device=device)
    photos = clip.embed_photos(paths)
    texts = list(
        dict.fromkeys(
            text for turn in turns for texts in (turn.texts, *turn.references) for text in texts
        )
    )
    found = clip.embed_texts([PROMPT + text for text in texts])
    vectors = dict(zip(texts, found, strict=True))

    def stack(texts: Sequence[str]) -> np.ndarray:
        return np.stack([vectors[text] for text in texts])

    engine = f"{clip.name}, weights {clip.weights_hash[:12]}"
    return [
        list(
            clip_scores(
                photos, stack(turn.texts), [stack(group) for group in turn.references],
                engine=engine,
            )
        )
        for turn in turns
    ]  # fmt: skip
