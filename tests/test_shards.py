"""A shard is whole or refused, and says why."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from regard.data.shards import Shard, write_shard
from regard.files import write_whole

FEATURES = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float16)
NAMES = ["aa", "bb", "cc"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write_shard(tmp_path, [FEATURES[:2], FEATURES[2:]], NAMES, key="k")
    (path,) = tmp_path.iterdir()
    return path


def read(path: Path, *, key: str = "k", regions: int = 4, width: int = 5) -> Shard:
    return Shard.read(path, key=key, regions=regions, width=width)


def test_written_and_read_back(path: Path) -> None:
    shard = read(path)
    found = np.empty_like(FEATURES)
    for row in (2, 0, 1):
        shard.load(row, found[row])
    assert np.array_equal(found, FEATURES)
    assert shard.fingerprints == tuple(NAMES)
    assert shard.checksums == tuple(zlib.crc32(row.tobytes()) for row in FEATURES)


def test_any_safetensors_reader_opens_it(path: Path) -> None:
    with safe_open(path, "numpy") as file:
        assert np.array_equal(file.get_tensor("features"), FEATURES)
        assert json.loads(file.metadata()["fingerprints"]) == NAMES


@pytest.mark.parametrize("kept", [0, 3, 8, 100, -1])
def test_a_cut_shard_is_refused(path: Path, kept: int) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"bytes have no header|bytes where [\d,]+ belong"):
        read(path)


def test_a_shard_that_grew_is_refused(path: Path) -> None:
    whole = path.stat().st_size
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(ValueError, match=rf"it has {whole + 1} bytes where {whole} belong"):
        read(path)


def test_a_shard_cut_after_its_contents_were_read_is_refused(path: Path) -> None:
    shard = read(path)
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ValueError, match="bytes where"):
        shard.load(0, np.empty((4, 5), np.float16))


@pytest.mark.parametrize(("old", "new"), [(b'{"', b'["'), (b"features", b"fratures")])
def test_a_header_that_cannot_be_read_is_refused(path: Path, old: bytes, new: bytes) -> None:
    path.write_bytes(path.read_bytes().replace(old, new))
    with pytest.raises(ValueError, match="its header cannot be read"):
        read(path)


def test_a_shard_of_another_cache_or_shape_is_refused(path: Path) -> None:
    with pytest.raises(ValueError, match="belongs to another encoder"):
        read(path, key="other")
    with pytest.raises(ValueError, match=r"promises \('F16', 3, 4, 5\) where \('F16', 3, 4, 6\)"):
        read(path, width=6)


def test_a_failed_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_whole(path, b"before")

    def full(descriptor: int) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left"):
        write_whole(path, b"after")
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
