"""Does it look at what it names? The gaze of a saved model, measured against boxes.

A word is judged if it names a thing that is in the photo and has a box: the word is the last of
one of the thing's names ("star" of "red star"; "man" of "a tall man"). Where several things of a
photo share the word, those fit best whose name also has the words said just before it ("the blue
star"); what still fits equally counts as one thing, because pointing at either is right.

Words that name what is not there are counted, not judged: there is nowhere to look.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Group
from rich.table import Table
from rich.text import Text
from torch import Tensor

import regard
from regard.checkpoint import Model
from regard.data.batches import Captions, inputs_and_targets
from regard.data.dataset import Dataset, Photo
from regard.data.entities import Annotation, Entities
from regard.data.features import build_features
from regard.describe import Decoding, describe, mean_by_word
from regard.errors import DataError
from regard.files import write_json
from regard.images import Placement, open_photo, overlay_map
from regard.metrics.pointing import Box, Estimate, Pointing, peak, point, summarise
from regard.models.decoder import Decoder
from regard.text.tokenise import tokenise

SHOWN = 12
"""Words in the printed table, and examples under it."""

_ARTICLES = frozenset(("a", "an", "the"))  # they tell no thing from another


@dataclass(frozen=True, slots=True)
class Look:
    """One word that was judged."""

    photo: str
    """The photo's id."""
    caption: tuple[str, ...]
    """The T words it was said in."""
    position: int
    """Which of them it is, from 0."""
    boxes: tuple[Box, ...]
    """Of what it names, in pixels of the upright photo."""
    peak: tuple[int, int]
    """Column and row of the pixel looked at most."""
    pointing: Pointing
    """How the one lies to the other."""

    @property
    def word(self) -> str:
        """The word."""
        return self.caption[self.position]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"word": self.word, **asdict(self), "pointing": self.pointing._asdict()}


@dataclass(frozen=True)
class GazeCheck:
    """How well a captioner's gaze lies on what it names."""

    settings: dict[str, Any]
    """Split, captions, model, decoding, seed, and what the boxes are from."""
    counts: dict[str, int]
    """``photos`` with boxes and ``photos without`` them, their ``captions``, the words ``judged``,
    and those that name what has ``no box`` or is ``not there``."""
    measures: dict[str, Estimate]
    """Over all words judged; by the names of :class:`regard.metrics.pointing.Pointing`."""
    by_word: dict[str, tuple[int, dict[str, Estimate]]]
    """For each word, the most frequent first: how often it was judged, and its own measures."""
    looks: tuple[Look, ...]
    """Every word judged, in the order of the photos."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; each measure has a mean and a 95 % interval."""
        return {
            "settings": self.settings,
            "counts": self.counts,
            "measures": _plain(self.measures),
            "by_word": {
                word: {"judged": judged, **_plain(measures)}
                for word, (judged, measures) in self.by_word.items()
            },
            "looks": [look.as_dict() for look in self.looks],
        }

    def write(self, file: Path) -> None:
        """Write :meth:`as_dict` as JSON, beside its place, then renamed."""
        write_json(file, self.as_dict())


def check_gaze(
    dataset: Dataset,
    split: str,
    model: Model,
    decoding: Decoding,
    *,
    entities: Path | None = None,
    forced: bool = False,
    cache: Path | None = None,
    batch_size: int = 50,
    seed: int = 0,
    on_features: Callable[[int, int], None] | None = None,
    on_photos: Callable[[int, int], None] | None = None,
) -> GazeCheck:
    """Caption a split and measure where each word looked.

    Args:
        dataset: drawn scenes, or photos that Flickr30k Entities has boxes for.
        split: ``train``, ``val`` (or ``dev``), ``test`` or ``all``.
        model: from :func:`regard.checkpoint.read_model`.
        decoding: how captions are chosen.
        entities: folder of Flickr30k Entities, for data without boxes of its own.
        forced: read people's captions to the model, as in training, instead of its own ones. With
            Entities, these are the annotated captions, and a word means what the annotation says.
        cache: root of the feature cache; none is the default one.
        batch_size: photos at once.
        seed: of the confidence intervals.
        on_features: told photos encoded and photos in all.
        on_photos: told photos judged and photos in all.

    Raises:
        DataError: the split is empty, has no boxes, or no word could be judged.
    """
    photos = sorted(dataset.split(split), key=lambda p: p.id)
    truths = [t for t in _truths(photos, None if entities is None else Entities(entities)) if t]
    if not truths:
        raise DataError(_no_boxes(dataset, split, entities))
    paths = [t.photo.path for t in truths]
    store = build_features(paths, model.encoder, cache, on_progress=on_features)
    nouns = {named.noun for t in truths for named in t.things}
    counts = dict.fromkeys(("captions", "judged", "no box", "not there"), 0)
    looks: list[Look] = []
    speaker = model.speaker()
    for start in range(0, len(truths), batch_size):
        batch = truths[start : start + batch_size]
        regions = torch.from_numpy(store.read([t.photo.path for t in batch])).float()
        said = (
            _read(model, regions, batch)
            if forced
            else _said(model, speaker, regions, batch, decoding)
        )
        for truth, captions in zip(batch, said, strict=True):
            placement = model.encoder.preparation.placement(*truth.size)
            for caption, maps in captions:
                counts["captions"] += 1
                counts["not there"] += sum(
                    word in nouns and i not in caption.named for i, word in enumerate(caption.words)
                )
                for i, boxes in caption.named.items():
                    counts["judged" if boxes else "no box"] += 1
                    if boxes:
                        looks.append(_look(truth, caption, i, boxes, maps[i], placement))
        if on_photos is not None:
            on_photos(start + len(batch), len(truths))
    if not looks:
        raise DataError(
            f"None of {counts['captions']} captions of {split} names a thing that has a box: "
            f"{counts['not there']} words name what is not there, {counts['no box']} what has no "
            "box. Train the model further, or read it people's captions with --forced."
        )
    return GazeCheck(
        settings={
            "regard": regard.__version__,
            "data": dataset.name,
            "split": split,
            "boxes": dataset.layout if entities is None else "Flickr30k Entities",
            "captions": "read to it (teacher forcing)" if forced else "its own",
            "model": model.weights_hash,
            "encoder": model.encoder.describe(),
            "decoding": None if forced else asdict(decoding),
            "seed": seed,
        },
        counts={"photos": len(truths), "photos without": len(photos) - len(truths), **counts},
        measures=_summary(looks, seed),
        by_word=_by_word(looks, seed),
        looks=tuple(looks),
    )


