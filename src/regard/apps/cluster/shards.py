"""The folder of a cluster's run: a Parquet file of records for each unit that is done.

``UNIT-CAPTIONED-FAILED.parquet`` says by its name whose it is and how many photos have a caption
and have none, so that a folder of a hundred thousand is known by being listed. The folder may be at
any URL of fsspec. A shard is renamed into its place where that is a disk's, and put there in one
piece where it is an object store's.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from regard.apps.names import is_url
from regard.apps.tables import load_pyarrow, parquet_table
from regard.errors import ConfigError, RegardError
from regard.files import write_whole

RECORD = "run.json"
"""What the run was asked for, and in the end what came of it."""

_NAME = re.compile(r"([0-9a-f]{16})-(\d+)-(\d+)\.parquet")


class Done(NamedTuple):
    """A unit that is done."""

    captioned: int
    """Photos."""
    failed: int
    """Photos without a caption."""


class ShardFolder:
    """The folder, on this machine's disk or anywhere; may be handed to other processes.

    Args:
        place: a path or a URL.
    """

    def __init__(self, place: str) -> None:
        self.place = place if is_url(place) else str(Path(place).absolute())

    def claim(self, asked: Mapping[str, Any]) -> None:
        """Make the folder, or go on with it.

        Args:
            asked: what the run is asked for; ready for JSON.

        Raises:
            ConfigError: it holds something else, or what was made for other photos.
            RegardError: it cannot be written to.
        """
        system, root = self._system()
        if system.isfile(root):
            raise ConfigError(
                f"{self.place} is a file. The captions of a cluster are a folder of shards. Give a "
                "folder that is not there yet."
            )
        held = [posixpath.basename(p) for p in self._listed()]
        if RECORD in held:
            before = self.record()
            if before.get("photos") != asked.get("photos"):
                raise ConfigError(
                    f"{self.place} holds the captions of {_named(before.get('photos'))}, not of "
                    f"{_named(asked.get('photos'))}. It is left as it is. Give another folder."
                )
        elif held:
            raise ConfigError(
                f"{self.place} holds {held[0]}, which is of no run on a cluster. It is left as it "
                "is. Give a folder that is not there yet, or is empty."
            )
        self.note(asked)

    def note(self, record: Mapping[str, Any]) -> None:
        """Write what is known of the run."""
        self._write(RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())

    def record(self) -> dict[str, Any]:
        """What was written of the run last; nothing if that cannot be read."""
        system, root = self._system()
        try:
            known = json.loads(system.cat_file(posixpath.join(root, RECORD)))
        except (OSError, ValueError):
            return {}
        return known if isinstance(known, dict) else {}

    def done(self) -> dict[str, Done]:
        """The units that are done."""
        return dict(filter(None, map(_unit_of, self._listed())))

    def find(self, unit: str) -> Done | None:
        """A unit, if it is done."""
        system, root = self._system()
        names = system.glob(posixpath.join(root, f"{unit}-*.parquet"))
        return next((done for _, done in filter(None, map(_unit_of, names))), None)

    def write(self, unit: str, records: Sequence[Mapping[str, Any]]) -> Done:
        """Write the records of a unit as its shard, whole or not at all."""
        _, parquet = load_pyarrow("writing Parquet")
        failed = sum("error" in made for made in records)
        done = Done(len(records) - failed, failed)
        content = io.BytesIO()
        parquet.write_table(parquet_table(records), content)
        self._write(f"{unit}-{done.captioned}-{done.failed}.parquet", content.getvalue())
        return done

    def keep(self, units: set[str]) -> int:
        """Remove the shards of all other units, whose photos have changed or gone; how many."""
        system, _ = self._system()
        found = [(path, _unit_of(path)) for path in self._listed()]
        others = [path for path, known in found if known is not None and known[0] not in units]
        for path in others:
            system.rm_file(path)
        return len(others)

    def _listed(self) -> list[str]:
        """The paths of what is there; nothing where there is no such folder."""
        system, root = self._system()
        try:
            return [str(path) for path in system.ls(root, detail=False)]
        except FileNotFoundError:
            return []

    def _write(self, name: str, content: bytes) -> None:
        system, root = self._system()
        try:
            system.makedirs(root, exist_ok=True)
            if is_url(self.place):
                system.pipe_file(posixpath.join(root, name), content)
            else:
                write_whole(Path(root) / name, content)
        except Exception as error:  # each file system has errors of its own
            raise RegardError(
                f"{self.place}/{name} cannot be written: {error}. What was finished is kept. Give "
                "a place that can be written to, then run the same command again: it goes on from "
                "there."
            ) from error

    def _system(self) -> tuple[AbstractFileSystem, str]:
        """The file system, as it is now and not as it was listed before, and the folder in it."""
        try:
            system, root = url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ConfigError(
                f"{self.place} is of no file system that is known here: {error}. Install the "
                "package that fsspec needs for it, such as s3fs or gcsfs."
            ) from error
        system.invalidate_cache()
        return system, str(root)


def _unit_of(path: str) -> tuple[str, Done] | None:
    """Which unit a file is the shard of, and what came of it; none if it is no shard."""
    name = _NAME.fullmatch(posixpath.basename(path))
    return None if name is None else (name[1], Done(int(name[2]), int(name[3])))


def _named(photos: Any) -> str:
    names = [str(name) for name in photos or ()]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
