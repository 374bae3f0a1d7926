"""Photos are known by content, and read once."""

import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from regard.data import fingerprints
from regard.data.fingerprints import content_hash, fingerprint_photos

Result = tuple[dict[str, str], dict[str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two files of yesterday."""
    paths = [tmp_path / "a.jpg", tmp_path / "b.jpg"]
    for path in paths:
        write(path, path.name)
    return paths


def write(path: Path, content: str, *, age_s: int = 86_400) -> None:
    path.write_text(content)
    changed = time.time() - age_s
    os.utime(path, (changed, changed))


def run(photos: list[Path], memory: Path) -> Result:
    with ThreadPoolExecutor(2) as threads:
        return fingerprint_photos(photos, memory=memory, threads=threads)


def test_fingerprints_are_hashes_of_the_content(photos: list[Path], tmp_path: Path) -> None:
    found, failures = run([*photos, photos[0]], tmp_path / "memory")
    assert found == {str(path): content_hash(path.read_bytes()) for path in photos}
    assert not failures


def test_a_file_is_read_once_while_it_does_not_change(
    photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "memory"
    first = run(photos, memory)
    with monkeypatch.context() as patch:
        patch.setattr(fingerprints, "content_hash", None)  # whoever hashes, fails
        assert run(photos, memory) == first
    write(photos[0], "other", age_s=3600)
    changed, _ = run(photos, memory)
    assert changed[str(photos[0])] == content_hash(b"other")
    assert changed[str(photos[1])] == first[0][str(photos[1])]


def test_a_file_of_this_very_moment_is_not_remembered(tmp_path: Path) -> None:
    # It could be written again within one tick of the clock that stamps files.
    photo, memory = tmp_path / "new.jpg", tmp_path / "memory"
    write(photo, "one", age_s=0)
    stamp = photo.stat().st_mtime_ns
    run([photo], memory)
    photo.write_text("two")
    os.utime(photo, ns=(stamp, stamp))
    found, _ = run([photo], memory)
    assert found[str(photo)] == content_hash(b"two")


@pytest.mark.parametrize("torn", [b'["/a/b.jpg", 12', b"\xff\xfe", b'{"a": 1}', b"[1, 2, 3, 4]"])
def test_torn_lines_are_passed_over(photos: list[Path], tmp_path: Path, torn: bytes) -> None:
    memory = tmp_path / "memory"
    memory.write_bytes(torn)
    first = run(photos, memory)
    assert memory.read_bytes().startswith(torn + b"\n")
    for photo in photos:
        photo_status = photo.stat()
        photo.write_bytes(b"x" * photo_status.st_size)
        os.utime(photo, ns=(photo_status.st_atime_ns, photo_status.st_mtime_ns))
    # The same size and time: only the memory can know the old fingerprints.
    assert run(photos, memory) == first


def test_a_photo_that_cannot_be_read_is_named_and_the_others_go_on(
    photos: list[Path], tmp_path: Path
) -> None:
    missing = tmp_path / "missing.jpg"
    found, failures = run([photos[0], missing, photos[1]], tmp_path / "memory")
    assert list(found) == [str(photo) for photo in photos]
    assert failures == {str(missing): f"{missing}: No such file or directory"}