# -------------------------------------------------------------------------------------------------
# What is there, and what a word means


class Thing(NamedTuple):
    """A thing in a photo under one of its names."""

    noun: str
    """The last word of the name."""
    before: frozenset[str]
    """The other ones."""
    boxes: tuple[Box, ...]
    """Where it is; none if that is not known."""


@dataclass(frozen=True)
class _Caption:
    """Words, and the boxes of those that name a thing in the photo (none if it has no box)."""

    words: tuple[str, ...]
    named: Mapping[int, tuple[Box, ...]]


@dataclass(frozen=True)
class _Truth:
    """A photo of which it is known what is where."""

    photo: Photo
    size: tuple[int, int]
    """Width and height, upright, in pixels."""
    things: tuple[Thing, ...]
    captions: tuple[_Caption, ...]
    """People's."""


def things_named(words: Sequence[str], things: Sequence[Thing]) -> dict[int, tuple[Box, ...]]:
    """The boxes of each word that names one of a photo's things, by its position.

    Args:
        words: of a caption.
        things: of the photo; a thing with several names stands there several times.
    """
    named = {}
    for i, word in enumerate(words):
        candidates = [thing for thing in things if thing.noun == word]
        if candidates:
            fits = [_said_before(words[:i], thing.before) for thing in candidates]
            best = [t for t, fit in zip(candidates, fits, strict=True) if fit == max(fits)]
            named[i] = tuple(dict.fromkeys(box for thing in best for box in thing.boxes))
    return named


def _said_before(words: Sequence[str], name: frozenset[str]) -> int:
    """How many of the last words, without a gap, belong to the name."""
    number = 0
    while number < len(words) and words[-1 - number] in name:
        number += 1
    return number


def _truths(photos: Iterable[Photo], entities: Entities | None) -> Iterator[_Truth | None]:
    """What is known of each photo, none where there are no boxes."""
    for photo in photos:
        if entities is None:
            yield _of_scene(photo) if photo.boxes else None
        else:
            annotation = entities.read(photo.path)
            yield None if annotation is None else _of_annotation(photo, annotation)


def _of_scene(photo: Photo) -> _Truth:
    things = tuple(_thing(tokenise(named.name), (named.box,)) for named in photo.boxes)
    captions = (tuple(tokenise(caption)) for caption in photo.captions)
    return _Truth(
        photo, open_photo(photo.path).size, things,
        tuple(_Caption(words, things_named(words, things)) for words in captions),
    )  # fmt: skip


def _of_annotation(photo: Photo, annotation: Annotation) -> _Truth:
    size = open_photo(photo.path).size
    boxes = annotation.boxes_on(size)
    things: dict[Thing, None] = {}
    captions = []
    for pieces in annotation.captions:
        words: list[str] = []
        named = {}
        for piece in pieces:
            part = tokenise(piece.text)
            words += part
            if part and piece.chain is not None:
                there = boxes.get(piece.chain, ())
                named[len(words) - 1] = there
                things[_thing(part, there)] = None
        captions.append(_Caption(tuple(words), named))
    return _Truth(photo, size, tuple(things), tuple(captions))


def _thing(name: Sequence[str], boxes: tuple[Box, ...]) -> Thing:
    return Thing(name[-1], frozenset(name[:-1]) - _ARTICLES, boxes)


