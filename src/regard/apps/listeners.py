"""What is told of a run over photos: to a person, to a log, or nothing but what went wrong."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import typer

from regard.apps.bars import counting_bar
from regard.apps.records import name_of, shown
from regard.errors import ConfigError

if TYPE_CHECKING:
    from regard.apps.photos import Tally
    from regard.captioner import PhotoCaption
    from regard.errors import PhotoError

LOGS = ("text", "json", "quiet")
"""Ways of telling."""

_EVERY = 10.0
"""Seconds between two reports of progress in a log."""


class Text:
    """Captions on standard output, the rest on standard error, with a bar if that is a terminal.

    Args:
        captions: whether captions are written.
        count: how many of a photo's.
        quiet: whether only failures are told.
    """

    def __init__(self, *, captions: bool, count: int = 1, quiet: bool = False) -> None:
        self._captions, self._count, self._quiet = captions and not quiet, count, quiet
        self._many = self._would = False
        # What is printed goes above the bar, but never through it: pipes get plain lines.
        self._progress = counting_bar("rate", hidden=quiet, redirect_stdout=sys.stdout.isatty())
        self._task = self._progress.add_task("captions", total=None, rate="", visible=False)

    def begin(self, total: int | None) -> None:
        """Show the bar, if there are several photos."""
        self._many = total != 1
        self._progress.update(self._task, total=total, visible=self._many)
        self._progress.start()

    def captioned(self, path: str, found: PhotoCaption, alt: str | None) -> None:
        """A line a caption; under it several with their scores if they were asked for."""
        if not self._captions:
            return
        typer.echo(f"{shown(path)}: {alt or found.text}")
        if self._count > 1:
            for one in (found.best, *found.others)[: self._count]:
                typer.echo(f"  {one.standing:8.3f}  {one.text}")

    def would(self, path: str) -> None:
        """A line a photo."""
        self._would = True
        if not self._quiet:
            typer.echo(shown(path))

    def failed(self, path: str, error: PhotoError) -> None:
        """One line, whatever the name."""
        self._error(shown(str(error)))

    def left(self, file: Path, why: str) -> None:
        """One line."""
        if not self._quiet:
            self._error(f"{shown(str(file))} is left as it is: {why}.")

    def going(self, tally: Tally) -> None:
        """Move the bar."""
        speed = self._progress.tasks[0].speed
        self._progress.update(
            self._task, completed=tally.seen, rate=f"{speed:.0f} photos/s" if speed else ""
        )

    def end(self, tally: Tally) -> None:
        """Say how many there were, if it was more than one."""
        self._progress.stop()
        if self._many and not self._quiet:
            self._error(summary(tally, would=self._would))

    def _error(self, text: str) -> None:
        if self._progress.disable:
            typer.echo(text, err=True)
        else:
            self._progress.console.print(text, markup=False, highlight=False, soft_wrap=True)


class Json:
    """A line of JSON an event: ``begin``, ``failed``, ``left``, ``progress`` and ``end``.

    Args:
        captions: whether captions are events too.
        stream: where they go; none is standard error.
    """

    def __init__(self, *, captions: bool, stream: IO[str] | None = None) -> None:
        self._captions, self._stream = captions, stream or sys.stderr
        self._began = self._told = time.monotonic()
        self._total: int | None = None

    def begin(self, total: int | None) -> None:
        """How many photos there are."""
        self._total = total
        self._began = self._told = time.monotonic()
        self._tell("begin", photos=total)

    def captioned(self, path: str, found: PhotoCaption, alt: str | None) -> None:
        """A caption."""
        if self._captions:
            self._tell("captioned", **name_of(path), caption=alt or found.text)

    def would(self, path: str) -> None:
        """A photo that would be captioned."""
        self._tell("would", **name_of(path))

    def failed(self, path: str, error: PhotoError) -> None:
        """A photo without a caption."""
        self._tell("failed", **name_of(path), reason=error.reason, error=str(error))

    def left(self, file: Path, why: str) -> None:
        """A sidecar that is left as it is."""
        self._tell("left", file=str(file), why=why)

    def going(self, tally: Tally) -> None:
        """Every few seconds, how far it is."""
        now = time.monotonic()
        if now - self._told >= _EVERY:
            self._told = now
            self._tell("progress", **self._counts(tally))

    def end(self, tally: Tally) -> None:
        """What became of the photos."""
        self._tell("end", **self._counts(tally), failed_by_reason=dict(tally.failed))

    def _counts(self, tally: Tally) -> dict[str, Any]:
        seconds = time.monotonic() - self._began
        return {
            "seen": tally.seen,
            "photos": self._total,
            "captioned": tally.captioned,
            "done_before": tally.known,
            "failed": tally.failed.total(),
            "left": tally.left,
            "seconds": round(seconds, 1),
            "photos_per_second": round(tally.captioned / max(seconds, 1e-9), 1),
        }

    def _tell(self, event: str, **values: Any) -> None:
        line = json.dumps({"event": event, **values}, ensure_ascii=False)
        typer.echo(line.encode("utf-8", "replace").decode(), file=self._stream)


def summary(tally: Tally, *, would: bool = False) -> str:
    """``1,200 captioned, 3 failed (2 empty, 1 damaged), 40 done before``."""
    parts = [f"{tally.captioned:,} {'to be ' if would else ''}captioned"]
    if tally.failed:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in tally.failed.most_common())
        parts.append(f"{tally.failed.total():,} failed ({reasons})")
    if tally.known:
        parts.append(f"{tally.known:,} done before")
    if tally.left:
        parts.append(f"{tally.left:,} sidecars left as they were")
    return ", ".join(parts)


def listener_of(log: str, *, captions: bool, count: int) -> Text | Json:
    """The listener of a way of telling.

    Args:
        log: one of :data:`LOGS`.
        captions: whether captions are told too.
        count: how many of a photo's.

    Raises:
        ConfigError: there is no such way.
    """
    if log not in LOGS:
        raise ConfigError(f"--log is {log!r}, it must be one of {', '.join(LOGS)}.")
    if log == "json":
        return Json(captions=captions)
    return Text(captions=captions, count=count, quiet=log == "quiet")
