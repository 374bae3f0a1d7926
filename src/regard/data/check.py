"""What a data set holds, and what is wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from regard.data.dataset import Dataset
from regard.data.layouts import Problem, layouts_in

SHOWN = 100
"""Rows of each kind of problem that are shown; :meth:`Report.as_dict` has all."""

KINDS = (
    "missing photo",
    "duplicate id",
    "empty caption",
    "no caption",
    "bad row",
    "repaired row",
    "split",
)
"""Every kind of problem, in the order of the report."""


@dataclass(frozen=True)
class Lengths:
    """Words of a caption: the shortest, the mean, the median, 95 of 100, the longest."""

    shortest: int
    mean: float
    median: float
    most: float
    longest: int


@dataclass(frozen=True)
class Report:
    """What :func:`check` found.

    Attributes:
        data: name of the data set.
        layout: its layout.
        also: other layouts that its folder holds.
        split_source: where the splits come from.
        photos: by split, ``all`` too.
        captions: by split, ``all`` too.
        captions_a_photo: fewest and most.
        vocabulary: different words, of the training captions if there are any.
        once: those of them seen once.
        lengths: of all captions.
        problems: every row that was repaired or left out.
    """

    data: str
    layout: str
    also: tuple[str, ...]
    split_source: str
    photos: Mapping[str, int]
    captions: Mapping[str, int]
    captions_a_photo: tuple[int, int]
    vocabulary: int
    once: int
    lengths: Lengths
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """Whether every row is good."""
        return not self.problems

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return asdict(self) | {"counts": dict(_counts(self.problems))}


def check(dataset: Dataset, tokenise: Callable[[str], Sequence[str]]) -> Report:
    """Count what a data set holds.

    Args:
        dataset: read with ``allow_missing``, so that missing photos are counted.
        tokenise: a caption to its words.
    """
    problems = list(dataset.problems)
    photos, captions = Counter[str](), Counter[str]()
    words, trained = Counter[str](), Counter[str]()
    lengths = []
    for photo in dataset.photos:
        split = photo.split or "in no split"
        photos[split] += 1
        captions[split] += len(photo.captions)
        for caption in photo.captions:
            tokens = tokenise(caption)
            if not tokens:
                problems.append(Problem("empty caption", photo.id, f"{caption!r} holds no word"))
            lengths.append(len(tokens))
            words.update(tokens)
            if split == "train":
                trained.update(tokens)
    known = trained or words
    order = ["train", "val", "test", "in no split"]
    per_photo = [len(photo.captions) for photo in dataset.photos]
    return Report(
        data=dataset.name,
        layout=dataset.layout,
        also=tuple(name for name in layouts_in(dataset.root) if name != dataset.layout),
        split_source=dataset.split_source,
        photos={s: photos[s] for s in order if photos[s]} | {"all": photos.total()},
        captions={s: captions[s] for s in order if photos[s]} | {"all": captions.total()},
        captions_a_photo=(min(per_photo), max(per_photo)),
        vocabulary=len(known),
        once=sum(n == 1 for n in known.values()),
        lengths=Lengths(
            shortest=min(lengths),
            mean=float(np.mean(lengths)),
            median=float(np.median(lengths)),
            most=float(np.percentile(lengths, 95)),
            longest=max(lengths),
        ),
        problems=tuple(problems),
    )


def render(report: Report) -> Group:
    """The report for a terminal."""
    counts = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 3, 0, 0))
    counts.add_column("split")
    counts.add_column("photos", justify="right")
    counts.add_column("captions", justify="right")
    for split, number in report.photos.items():
        counts.add_row(split, f"{number:,}", f"{report.captions[split]:,}")
    fewest, most = report.captions_a_photo
    lengths = report.lengths
    also = f" (also there: {', '.join(report.also)}; --format takes one)" if report.also else ""
    kinds = _counts(report.problems)
    facts: list[str | Table] = [
        f"{report.data}: layout {report.layout}{also}; splits: {report.split_source}",
        counts,
        f"captions a photo   {fewest}" + (f" to {most}" if most > fewest else ""),
        f"vocabulary         {report.vocabulary:,} words, {report.once:,} of them seen once",
        f"words a caption    {lengths.shortest} to {lengths.longest}, mean {lengths.mean:.1f}, "
        f"median {lengths.median:.0f}, 95 of 100 at most {lengths.most:.0f}",
        f"missing photos     {kinds['missing photo']:,}",
        f"duplicate ids      {kinds['duplicate id']:,}",
        f"empty captions     {kinds['empty caption']:,}",
        *(f"{name:<18} {kinds[name]:,}" for name in KINDS[3:] if kinds[name]),
    ]
    for kind in KINDS:
        rows = [p for p in report.problems if p.kind == kind]
        if rows:
            facts.append(f"\n{kind}:")
            facts += [f"  {p.where}: {p.detail}" for p in rows[:SHOWN]]
            if len(rows) > SHOWN:
                facts.append(f"  and {len(rows) - SHOWN:,} more; --json FILE lists all of them")
    facts.append(
        "\nEvery row is good." if report.ok else f"\n{len(report.problems):,} rows to look at."
    )
    # What the data set says is text, never markup.
    return Group(*(Text(f) if isinstance(f, str) else f for f in facts))


def _counts(problems: Sequence[Problem]) -> Counter[str]:
    return Counter(problem.kind for problem in problems)
