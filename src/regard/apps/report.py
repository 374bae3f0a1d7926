"""The report of a training run, or of several side by side: what it says, section by section.

A report is a page, ``OUT/index.html``, that holds everything and needs no network, and its figures
beside it in ``OUT/figures``. A function here for each section; :mod:`regard.apps.report_page` makes
the page of them.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

import regard
from regard.apps.report_page import check_place, embedded_photo, write_page, written_beside
from regard.build import read_vocabulary, with_embedding_width
from regard.captioner import AnyCaptioner, Captioner, FinishedCaptioner, load
from regard.config import PRESETS, describe_fields, make_config
from regard.data.dataset import Dataset, Photo
from regard.data.features import build_features
from regard.describe import Caption, Decoding
from regard.errors import ConfigError, PhotoError
from regard.evaluation import Evaluation, evaluate_finished, evaluate_model
from regard.images import open_photo
from regard.plots import curve_charts, gaze_figure
from regard.text.tokenise import tokenise
from regard.training.log import read_log

ORIGINAL = {0: 9.89, 100: 5.69, 1000: 4.10, 3000: 3.47, 7000: 3.00, 9000: 2.75, 11000: 2.60}
"""Training loss by iteration in the report that this project starts from."""

AROUND = 25
"""Batches before and after an iteration over which a run's loss there is averaged: a single batch
of 32 captions is off by a tenth of a nat or more."""

GAZED = 200
"""Most photos whose words' maps are measured: some 2,000 words, enough for means to hold still."""

OFTEN = 5
"""A word's mean entropy is listed once it was said this often."""

FLAT = 0.95
"""Share of the greatest entropy above which maps are called flat.

Of 49 regions, a map of this entropy covers as many as 40 equal ones would (49 to the power of
0.95): whatever is lit in four fifths of a photo says nothing of where the word looked.
"""


class Column(NamedTuple):
    """One of the table of epochs."""

    field: str
    """In ``epochs.csv``."""
    head: str
    digits: int


EPOCH_COLUMNS = (
    Column("epoch", "epoch", 0),
    Column("iteration", "iterations", 0),
    Column("train_loss", "training loss", 3),
    Column("reward", "reward", 3),
    Column("spread", "spread of a photo's rewards", 3),
    Column("val_loss", "validation loss", 3),
    Column("BLEU-4", "BLEU-4", 3),
    Column("CIDEr", "CIDEr", 3),
    Column("repeated", "repeated", 3),
    Column("cut_off", "cut off", 3),
    Column("words_used", "words used", 0),
    Column("seconds", "s", 0),
)

OF_A_REWARD = {"reward", "spread", "repeated", "cut_off", "words_used"}
"""Columns that only runs have that learnt from a reward."""

Captions = Mapping[str, Caption]
"""A run's captions by the photo's id."""


@dataclass(frozen=True)
class Run:
    """What a run's folder holds."""

    name: str
    """As shown; no other run of the report has it."""
    folder: Path
    settings: Mapping[str, Any]
    """By dotted name."""
    data: Mapping[str, Any]
    """What it was trained on."""
    machine: Mapping[str, Any]
    """The machine and the versions; empty if they were not recorded."""
    steps: Sequence[Mapping[str, float]]
    epochs: Sequence[Mapping[str, float]]

    @property
    def has_model(self) -> bool:
        """Whether an epoch was finished."""
        return (self.folder / "model" / "config.json").is_file()

    @cached_property
    def best(self) -> Mapping[str, float] | None:
        """The epoch whose model was kept: the best CIDEr, between equals the lower loss."""
        judged = [e for e in self.epochs if "CIDEr" in e]
        key = lambda e: (e["CIDEr"], -e.get("val_loss", math.inf))  # noqa: E731
        return max(judged, key=key, default=None)


