"""Captions of photos, of any number: records that outlive a kill, sidecars, pictures, a gallery.

Photos are named one at a time, captioned in batches that are read ahead, and recorded some at a
time. What is recorded is done: the next run with the same records goes on after it. What was not
recorded yet when a run was stopped is captioned again, and nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from regard.apps.alt_text import alt_text
from regard.apps.gallery import check_place, make_place, write_gallery
from regard.apps.hashes import Hashes, hash_of
from regard.apps.journal import Journal, Known, cannot_write, read_journal
from regard.apps.names import Named, Photos
from regard.apps.records import done_state, full_record, path_of, picture_key, state_of
from regard.apps.sidecars import Sidecar
from regard.apps.tables import check_ending, check_table, journal_of, write_table
from regard.captioner import AnyCaptioner, PhotoCaption
from regard.describe import Decoding
from regard.errors import ConfigError, ModelError, PhotoError
from regard.images import open_photo
from regard.models.clip import Clip
from regard.plots import gaze_figure
from regard.rerank import rerank

_AT_ONCE = 64
"""Records that are written together at most: a photo's waits for so many others."""
_SECONDS = 5.0
"""Records wait no longer than this."""
_LONGEST = 200
"""Bytes of a photo's name in that of its picture; a file's name has 255 at most."""


@dataclass(frozen=True, slots=True)
class Outputs:
    """What is left of a run.

    Raises:
        ConfigError: the file has an ending that no table has; or something needs records, and
            there is no file for them.
        MissingExtraError: it is Parquet, and pyarrow is not installed.
    """

    out: Path | None = None
    """File of the records: JSON lines, CSV or Parquet."""
    sidecars: tuple[Sidecar, ...] = ()
    """What is written beside each photo."""
    overwrite: bool = False
    """Whether sidecars that a person wrote or changed are replaced."""
    alt: bool = False
    """Whether captions become alternative texts."""
    gallery: Path | None = None
    """Folder of a page of all photos that have a record."""
    gaze: Path | None = None
    """Folder of a picture of each photo's gaze."""

    def __post_init__(self) -> None:
        if self.out is not None:
            check_ending(self.out)
        elif self.sidecars or self.gallery is not None:
            raise ConfigError(
                "There is no file for the records, by which a later run knows what was captioned "
                "and what a person wrote. Give one with --out, such as --out captions.jsonl"
            )

    @property
    def pictures(self) -> tuple[Path, ...]:
        """Folders of pictures that are no photos."""
        return tuple(folder for folder in (self.gallery, self.gaze) if folder is not None)

    def check(self) -> None:
        """Refuse to put something in the place of what is not a run's own, before any work.

        Raises:
            ConfigError: the file or the gallery's folder holds something else.
        """
        if self.out is not None:
            check_table(self.out)
        if self.gallery is not None:
            check_place(self.gallery)


@dataclass
class Tally:
    """What became of the photos."""

    captioned: int = 0
    known: int = 0
    """Captioned by an earlier run, and unchanged since."""
    failed: Counter[str] = field(default_factory=Counter)
    """By their reason."""
    left: int = 0
    """Sidecars that were left as they were: a person wrote them, or they can have no name."""

    @property
    def seen(self) -> int:
        """All photos."""
        return self.captioned + self.known + self.failed.total()


class Listener(Protocol):
    """Who is told what happens."""

    def begin(self, total: int | None) -> None:
        """The run begins; ``total`` photos where that is known."""

    def captioned(self, path: str, found: PhotoCaption, alt: str | None) -> None:
        """A photo has a caption, and perhaps an alternative text."""

    def would(self, path: str) -> None:
        """A photo would be captioned."""

    def failed(self, path: str, error: PhotoError) -> None:
        """A photo has none."""

    def left(self, file: Path, why: str) -> None:
        """A sidecar is left as it is."""

    def going(self, tally: Tally) -> None:
        """So far; called after every photo."""

    def end(self, tally: Tally) -> None:
        """The run ends, or was stopped."""


