"""A shard: one file with the features of some photos, its own table of contents and checksums.

A shard is a safetensors file. Its metadata names the photos by fingerprint, row by row, and holds a
CRC-32 of each row; any safetensors reader opens it.
"""

import json
import os
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from regard.files import write_whole

Features = NDArray[np.float16]


@dataclass(frozen=True, eq=False)
class Shard:
    """The table of contents of a shard file."""

    path: Path
    """The file."""
    shape: tuple[int, int, int]
    """Photos, L and D."""
    offset: int
    """Bytes from the start of the file to the first feature."""
    fingerprints: tuple[str, ...]
    """The content hash of each photo."""
    checksums: tuple[int, ...]
    """The CRC-32 of the features of each photo."""

    @classmethod
    def read(cls, path: Path, *, key: str, regions: int, width: int) -> "Shard":
        """Read the table of contents and check it against the file.

        Args:
            path: the file.
            key: the cache that the shard must belong to.
            regions: L.
            width: D.

        Raises:
            ValueError: if the file is not a whole shard of this cache, saying why.
        """
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= size - 8:
                raise ValueError(f"its {size:,} bytes have no header")
            header = file.read(length)
        try:
            entries: dict[str, Any] = json.loads(header)
            contents, features = entries["__metadata__"], entries["features"]
            found_key = contents["key"]
            fingerprints = tuple(json.loads(contents["fingerprints"]))
            checksums = tuple(json.loads(contents["checksums"]))
            found = (features["dtype"], *features["shape"])
            start = int(features["data_offsets"][0])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError("its header cannot be read") from error
        if found_key != key:
            raise ValueError("it belongs to another encoder or preparation")
        shape = (len(fingerprints), regions, width)
        if found != ("F16", *shape) or len(checksums) != len(fingerprints):
            raise ValueError(f"its header promises {found} where {('F16', *shape)} belong")
        shard = cls(path, shape, 8 + length + start, fingerprints, checksums)
        shard._check_size(size)
        return shard

    def load(self, row: int, into: Features) -> None:
        """Read the features of one photo into ``into`` (L, D), which is contiguous.

        They are read, not mapped: the pages of a mapped file count as memory of the process, in the
        end those of the whole cache, and are fetched one by one.

        Raises:
            ValueError: if the file has another size than it had.
        """
        with self.path.open("rb", buffering=0) as file:
            self._check_size(os.fstat(file.fileno()).st_size)
            file.seek(self.offset + row * into.nbytes)
            file.readinto(into.data.cast("B"))

    def _check_size(self, size: int) -> None:
        photos, regions, width = self.shape
        whole = self.offset + photos * regions * width * 2
        if size != whole:
            raise ValueError(f"it has {size:,} bytes where {whole:,} belong")


class Place(NamedTuple):
    """Where the features of one photo are."""

    shard: Shard
    row: int


def write_shard(
    directory: Path, features: Sequence[Features], fingerprints: Sequence[str], *, key: str
) -> None:
    """Write features as a new shard, which is there whole or not at all.

    Args:
        directory: of all shards.
        features: of some photos each, ``(photos, L, D)``, contiguous; they are not copied.
        fingerprints: of all photos.
        key: of the cache.
    """
    shape = [len(fingerprints), *features[0].shape[1:]]
    checksums = [zlib.crc32(row) for batch in features for row in batch]
    header = json.dumps({
        "__metadata__": {
            "key": key,
            "fingerprints": json.dumps(list(fingerprints)),
            "checksums": json.dumps(checksums),
        },
        "features": {
            "dtype": "F16",
            "shape": shape,
            "data_offsets": [0, sum(batch.nbytes for batch in features)],
        },
    }).encode()  # fmt: skip
    header += b" " * (-len(header) % 8)  # so that the features are aligned
    values = [batch.data for batch in features]
    # A fresh name for every shard: one process may be removing a damaged shard while another has
    # already computed the same photos again.
    write_whole(
        directory / f"{uuid.uuid4().hex}.safetensors",
        len(header).to_bytes(8, "little"),
        header,
        *values,
    )
