"""`regard caption --engine ray`: each worker captions units with a model that it loaded once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from regard.apps.cluster.shards import ShardFolder
from regard.apps.cluster.units import Unit, find_units, photos_of
from regard.apps.cluster.workers import Workers, cluster, run
from regard.apps.names import Named
from regard.apps.photos import Listener, Tally, captioned_by, reordered
from regard.apps.records import full_record
from regard.captioner import AnyCaptioner, PhotoCaption, PhotoLike, load
from regard.describe import Decoding
from regard.errors import ConfigError, PhotoError
from regard.models.clip import Clip, load_clip


@dataclass(frozen=True, slots=True)
class Speaking:
    """Who captions and how; plain values that any machine of the cluster understands."""

    models: tuple[str, ...]
    """As for :func:`regard.captioner.load`; each machine has to reach them by these names."""
    decoding: Decoding
    """How captions are chosen."""
    alt: bool = False
    """Whether captions become alternative texts."""
    clip: str | None = None
    """What orders the candidates of a photo instead of their score."""
    encoder: str | None = None
    """Another place of the encoder's weights."""
    revision: str | None = None
    """Of a hub id."""
    device: str = "auto"
    """Of each worker."""
    views: int = 1
    """How many are seen of a photo."""

    def load(self, device: str) -> tuple[AnyCaptioner, Clip | None]:
        """The captioner, and the CLIP if there is one."""
        captioner = load(
            self.models, encoder=self.encoder, revision=self.revision, device=device,
            views=self.views,
        )  # fmt: skip
        if self.clip is None:
            return captioner, None
        return captioner, load_clip(self.clip, device=device, option="--rerank")


class Outcome(NamedTuple):
    """What came of a unit."""

    captioned: int
    """Photos."""
    failures: list[tuple[str, str, str]]
    """Path, message and reason of each photo without a caption."""
    failed_before: int = 0
    """Photos without one in a shard that was there: another worker wrote it before it died."""


def caption_on_cluster(
    speaking: Speaking,
    given: Sequence[str],
    lists: Sequence[Path],
    out: str,
    listener: Listener,
    *,
    workers: Workers,
    unit_size: int = 1024,
    dry_run: bool = False,
) -> Tally:
    """Caption photos on a Ray cluster; what cannot be one is recorded with the reason.

    Args:
        speaking: who captions and how.
        given: photos, folders, globs, URLs, tar and Parquet files
            (:func:`regard.apps.cluster.units.find_units`).
        lists: files of such names.
        out: folder of the shards, a path or a URL that every machine of the cluster reaches.
        listener: is told what happens.
        workers: who does the work.
        unit_size: photos of a shard, about.
        dry_run: nothing is captioned or written, and no cluster is needed; the tally says what
            would be.

    Returns:
        What became of the photos, those of units that were done before among them.

    Raises:
        ConfigError: there is no photo, no such cluster, or ``out`` holds something else.
        ModelError: the captioner cannot be had.
        RegardError: something cannot be written, or workers died again and again. What was
            finished is kept.
    """
    folder = ShardFolder(out)
    captioner, clip = speaking.load("cpu")
    by = captioned_by(captioner, speaking.decoding, alt=speaking.alt, clip=clip)
    del captioner, clip
    units = list({u.id: u for u in find_units(given, lists, size=unit_size, by=by)}.values())
    asked = [*given, *map(str, lists)]
    if not units:
        raise ConfigError(
            f"There is no photo in {', '.join(asked)}. Give photos, folders or tars with photos in "
            "them, or lists of photos."
        )
    record = {"photos": asked, "by": by, "shards": len(units)}
    if not dry_run:
        folder.claim(record)
    done = folder.done()
    waiting = [unit for unit in units if unit.id not in done]
    total = _total(units)
    before = [done[unit.id] for unit in units if unit.id in done]
    tally = Tally(known=sum(one.captioned for one in before))
    if failed := sum(one.failed for one in before):
        tally.failed[_BEFORE] = failed
    listener.begin(total)
    try:
        if dry_run:
            tally.captioned = _total(waiting) or 0
            for photo in (photo for unit in waiting for photo in unit.photos):
                listener.would(photo.path)
        elif waiting:
            with cluster(workers) as count:
                options = {
                    "speaking": speaking, "by": by, "place": folder.place,
                    "expected": (_total(waiting) or _MANY) // count,
                }  # fmt: skip
                for outcome in run(CaptionWorker, options, waiting, workers, count):
                    _count(outcome, tally, listener)
    finally:
        listener.end(tally)
    if not dry_run:
        folder.keep({unit.id for unit in units})
        found = folder.done().values()
        folder.note(record | {
            "captioned": sum(one.captioned for one in found),
            "failed": sum(one.failed for one in found),
        })  # fmt: skip
    return tally


