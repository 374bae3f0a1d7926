"""Which photos are meant: each once, in order, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from folders import draw
from regard.apps import names
from regard.apps.names import Photos
from regard.errors import RegardError


def paths(*given: object, lists=()) -> list[str]:
    return [photo.path for photo in Photos([str(g) for g in given], lists)]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("p/b.png", "p/a.jpg", "p/.hidden.png", "p/z/deep/c.PNG", "p/.cache/d.png"):
        draw(tmp_path / name)
    (tmp_path / "p/notes.txt").write_text("no photo")
    (tmp_path / "other.dat").write_bytes(draw(tmp_path / "p/a.jpg").read_bytes())
    return tmp_path


def test_folders_are_walked_and_files_taken_as_they_are(folder):
    assert paths("p") == ["p/a.jpg", "p/b.png", "p/z/deep/c.PNG"]
    assert paths("other.dat", "p/notes.txt") == ["other.dat", "p/notes.txt"]
    found = {photo.path: photo for photo in Photos(["p"])}
    status = Path("p/b.png").stat()
    assert (found["p/b.png"].size, found["p/b.png"].modified) == (
        status.st_size, status.st_mtime_ns,
    )  # fmt: skip


def test_each_photo_comes_once(folder):
    assert paths("p/b.png", "p", "./p/a.jpg", folder / "p", "p/../p/b.png") == [
        "p/b.png", "p/a.jpg", "p/z/deep/c.PNG",
    ]  # fmt: skip
    photos = Photos(["p"])
    assert [x.path for x in photos] == [x.path for x in photos]  # any number of times


def test_globs(folder):
    assert paths("p/*.png") == ["p/b.png"]
    assert paths("p/**/*.PNG") == ["p/z/deep/c.PNG"]
    assert paths("p/z/**") == ["p/z/deep/c.PNG"]
    assert paths("*/[ab].*") == ["p/a.jpg", "p/b.png"]
    assert paths("p/none*.png") == ["p/none*.png"]  # to be named as missing
    draw(folder / "p/odd[1].png")
    assert paths("p/odd[1].png") == ["p/odd[1].png"]


def test_lists(folder):
    Path("list").write_text("p/b.png\r\n\np/z\n  \np/a.jpg")
    assert paths(lists=[Path("list")]) == ["p/b.png", "p/z/deep/c.PNG", "  ", "p/a.jpg"]
    odd = draw(folder / "p/two\nlines.png")
    Path("null").write_bytes(b"p/b.png\0" + os.fsencode(odd) + b"\0")
    assert paths(lists=[Path("null")]) == ["p/b.png", str(odd)]
    with pytest.raises(RegardError, match="The list nothing cannot be read"):
        paths(lists=[Path("nothing")])


def test_long_lists_are_read_in_blocks(folder):
    wanted = [f"p/{'x' * (i % 90)}{i}.png" for i in range(5000)]
    Path("list").write_text("\n".join(wanted))
    assert paths(lists=[Path("list")]) == wanted


def test_standard_input(folder):
    code = "from regard.apps.names import Photos; photos = Photos(['-'])\n"
    code += "print(photos.countable, [p.path for p in photos])"
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"p/b.png\0p/two\nlines.png\0", capture_output=True,
        check=True,
    )  # fmt: skip
    assert done.stdout.decode().strip() == "False ['p/b.png', 'p/two\\nlines.png']"


def test_what_is_no_photo_for_certain_says_why(folder):
    (folder / "p/x.png").mkdir()
    draw(folder / "p/x.png/inside.png")
    (folder / "p/z/up").symlink_to("../../p")
    (folder / "away").mkdir()
    draw(folder / "away/far.png")
    (folder / "p/away").symlink_to(folder / "away")
    (folder / "p/again").symlink_to(folder / "away")
    (folder / "p/gone.png").symlink_to("nowhere.png")
    found = {photo.path: photo.problem for photo in Photos(["p"])}
    assert found.pop("p/x.png").reason == "a folder"
    assert found.pop("p/z/up").reason == "link loop"
    assert set(found) == {
        "p/a.jpg", "p/b.png", "p/gone.png", "p/x.png/inside.png", "p/z/deep/c.PNG",
        "p/again/far.png",
    }  # fmt: skip
    assert set(found.values()) == {None}


def test_names_may_hold_any_bytes(folder):
    raw = b"p/\xff\xfe.png"
    (folder / "p/b.png").rename(os.fsdecode(raw))
    assert [os.fsencode(path) for path in paths("p")] == [b"p/a.jpg", raw, b"p/z/deep/c.PNG"]


def test_big_folders_are_read_in_chunks(folder, monkeypatch):
    monkeypatch.setattr(names, "_CHUNK", 7)
    for i in range(40):
        (folder / "p" / f"{i:02}.png").symlink_to("a.jpg")
    found = paths("p")
    assert len(found) == len(set(found)) == 43


def test_what_may_not_be_read_is_named():
    """As a user who is not allowed everything."""
    import tempfile

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        draw(folder / "open/a.png")
        draw(folder / "closed/b.png")
        draw(folder / "locked.png").chmod(0)
        (folder / "closed").chmod(0)
        user = os.geteuid()
        try:
            if user == 0:
                os.seteuid(65534)
            from regard.errors import PhotoError
            from regard.images import open_photo

            found = {Path(p.path).name: p for p in Photos([place])}
            assert found["closed"].problem is not None
            assert found["closed"].problem.reason == "not permitted"
            assert set(found) == {"closed", "a.png", "locked.png"}
            with pytest.raises(PhotoError, match="may not be read") as caught:
                open_photo(folder / "locked.png")
            assert caught.value.reason == "not permitted"
        finally:
            os.seteuid(user)
            (folder / "closed").chmod(0o755)