def make_report(
    runs: Sequence[Path],
    dataset: Dataset,
    out: Path,
    *,
    split: str = "val",
    photos: int = 12,
    decoding: Decoding | None = None,
    encoder: str | None = None,
    device: str = "auto",
    cache: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Path:
    """Write the report of one run, or of several side by side.

    Args:
        runs: folders of runs; one without a model still gets the parts it has.
        dataset: where the scored and shown photos are from.
        out: a new or empty folder, or one that holds a report, which is replaced.
        split: of the scores and the photos.
        photos: how many are shown: the best, those in the middle and the worst.
        decoding: how captions are chosen.
        encoder: another place of the encoder's weights than the models name.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        cache: root of the feature cache; none is the default one.
        say: told one line at a time.

    Returns:
        The page.

    Raises:
        ConfigError: a folder is no run, ``out`` holds something else, or ``photos`` is below 1.
        DataError, ModelError, PhotoError: as their names say.
        MissingExtraError: jinja2 or matplotlib is not installed.
    """
    if photos < 1:
        raise ConfigError(f"--photos is {photos}, it must be at least 1.")
    check_place(out)
    read = read_runs(runs)
    decoding = decoding or Decoding()
    captioners, results = {}, {}
    for run in read:
        if run.has_model:
            say(f"Captioning {split} with {run.name} ...")
            captioner = load(run.folder, encoder=encoder, device=device)
            captioners[run.name] = captioner
            results[run.name] = _evaluate(
                captioner, dataset, split, decoding, device, cache
            ).as_dict()
    chosen = choose_photos(results, photos)
    shown = {id for _, ids in chosen for id in ids}
    sampled = _spread(sorted(dataset.split(split), key=lambda p: p.id), GAZED) if captioners else []
    looked = sampled + [p for p in dataset.photos if p.id in shown - {s.id for s in sampled}]
    captions = {
        name: _caption(captioner, looked, decoding, cache) for name, captioner in captioners.items()
    }

    say("Drawing ...")
    with written_beside(out) as figures:
        content = {
            "version": regard.__version__,
            "dataset": dataset.name,
            "split": split,
            "unseen": split not in ("train", "all"),
            "runs": [overview(run, results.get(run.name)) for run in read],
            "training": training(read, figures),
            "losses": loss_table(read),
            "scores": scores(results),
            "gallery": gallery(chosen, dataset, captioners, results, captions, figures),
            "gaze": gaze(
                {
                    name: [said[p.id] for p in sampled]
                    for name, said in captions.items()
                    if captioners[name].grid is not None
                }
            ),
            "settings": settings(read),
            "words": words(read, dataset),
            "origin": origin(read, dataset),
        }
        return write_page(content, figures, out)


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read what runs left; each gets the shortest name that no other has.

    Raises:
        ConfigError: one is no run, is given twice, or cannot be read.
    """
    places = [Path(folder).resolve() for folder in folders]
    if not places:
        raise ConfigError("A report is of one run or more. Give the folder of a run.")
    twice = [str(p) for p, n in Counter(places).items() if n > 1]
    if twice:
        raise ConfigError(f"{twice[0]} is given twice. Give each run once.")
    most = max(len(place.parts) for place in places)
    names = next(
        names
        for depth in range(1, most + 1)
        if len(set(names := ["/".join(p.parts[-depth:]) for p in places])) == len(places)
    )
    return [_read_run(name, place) for name, place in zip(names, places, strict=True)]


def _read_run(name: str, folder: Path) -> Run:
    described = _read_json(folder / "settings.json")
    if described is None:
        raise ConfigError(
            f"{folder} is no run: it has no settings.json. Give the folder that `regard train` "
            "was told to write with --out."
        )
    return Run(
        name,
        folder,
        _flat(described.get("settings", {})),
        described.get("data", {}),
        _flat(_read_json(folder / "machine.json") or {}),
        _read_log(folder / "log" / "steps.csv", {"iteration", "loss"}),
        _read_log(folder / "log" / "epochs.csv", {"epoch"}),
    )


def _read_log(file: Path, needed: set[str]) -> list[dict[str, float]]:
    """The lines that have what is needed."""
    try:
        return [row for row in read_log(file) if needed <= row.keys()]
    except ValueError as error:
        raise ConfigError(
            f"{file} holds something that is no number: {error}. Copy the file again."
        ) from error


def _read_json(file: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}. Copy it again.") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{file} holds no table of values. Copy it again.")
    return found


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted name."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        flat |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def choose_photos(
    results: Mapping[str, Mapping[str, Any]], count: int
) -> list[tuple[str, list[str]]]:
    """The ids of the best photos, those in the middle and the worst, by CIDEr.

    Where there are several runs, by the mean of theirs: all of them show the same photos.

    Args:
        results: of each run, as :meth:`Evaluation.as_dict` gives them.
        count: of photos, over the three kinds.
    """
    values: dict[str, list[float]] = defaultdict(list)
    for result in results.values():
        for photo in result["photos"]:
            values[photo["id"]].append(photo["scores"]["CIDEr"])
    ranked = sorted(values, key=lambda id: (-float(np.mean(values[id])), id))
    if len(ranked) <= count:
        return [("All, from best to worst", ranked)] if ranked else []
    best, worst = math.ceil(count / 3), count // 3
    middle = count - best - worst
    first = min(max(best, (len(ranked) - middle) // 2), len(ranked) - worst - middle)
    kinds = [
        ("Best", ranked[:best]),
        ("Middle", ranked[first : first + middle]),
        ("Worst", ranked[len(ranked) - worst :]),
    ]
    return [(kind, ids) for kind, ids in kinds if ids]


def _spread(photos: Sequence[Photo], most: int) -> list[Photo]:
    """At most so many of them, evenly spread."""
    count = min(most, len(photos))
    return [photos[i * len(photos) // count] for i in range(count)]


def _evaluate(
    captioner: AnyCaptioner,
    dataset: Dataset,
    split: str,
    decoding: Decoding,
    device: str,
    cache: Path | None,
) -> Evaluation:
    if isinstance(captioner, FinishedCaptioner):
        return evaluate_finished(dataset, split, captioner.model, decoding, device=device)
    assert isinstance(captioner, Captioner)
    return evaluate_model(dataset, split, captioner.model, decoding, device=device, cache=cache)


def _caption(
    captioner: AnyCaptioner, photos: Sequence[Photo], decoding: Decoding, cache: Path | None
) -> dict[str, Caption]:
    """The captions with their maps; of our own from the same cached regions as the scores."""
    if not isinstance(captioner, Captioner):
        said = {}
        for photo, made in zip(
            photos, captioner.captions([p.path for p in photos], decoding), strict=True
        ):
            if isinstance(made, PhotoError):
                raise made
            said[photo.id] = made.best
        return said
    store = build_features([p.path for p in photos], captioner.model.encoder, cache)
    captions: dict[str, Caption] = {}
    for start in range(0, len(photos), 50):
        some = photos[start : start + 50]
        regions = torch.from_numpy(store.read([p.path for p in some]))  # (B, L, D)
        found = captioner.describe(regions, decoding)
        captions |= {p.id: c[0] for p, c in zip(some, found, strict=True)}
    return captions


def overview(run: Run, result: Mapping[str, Any] | None) -> dict[str, Any]:
    """The run in a few numbers, and what of it is missing."""
    missing = [
        sentence
        for there, sentence in (
            (run.steps, "No iteration is logged yet: there are no curves."),
            (run.epochs, "No epoch is finished yet: there are no losses of epochs."),
            (run.has_model, "There is no model yet: scores, captions and gaze need one."),
        )
        if not there
    ]
    facts = []
    if result is not None:
        facts += [(name, f"{result['scores'][name]:.3f}") for name in ("CIDEr", "BLEU-4")]
    if run.best is not None:
        facts.append(("best epoch", f"{run.best['epoch']:.0f}"))
        facts.append(("validation loss there", f"{run.best.get('val_loss', math.nan):.2f}"))
    if run.epochs:
        facts.append(("training", _duration(sum(e.get("seconds", 0.0) for e in run.epochs))))
    if run.steps:
        facts.append(("iterations", f"{run.steps[-1]['iteration'] + 1:,.0f}"))
    return {"name": run.name, "encoder": run.settings.get("encoder.id", ""), "missing": missing,
            "facts": facts}  # fmt: skip


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def training(runs: Sequence[Run], figures: Path) -> dict[str, Any]:
    """The curves, each in a sentence too, and the table of epochs."""
    drawn = curve_charts({run.name: (run.steps, run.epochs) for run in runs}, figures)
    said = {
        "batch-loss": [_course(run, run.steps, "loss", "loss of a batch") for run in runs],
        "epoch-loss": [_course(run, run.epochs, "val_loss", "validation loss") for run in runs],
        "cider": [_course(run, run.epochs, "CIDEr", "CIDEr") for run in runs],
        "learning-rate": [_course(run, run.steps, "learning_rate", "rate") for run in runs],
        "reward": [_course(run, run.steps, "reward", "reward") for run in runs],
        "repeated": [_course(run, run.epochs, "repeated", "share repeated") for run in runs],
        "cut-off": [_course(run, run.epochs, "cut_off", "share cut off") for run in runs],
        "words-used": [_course(run, run.epochs, "words_used", "words") for run in runs],
    }
    rewarded = any("reward" in epoch for run in runs for epoch in run.epochs)
    columns = [c for c in EPOCH_COLUMNS if rewarded or c.field not in OF_A_REWARD]
    tables = [
        {
            "name": run.name,
            "rows": [
                {
                    "best": epoch is run.best,
                    "cells": [_number(epoch.get(c.field), c.digits) for c in columns],
                }
                for epoch in run.epochs
            ],
        }
        for run in runs
        if run.epochs
    ]
    heads = [c.head for c in columns]
    charts = [
        {"name": name, "svg": svg, "said": f"{name.replace('-', ' ')}. {' '.join(said[name])}"}
        for name, svg in drawn.items()
    ]
    return {"charts": charts, "heads": heads, "tables": tables}


def _course(run: Run, rows: Sequence[Mapping[str, float]], field: str, what: str) -> str:
    values = [row[field] for row in rows if field in row]
    if not values:
        return f"{run.name}: nothing yet."
    return f"{run.name}: {what} from {values[0]:.3g} to {values[-1]:.3g}, {len(values)} values."


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def loss_table(runs: Sequence[Run]) -> dict[str, Any]:
    """The losses by iteration beside those of the original report."""
    rows = [
        {
            "iteration": f"{iteration:,}",
            "original": f"{original:.2f}",
            "values": [_number(loss_at(run.steps, iteration), 2) for run in runs],
        }
        for iteration, original in ORIGINAL.items()
    ]
    return {"rows": rows, "around": AROUND, "batches": [_batch(run) for run in runs]}


def loss_at(steps: Sequence[Mapping[str, float]], iteration: int) -> float | None:
    """The mean loss of the batches around an iteration; none beyond the run's end.

    Of iteration 0 the first batch alone: the loss falls too fast there for a mean.
    """
    around = AROUND if iteration else 0
    near = [s for s in steps if abs(s["iteration"] - iteration) <= around]
    if not any(s["iteration"] == iteration for s in near):
        return None
    return float(np.mean([s["loss"] for s in near]))


def _batch(run: Run) -> str:
    """What an iteration of the run is."""
    size = run.settings.get("train.batch_size")
    if run.settings.get("train.grouping") == "photo":
        most = run.settings.get("train.captions_per_photo")
        return f"{size} photos with up to {most} captions each"
    return f"{size} captions"


def scores(results: Mapping[str, Mapping[str, Any]]) -> dict[str, Any] | None:
    """The scores of each run beside one person's, the best marked; diversity and faults."""
    if not results:
        return None
    first = next(iter(results.values()))
    human, human_ways = (
        _first(result.get(key) for result in results.values())
        for key in ("human", "human_diagnosis")
    )
    rows = []
    for name in first["scores"]:
        values = [r["scores"].get(name) for r in results.values()]
        shown = [_number(v, 3) for v in values]
        best = max((s for s, v in zip(shown, values, strict=True) if v is not None), default="")
        rows.append(
            {
                "name": name,
                "values": [(s, len(results) > 1 and s == best) for s in shown],
                "human": _number(human.get(name), 3),
            }
        )
    ways = [r.get("diagnosis", {}) for r in results.values()]
    diagnosis = [
        {
            "name": name,
            "values": [_number(way.get(name), digits) for way in ways],
            "human": _number(human_ways.get(name), digits),
        }
        for name in dict.fromkeys(name for way in ways for name in way)
        for digits in [_digits([way[name] for way in (*ways, human_ways) if name in way])]
    ]
    settings = first["settings"]
    engines: dict[str, list[str]] = defaultdict(list)
    for name, engine in first.get("engines", {}).items():
        engines[engine].append(name)
    return {
        "names": list(results),
        "rows": rows,
        "human": bool(human),
        "diagnosis": diagnosis,
        "left_out": first.get("left_out", []),
        "settings": settings,
        "decoding": _decoding(settings.get("decoding", {})),
        "engines": list(engines.items()),
    }


def _first(found: Iterable[Mapping[str, float] | None]) -> Mapping[str, float]:
    """The first that is there and not empty: what people score is the same beside every run."""
    return next((values for values in found if values), {})


def _digits(values: Sequence[float]) -> int:
    """Decimals that suit shares up to 1, lengths and counts, so that a row lines up."""
    most = max(map(abs, values))
    if most <= 1:
        return 3
    return 0 if most >= 100 or all(float(value).is_integer() for value in values) else 1


def _decoding(decoding: Mapping[str, Any]) -> str:
    """How captions were chosen: the beam, and what is not as usual."""
    usual = asdict(Decoding())
    return ", ".join(
        f"{name.replace('_', ' ')} {_shown(value)}"
        for name, value in decoding.items()
        if name == "beam" or value != usual.get(name)
    )


def gallery(
    chosen: Sequence[tuple[str, Sequence[str]]],
    dataset: Dataset,
    captioners: Mapping[str, AnyCaptioner],
    results: Mapping[str, Mapping[str, Any]],
    captions: Mapping[str, Captions],
    figures: Path,
) -> list[dict[str, Any]]:
    """The chosen photos with what was said of them, and the gaze of each word where it has one.

    Figures of the gaze are drawn as ``gaze-KIND-NUMBER[-RUN].png`` and ``.svg``.
    """
    photos = {photo.id: photo for photo in dataset.photos}
    judged = {
        name: {p["id"]: p["scores"]["CIDEr"] for p in r["photos"]} for name, r in results.items()
    }
    groups = []
    for kind, ids in chosen:
        cards = []
        for number, id in enumerate(ids, 1):
            image = open_photo(photos[id].path)
            said = []
            for place, (name, captioner) in enumerate(captioners.items(), 1):
                caption = captions[name][id]
                seen, grid = captioner.placement(image.size), captioner.grid
                figure = f"gaze-{kind.partition(',')[0].lower()}-{number}"
                figure += f"-{place}" if len(captioners) > 1 else ""
                for ending in ("png", "svg") if grid is not None else ():
                    gaze_figure(
                        image, caption.words, caption.maps, seen, figures / f"{figure}.{ending}",
                        caption=caption.text,
                    )  # fmt: skip
                said.append(
                    {
                        "run": name,
                        "score": f"{judged[name][id]:.2f}",
                        "figure": figure if grid is not None else None,
                        "seen": " ".join(
                            f"{edge / side:.5f}"
                            for edge, side in zip(seen, image.size * 2, strict=True)
                        ),
                        "grid": " ".join(map(str, grid or ())),
                        "words": _looks(caption),
                        "cut": caption.cut,
                    }
                )
            cards.append(
                {
                    "id": id,
                    "photo": embedded_photo(image),
                    "width": image.width,
                    "height": image.height,
                    "said": said,
                    "references": photos[id].captions,
                }
            )
        groups.append({"kind": kind, "cards": cards})
    return groups


def _looks(caption: Caption) -> list[dict[str, str]]:
    """Each word with its probability and its map, in hundred-thousandths row by row."""
    regions = caption.maps[0].size if len(caption.maps) else 1
    return [
        {
            "word": word,
            "probability": f"{math.exp(log_probability):.2f}",
            "gaze": " ".join(str(round(float(w) * 1e5)) for w in weights.reshape(-1)),
            "entropy": f"{nats:.2f}",
            "share": _share(nats, regions),
        }
        for word, log_probability, weights, nats in zip(
            caption.words, caption.log_probabilities, caption.maps, entropy(caption.maps),
            strict=True,
        )
    ]  # fmt: skip


def _share(nats: float, regions: int) -> str:
    return f"{nats / math.log(regions):.0%}" if regions > 1 else "–"


def entropy(maps: np.ndarray) -> np.ndarray:
    """The entropy of each map in nats, ``(T,)``, from 0 (one region) to log(H W) (all alike).

    Args:
        maps: ``(T, H, W)``; each sums to 1.
    """
    weights = maps.reshape(len(maps), -1).astype(np.float64)
    found: np.ndarray = -(weights * np.log(np.maximum(weights, 1e-300))).sum(axis=1)  # (T,)
    return found.clip(0.0)


def gaze(said: Mapping[str, Sequence[Caption]], *, listed: int = 8) -> list[dict[str, Any]]:
    """For each run how spread its maps are, and which words look most and least firmly."""
    found = []
    for name, captions in said.items():
        by_word: dict[str, list[float]] = defaultdict(list)
        for caption in captions:
            for word, nats in zip(caption.words, entropy(caption.maps), strict=True):
                by_word[word].append(float(nats))
        everything = [nats for values in by_word.values() for nats in values]
        if not everything:
            continue
        regions = max(c.maps[0].size for c in captions if len(c.maps))
        mean = float(np.mean(everything))
        least = min(OFTEN, max(map(len, by_word.values())))
        ranked = sorted(
            (float(np.mean(values)), word, len(values))
            for word, values in by_word.items()
            if len(values) >= least
        )
        half = min(listed, (len(ranked) + 1) // 2)
        rows = [
            {"word": w, "count": n, "entropy": f"{e:.2f}", "share": _share(e, regions)}
            for e, w, n in ranked
        ]
        found.append(
            {
                "run": name,
                "photos": len(captions),
                "words": f"{len(everything):,}",
                "entropy": f"{mean:.2f}",
                "greatest": f"{math.log(regions):.2f}",
                "share": _share(mean, regions),
                "regions": regions,
                "covered": f"{math.exp(mean):.0f}",
                "flat": regions > 1 and mean / math.log(regions) > FLAT,
                "limit": f"{FLAT:.0%}",
                "limit_covered": f"{regions**FLAT:.0f}",
                "least": least,
                "focused": rows[:half],
                "spread": rows[::-1][: min(half, len(rows) - half)],
            }
        )
    return found


def settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Every setting of each run with its sentence; which are not the nearest preset's."""
    sentences = {name: text.rpartition(" (default")[0] for name, text in describe_fields()}
    presets = {name: _preset(name) for name in PRESETS}
    nearest = {}
    for run in runs:
        changed = {
            name: {k for k, v in run.settings.items() if v != values.get(k)}
            for name, values in presets.items()
        }
        preset = min(changed, key=lambda name: len(changed[name]))
        nearest[run.name] = (preset, changed[preset])
    rows = []
    for name in dict.fromkeys([*sentences, *(key for run in runs for key in run.settings)]):
        values = [_shown(run.settings[name]) if name in run.settings else "–" for run in runs]
        section, _, short = name.rpartition(".")
        rows.append(
            {
                "section": section,
                "name": short,
                "sentence": sentences.get(name, ""),
                "values": [
                    (value, name in nearest[run.name][1])
                    for run, value in zip(runs, values, strict=True)
                ],
                "differ": len(set(values)) > 1,
            }
        )
    presets_of = [
        {"run": run.name, "preset": nearest[run.name][0], "changed": len(nearest[run.name][1])}
        for run in runs
    ]
    return {"rows": rows, "presets": presets_of}


def _preset(name: str) -> dict[str, Any]:
    """The settings of a preset as a run records them."""
    return _flat(with_embedding_width(make_config(preset=name), None).model_dump())


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)


def words(runs: Sequence[Run], dataset: Dataset) -> list[dict[str, Any]]:
    """The vocabulary of each run that has a model, with how often training captions say a word.

    Those of finished captioners were not made of the captions, and are not listed.
    """
    trained = [run for run in runs if run.has_model and "captioner.id" not in run.settings]
    if not trained:
        return []
    counts = Counter(
        word
        for photo in dataset.photos
        if photo.split == "train"
        for caption in photo.captions
        for word in tokenise(caption)
    )
    found = []
    for run in trained:
        setting = run.settings.get("text.vocabulary", "words:1")
        vocabulary = read_vocabulary(run.folder / "model", setting)
        known = sum(counts[word] for word in vocabulary.words)
        ordered = sorted(counts, key=lambda word: (-counts[word], word))
        frequent = vocabulary.words if vocabulary.closed else ordered
        found.append(
            {
                "run": run.name,
                "closed": vocabulary.closed,
                "size": f"{len(vocabulary.words):,}",
                "unknown": f"{1 - known / counts.total():.2%}" if counts else "–",
                "frequent": [(w, f"{counts[w]:,}") for w in frequent[:30]],
                "all": vocabulary.words,
            }
        )
    return found


def origin(runs: Sequence[Run], dataset: Dataset) -> dict[str, Any]:
    """The data, the machine and the versions."""
    splits = dict.fromkeys(photo.split for photo in dataset.photos)
    rows = [
        {
            "split": split or "in no split",
            "photos": f"{sum(p.split == split for p in dataset.photos):,}",
            "captions": f"{sum(len(p.captions) for p in dataset.photos if p.split == split):,}",
        }
        for split in splits
    ]
    now = {"layout": dataset.layout, "splits": dataset.split_source, "photos": len(dataset.photos)}
    others = [
        run.name for run in runs if any(run.data.get(key, now[key]) != now[key] for key in now)
    ]
    names = {
        "path": "trained on",
        "layout": "layout",
        "splits": "splits",
        "photos": "photos",
        "hash": "hash, its start",
    }
    facts = [dict(run.data) for run in runs]
    for values in facts:
        values["hash"] = str(values.get("hash", "–"))[:16]
    data = [
        {"name": shown, "values": [_shown(values.get(key, "–")) for values in facts]}
        for key, shown in names.items()
    ]
    keys = dict.fromkeys(key for run in runs for key in run.machine)
    machine = [
        {
            "name": key.rpartition(".")[2].replace("_gib", ", GiB"),
            "values": [_shown(run.machine.get(key, "–")) for run in runs],
        }
        for key in keys
    ]
    return {
        "name": dataset.name,
        "layout": dataset.layout,
        "splits": dataset.split_source,
        "rows": rows,
        "data": data,
        "others": others,
        "machine": machine,
        "unrecorded": [run.name for run in runs if not run.machine],
    }
