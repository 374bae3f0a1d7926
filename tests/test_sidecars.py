"""Texts beside photos: read by others, and never in place of what a person wrote."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from folders import Mute, draw, run
from regard.apps.alt_text import LONGEST, alt_text
from regard.apps.names import Photos
from regard.apps.photos import Outputs
from regard.apps.sidecars import TextBeside, XmpBeside, sidecars_of
from regard.errors import ConfigError, RegardError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for i, name in enumerate(("a.png", "a.jpg", "b.png", "ü\n&.png")):
        draw(tmp_path / "p" / name, i)
    return tmp_path


def outputs(*sidecars, **more) -> Outputs:
    return Outputs(out=Path("c.jsonl"), sidecars=sidecars, **more)


def test_each_photo_has_a_text_of_its_own(folder):
    before = {path: path.read_bytes() for path in Path("p").iterdir()}
    ear = run(Photos(["p"]), outputs(TextBeside()))
    for path, text in ear.said.items():
        assert Path(path + ".txt").read_text() == text + "\n"
    assert Path("p/a.jpg.txt").read_text() != Path("p/a.png.txt").read_text()
    assert {path: path.read_bytes() for path in before} == before  # photos are never touched
    assert len(list(Path("p").iterdir())) == 8


def test_what_a_person_wrote_is_kept(folder):
    Path("p/b.png.txt").write_text("My dog.\n")
    ear = run(Photos(["p"]), outputs(TextBeside()))
    assert ear.lefts == {"p/b.png.txt": "it was written or changed by a person"}
    assert ear.tally.left == 1
    Path("p/a.jpg.txt").write_text("My cat.\n")  # changed afterwards
    again = run(Photos(["p"]), outputs(TextBeside()))
    assert again.tally.known == 4
    assert set(again.lefts) == {"p/b.png.txt", "p/a.jpg.txt"}
    draw(Path("p/b.png"), 77)  # a new photo of that name
    draw(Path("p/a.png"), 78)
    renewed = run(Photos(["p"]), outputs(TextBeside()))
    assert Path("p/b.png.txt").read_text() == "My dog.\n"
    assert Path("p/a.png.txt").read_text() == renewed.said["p/a.png"] + "\n"
    run(Photos(["p"]), outputs(TextBeside(), overwrite=True))
    assert Path("p/b.png.txt").read_text() == renewed.said["p/b.png"] + "\n"


def test_what_is_missing_is_written_again_and_what_is_stale_is_taken_away(folder):
    run(Photos(["p"]), outputs(TextBeside()))
    Path("p/b.png.txt").unlink()
    captioner = Mute()
    run(Photos(["p"]), outputs(TextBeside()), captioner)
    assert captioner.seen == 0
    assert Path("p/b.png.txt").exists()
    Path("p/b.png").write_text("no photo any more")
    run(Photos(["p"]), outputs(TextBeside()))
    assert not Path("p/b.png.txt").exists()


def test_a_folder_that_cannot_be_written_to_says_so_and_loses_nothing(folder):
    Path("p/b.png.txt").mkdir()
    with pytest.raises(RegardError, match=r"p/b.png.txt cannot be written: Is a directory"):
        run(Photos(["p"]), outputs(TextBeside()))
    Path("p/b.png.txt").rmdir()
    captioner = Mute()
    run(Photos(["p"]), outputs(TextBeside()), captioner)
    assert captioner.seen == 0
    assert Path("p/b.png.txt").is_file()


# --- XMP ----------------------------------------------------------------------------------------


def exiftool(*files: Path) -> list[dict[str, Any]]:
    if shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    done = subprocess.run(
        ["exiftool", "-j", "-struct", "-validate", "-all", "-G1", *map(str, files)],
        capture_output=True, check=True, text=True,
    )  # fmt: skip
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


DARKTABLE = """<?xml version="1.0" encoding="UTF-8"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/" x:xmptk="XMP Core 4.4.0-Exiv2">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
   xmp:Rating="4">
   <dc:subject><rdf:Bag><rdf:li>holiday</rdf:li></rdf:Bag></dc:subject>{more}
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
"""
TITLE = (
    '\n   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">By hand</rdf:li></rdf:Alt>'
    "</dc:description>"
)


def test_other_programs_read_the_xmp(folder):
    ear = run(Photos(["p"]), outputs(XmpBeside(), alt=True))
    made = {path: json.loads(line) for path, line in zip(
        ear.said, Path("c.jsonl").read_text().splitlines(), strict=True)}  # fmt: skip
    files = [Path(path + ".xmp") for path in ear.said]
    for path, tags in zip(ear.said, exiftool(*files), strict=True):
        assert tags["XMP-dc:Description"] == made[path]["caption"]
        assert tags["XMP-iptcCore:AltTextAccessibility"] == made[path]["alt_text"]
        assert tags["ExifTool:Validate"] == "OK"


def test_an_xmp_file_is_added_to_and_every_byte_of_it_kept(folder):
    file = Path("p/b.png.xmp")
    file.write_text(DARKTABLE.format(more=""))
    ear = run(Photos(["p"]), outputs(XmpBeside()))
    after = file.read_text()
    start, end = DARKTABLE.format(more="").split(" </rdf:RDF>")
    assert after.startswith(start)
    assert after.endswith(" </rdf:RDF>" + end)
    (tags,) = exiftool(file)
    assert tags["XMP-dc:Description"] == ear.said["p/b.png"]
    assert tags["XMP-dc:Subject"] in (["holiday"], "holiday")
    assert tags["XMP-xmp:Rating"] == 4
    # When the photo changes, its part is replaced; when it goes, its part goes.
    draw(Path("p/b.png"), 70)
    renewed = run(Photos(["p"]), outputs(XmpBeside()))
    (tags,) = exiftool(file)
    assert tags["XMP-dc:Description"] == renewed.said["p/b.png"] != ear.said["p/b.png"]
    assert file.read_text().count("dc:description>") == 2
    Path("p/b.png").write_text("no photo")
    run(Photos(["p"]), outputs(XmpBeside()))
    assert file.read_text() == DARKTABLE.format(more="")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (DARKTABLE.format(more=TITLE), "it has a description that was written or changed"),
        ("no xml", "it cannot be added to: it is no whole XML"),
        (DARKTABLE.replace("UTF-8", "UTF-16").encode("utf-16"), "it is not in UTF-8"),
        ("<!DOCTYPE a [<!ENTITY b 'c'>]>" + DARKTABLE.format(more=""), "it is no plain XMP"),
    ],
)
def test_an_xmp_file_that_is_not_ours_to_change_is_left(folder, content, why):
    file = Path("p/b.png.xmp")
    raw = content.encode() if isinstance(content, str) else content
    file.write_bytes(raw)
    ear = run(Photos(["p"]), outputs(XmpBeside()))
    assert why in ear.lefts["p/b.png.xmp"]
    assert file.read_bytes() == raw


def test_overwrite_replaces_a_description_and_nothing_else(folder):
    file = Path("p/b.png.xmp")
    file.write_text(DARKTABLE.format(more=TITLE))
    ear = run(Photos(["p"]), outputs(XmpBeside(), overwrite=True))
    (tags,) = exiftool(file)
    assert tags["XMP-dc:Description"] == ear.said["p/b.png"]
    assert tags["XMP-xmp:Rating"] == 4
    assert "By hand" not in file.read_text()


def test_lightrooms_name_is_had_by_one_of_two_photos(folder):
    ear = run(Photos(["p"]), outputs(XmpBeside(stem=True)))
    assert list(ear.lefts) == ["p/a.xmp"]
    assert ear.said["p/a.jpg"] in Path("p/a.xmp").read_text()
    with pytest.raises(ConfigError, match="--xmp and --xmp-stem name the same file"):
        sidecars_of(txt=False, xmp=True, xmp_stem=True)


# --- alternative texts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("a dog runs on grass", "A dog runs on grass."),
        ("a photo of a dog", "A dog."),
        ("this is a black and white photograph showing two men", "Two men."),
        ("there are two dogs in the snow .", "Two dogs in the snow."),
        ("a picture of", "A picture of."),
        ("Two men. One is old.", "Two men."),
        ("  a   dog\n runs ", "A dog runs."),
        ("élan", "Élan."),
        ("", ""),
    ],
)
def test_alternative_texts(caption, text):
    assert alt_text(caption) == text


def test_long_ones_are_cut_after_a_word_that_can_end():
    words = "a man and a woman stand in front of the house with the red door and look at the sea"
    for count in range(1, 60):
        caption = " ".join((words + " ").split() * 3)[: 3 * count].rstrip()
        text = alt_text(caption)
        assert len(text) <= LONGEST
        assert text[0].isupper()
        assert text.endswith(".")
        if len(caption) >= LONGEST:
            assert caption.lower().startswith(text[:-1].lower() + " ")
            assert text[:-1].split()[-1] not in ("a", "the", "of", "and", "with", "in", "at")
    assert len(alt_text("x" * 300)) == LONGEST