def caption_photos(
    captioner: AnyCaptioner,
    photos: Photos,
    decoding: Decoding,
    outputs: Outputs,
    listener: Listener,
    *,
    clip: Clip | None = None,
    dry_run: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Tally:
    """Caption photos; what cannot be one is recorded with the reason, and stops nothing.

    Args:
        captioner: a loaded one.
        photos: which.
        decoding: how captions are chosen.
        outputs: what is left of it.
        listener: is told what happens.
        clip: what orders the candidates of a photo instead of their score.
        dry_run: nothing is captioned or written; the tally says how many would be captioned, and
            how many are known to be no photo without being opened.
        clock: seconds.

    Returns:
        What became of them.

    Raises:
        ConfigError: there is no photo; or ``outputs.out`` holds something else than records, or
            is being written by another process; or the gallery's folder holds something else.
        ModelError: pictures of the gaze are asked of a captioner that has none.
        RegardError: something cannot be written. What was recorded is kept.
    """
    if outputs.gaze is not None and captioner.no_gaze is not None:
        raise ModelError(captioner.no_gaze)
    outputs.check()
    total = sum(1 for _ in photos) if photos.countable else None
    if total == 0:
        raise ConfigError(
            f"There is no photo in {', '.join([*photos.given, *map(str, photos.lists)])}. Give "
            "photos, folders with photos in them, or lists of photos."
        )
    if outputs.gallery is not None and not dry_run:
        make_place(outputs.gallery)
    tally = Tally()
    with ExitStack() as stack:
        journal = None
        if outputs.out is not None and not (dry_run and not journal_of(outputs.out).exists()):
            journal = Journal(journal_of(outputs.out), read_only=dry_run)
            stack.callback(journal.close)
        run = _Run(captioner, decoding, outputs, listener, clip, journal, tally, dry_run, clock)
        listener.begin(total)
        try:
            if dry_run:
                for photo in run.to_do(photos):
                    tally.captioned += 1
                    listener.would(photo.path)
            else:
                run.caption(photos, total)
        finally:
            listener.end(tally)
    if outputs.out is not None and not dry_run:
        if outputs.out != journal_of(outputs.out):
            write_table(journal_of(outputs.out), outputs.out)
        if outputs.gallery is not None:
            write_gallery(outputs.gallery, read_journal(journal_of(outputs.out)))
    return tally


class _Run:
    """One run's photos on their way: named, waiting for a caption, waiting to be recorded."""

    def __init__(
        self,
        captioner: AnyCaptioner,
        decoding: Decoding,
        outputs: Outputs,
        listener: Listener,
        clip: Clip | None,
        journal: Journal | None,
        tally: Tally,
        dry_run: bool,
        clock: Callable[[], float],
    ) -> None:
        self._captioner, self._decoding, self._outputs = captioner, decoding, outputs
        self._listener, self._clip, self._journal = listener, clip, journal
        self._tally, self._dry_run, self._clock = tally, dry_run, clock
        self._waiting: deque[Named] = deque()
        self._ready: list[tuple[dict[str, Any], Known | None]] = []
        self._recorded = clock()
        self._given: frozenset[str] = frozenset()
        self._pictures = Hashes()

    @cached_property
    def _by(self) -> str:
        """Who captions and how: where there are records, for to know it may take a second."""
        return captioned_by(self._captioner, self._decoding, alt=self._outputs.alt, clip=self._clip)

    def caption(self, photos: Photos, total: int | None) -> None:
        """Caption and record all of them."""
        self._given = frozenset(photos.given)
        paths = (Path(photo.path) for photo in self._queued(photos))
        expected = 1 if photos.single else total
        try:
            for found in self._captioner.captions(paths, self._decoding, expected=expected):
                self._found(self._waiting.popleft(), found)
        finally:  # what was captioned is kept, whatever stopped the rest
            self._record()

    def to_do(self, photos: Photos) -> Iterator[Named]:
        """Those that a captioner has to see; the others are settled on the way."""
        for photo in photos:
            if photo.problem is not None:
                self._found(photo, photo.problem)
                continue
            known = None if self._journal is None else self._journal.find(photo.key)
            if (
                known is not None
                and photo.size >= 0
                and known.state == done_state(photo.size, photo.modified, self._by)
            ):
                self._known(known)
            else:
                yield photo

    def _queued(self, photos: Photos) -> Iterator[Named]:
        for photo in self.to_do(photos):
            self._waiting.append(photo)
            yield photo

    def _known(self, known: Known) -> None:
        """A photo that an earlier run captioned: its sidecars may be missing still."""
        self._tally.known += 1
        if self._outputs.sidecars and self._journal is not None and not self._dry_run:
            self._put_beside(self._journal.read(known))
        self._listener.going(self._tally)

    def _found(self, photo: Named, found: PhotoCaption | PhotoError) -> None:
        if self._clip is not None and isinstance(found, PhotoCaption):
            found = reordered(self._clip, photo.path, found)
        if isinstance(found, PhotoError):
            self._tally.failed[found.reason] += 1
            self._listener.failed(photo.path, found)
        else:
            self._tally.captioned += 1
            alt = alt_text(found.text) if self._outputs.alt else None
            self._listener.captioned(photo.path, found, alt)
            if self._outputs.gaze is not None:
                self._draw(photo.path, found, self._outputs.gaze)
        if self._journal is not None and not self._dry_run:
            made = full_record(
                photo, found, by=self._by, count=self._decoding.count, alt=self._outputs.alt,
                gaze=self._outputs.gallery is not None,
            )  # fmt: skip
            known = self._journal.find(photo.key)
            if known is None or known.state != state_of(made) or "error" not in made:
                self._ready.append((made, known))
        late = self._clock() - self._recorded > _SECONDS
        if self._ready and (late or len(self._ready) >= _AT_ONCE):
            self._record()
        self._listener.going(self._tally)

    def _record(self) -> None:
        """Write what is ready: sidecars of old records off, records on, sidecars of them on."""
        if self._journal is None or not self._ready:
            return
        ready, self._ready = self._ready, []
        for _, known in ready:
            if known is not None and self._outputs.sidecars:
                old = self._journal.read(known)
                if "error" not in old:
                    self._beside(Sidecar.withdraw, old)
        self._journal.add([made for made, _ in ready])
        for made, _ in ready:
            if "error" not in made:
                self._put_beside(made)
        self._recorded = self._clock()

    def _put_beside(self, made: dict[str, Any]) -> None:
        def put(sidecar: Sidecar, made: dict[str, Any]) -> None:
            if (why := sidecar.put(made, overwrite=self._outputs.overwrite)) is not None:
                self._tally.left += 1
                self._listener.left(sidecar.file(path_of(made)), why)

        self._beside(put, made)

    def _beside(self, do: Callable[[Sidecar, dict[str, Any]], None], made: dict[str, Any]) -> None:
        for sidecar in self._outputs.sidecars:
            try:
                do(sidecar, made)
            except OSError as error:
                raise cannot_write(sidecar.file(path_of(made)), error) from error

    def _draw(self, path: str, found: PhotoCaption, folder: Path) -> None:
        """Draw where each word looked, over the upright photo.

        A photo that was found has a picture of its own name in every run, whatever was captioned
        before it; one that is named itself has that of its file, unless it is taken.
        """
        name = Path(path).name
        raw = os.fsencode(name)
        fits = path in self._given and len(raw) <= _LONGEST
        if not fits or not self._pictures.add(hash_of(name)):
            shortened = raw[:_LONGEST].decode("utf-8", "ignore")
            name = f"{shortened}-{picture_key(path, 0, 0)}"
        file = folder / f"{name}.gaze.png"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with suppress(PhotoError):  # it vanished meanwhile
                draw_gaze(path, found, file)
        except OSError as error:
            raise cannot_write(file, error) from error


def captioned_by(
    captioner: AnyCaptioner, decoding: Decoding, *, alt: bool, clip: Clip | None
) -> str:
    """Who captions and how: what a record goes out of date with."""
    settings = asdict(decoding) | {"alt": alt, "clip": clip and clip.weights_hash}
    return f"{captioner.identity[:16]}-{hash_of(json.dumps(settings)):016x}"


def reordered(clip: Clip, photo: str | bytes, found: PhotoCaption) -> PhotoCaption | PhotoError:
    """The candidates of a photo as a CLIP orders them; an error where it vanished meanwhile."""
    try:
        best, *others = rerank(clip, [photo], [(found.best, *found.others)])[0]
    except PhotoError as error:
        return error
    return replace(found, best=best, others=tuple(others))


def draw_gaze(path: str | Path, found: PhotoCaption, file: Path) -> None:
    """Draw where each word looked, over the upright photo."""
    gaze_figure(
        open_photo(path), found.words, found.maps, found.placement, file, caption=found.text
    )