def _no_boxes(dataset: Dataset, split: str, entities: Path | None) -> str:
    if entities is None:
        return (
            f"{dataset.name} ({dataset.layout}) has no boxes, so where its things are is not "
            "known. Take drawn scenes (`regard data scenes OUT`), or name the folder of Flickr30k "
            "Entities with --boxes."
        )
    return (
        f"{entities} (--boxes) has no annotation for any photo of {split} of {dataset.name}. "
        "Annotations are found by Flickr's number, with which the photos' names must begin."
    )


# -------------------------------------------------------------------------------------------------
# Captions with their maps


Said = list[tuple[_Caption, np.ndarray]]
"""Captions of one photo, each with its maps ``(T, H, W)``."""


def _said(
    model: Model, speaker: Decoder, regions: Tensor, truths: Sequence[_Truth], decoding: Decoding
) -> Iterator[Said]:
    """The model's own captions of photos given as regions ``(B, L, D)``."""
    found = describe(
        speaker, model.vocabulary, regions, grid=model.encoder.grid, decoding=decoding,
        frequencies=model.frequencies,
    )  # fmt: skip
    for truth, (best, *_) in zip(truths, found, strict=True):
        yield [(_Caption(best.words, things_named(best.words, truth.things)), best.maps)]


def _read(model: Model, regions: Tensor, truths: Sequence[_Truth]) -> Iterator[Said]:
    """People's captions, read to the model."""
    known = model.vocabulary
    groups = [tuple(tuple(known.encode(c.words)) for c in t.captions) for t in truths]
    captions = Captions(tuple(groups), known.pad, known.start, known.end)
    inputs, _ = inputs_and_targets(captions.padded(groups))  # (B, K, T)
    with torch.inference_mode():
        attention = model.decoder.read(regions, inputs).attention  # (B, K, T, L)
    maps = attention.float().numpy().reshape(*inputs.shape, *model.encoder.grid)  # (B, K, T, H, W)
    for truth, of_photo in zip(truths, maps, strict=True):
        yield [
            (caption, mean_by_word(of_caption, [len(ids) for ids in known.pieces(caption.words)]))
            for caption, of_caption in zip(truth.captions, of_photo, strict=False)  # fewer than K
        ]


def _look(
    truth: _Truth, caption: _Caption, position: int, boxes: tuple[Box, ...],
    weights: np.ndarray, placement: Placement,
) -> Look:  # fmt: skip
    laid = overlay_map(weights, truth.size, placement)  # (h, w)
    pointing = point(weights, laid, boxes, placement)
    return Look(truth.photo.id, caption.words, position, boxes, peak(laid), pointing)


# -------------------------------------------------------------------------------------------------
# Numbers


def _summary(looks: Sequence[Look], seed: int) -> dict[str, Estimate]:
    return summarise([look.pointing for look in looks], [look.photo for look in looks], seed=seed)


def _by_word(looks: Iterable[Look], seed: int) -> dict[str, tuple[int, dict[str, Estimate]]]:
    groups: defaultdict[str, list[Look]] = defaultdict(list)
    for look in looks:
        groups[look.word].append(look)
    ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    return {word: (len(group), _summary(group, seed)) for word, group in ordered}


def _plain(measures: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    return {name: estimate._asdict() for name, estimate in measures.items()}


def render(check: GazeCheck) -> Group:
    """The result for a terminal: the table, what was counted, a few examples."""
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column("word")
    headings = ("judged", "pointing", "95 %", "mass", "chance", "centre", "entropy")
    for heading in headings:
        table.add_column(heading, justify="right")
    rows = [("all", (len(check.looks), check.measures)), *list(check.by_word.items())[:SHOWN]]
    for word, (judged, m) in rows:
        hit = m["hit"]
        table.add_row(
            Text(word), f"{judged:,}", f"{hit.mean:.3f}", f"{hit.low:.2f}-{hit.high:.2f}",
            f"{m['mass'].mean:.3f}", f"{m['chance'].mean:.3f}", f"{m['centre'].mean:.3f}",
            f"{m['entropy'].mean:.2f} ({m['evenness'].mean:.0%})",
        )  # fmt: skip
    counts, settings = check.counts, check.settings
    more = len(check.by_word) - SHOWN
    lines = [
        *([f"and {more:,} words more; --json FILE lists all of them"] if more > 0 else []),
        f"\n{settings['data']}, {settings['split']}: {counts['photos']:,} photos with boxes "
        f"({counts['photos without']:,} without), {counts['captions']:,} captions, "
        f"{settings['captions']}.",
        f"Of the words that name a thing, {counts['judged']:,} were judged; "
        f"{counts['no box']:,} name what has no box, {counts['not there']:,} what is not there.",
        "\nExamples:",
        *(_example(look) for look in check.looks[:: max(1, len(check.looks) // SHOWN)][:SHOWN]),
    ]
    # What a data set says is text, never markup.
    return Group(table, *(Text(line) for line in lines))


def _example(look: Look) -> str:
    words = (f"[{w}]" if i == look.position else w for i, w in enumerate(look.caption))
    hit = {1.0: "hit ", 0.0: "miss"}.get(look.pointing.hit, "part")
    return f"  {hit} {look.pointing.mass:4.0%} inside  {look.photo}: {' '.join(words)}"