_MANY = 1_000_000
_BEFORE = "told before"
"""Why photos of a shard that is there have no caption; the shard itself says more."""


def _total(units: Sequence[Unit]) -> int | None:
    """How many photos; none where a tar is among them."""
    counts = [unit.count for unit in units]
    return None if None in counts else sum(count or 0 for count in counts)


def _count(outcome: Outcome, tally: Tally, listener: Listener) -> None:
    tally.captioned += outcome.captioned
    if outcome.failed_before:
        tally.failed[_BEFORE] += outcome.failed_before
    for path, message, reason in outcome.failures:
        tally.failed[reason] += 1
        listener.failed(path, PhotoError(message, reason))
    listener.going(tally)


class CaptionWorker:
    """A process of the cluster with its captioner.

    Args:
        speaking: who captions and how.
        by: as the records have it.
        place: of the shards.
        expected: photos that it will see, about: many are worth a preparation.
    """

    def __init__(self, speaking: Speaking, by: str, place: str, expected: int) -> None:
        self._speaking, self._by, self._expected = speaking, by, expected
        self._folder = ShardFolder(place)
        self._captioner, self._clip = speaking.load(speaking.device)

    def __call__(self, unit: Unit) -> Outcome:
        """Caption a unit and write its shard, unless that is there."""
        if done := self._folder.find(unit.id):
            return Outcome(done.captioned, [], done.failed)
        records = self._records(unit)
        done = self._folder.write(unit.id, records)
        failures = [(r["path"], r["error"], r["reason"]) for r in records if "error" in r]
        return Outcome(done.captioned, failures)

    def _records(self, unit: Unit) -> list[dict[str, Any]]:
        """The records of a unit's photos, in their order."""
        names: list[Named] = []
        failed: dict[int, PhotoError] = {}
        content: dict[int, bytes] = {}

        def opened() -> Iterator[PhotoLike]:
            for place, (name, source) in enumerate(photos_of(unit)):
                names.append(name)
                if isinstance(source, PhotoError):
                    failed[place] = source
                    continue
                if self._clip is not None and not isinstance(source, str):
                    content[place] = source.read()
                    source.seek(0)
                yield Path(source) if isinstance(source, str) else source

        decoding = self._speaking.decoding
        made = list(self._captioner.captions(opened(), decoding, expected=self._expected))
        waiting = iter(made)
        results = [failed.get(place) or next(waiting) for place in range(len(names))]
        return [
            full_record(
                name, self._ordered(name, result, content.get(place)), by=self._by,
                count=decoding.count, alt=self._speaking.alt,
            )
            for place, (name, result) in enumerate(zip(names, results, strict=True))
        ]  # fmt: skip

    def _ordered(
        self, name: Named, found: PhotoCaption | PhotoError, content: bytes | None
    ) -> PhotoCaption | PhotoError:
        if self._clip is None or isinstance(found, PhotoError):
            return found
        return reordered(self._clip, name.path if content is None else content, found)
