"""Flickr30k Entities, in small files of the real format."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.data.entities import Entities, Piece
from regard.errors import DataError

SENTENCES = """\
[/EN#1/people Two young guys] with [/EN#2/bodyparts shaggy hair] look at their hands .
[/EN#6/people A man] in [/EN#7/clothing/other a blue shirt] standing in [/EN#9/scene a garden] , \
[/EN#0/notvisual who] does n't move .
"""

ANNOTATION = """\
<annotation>
	<filename>1000092795.jpg</filename>
	<size>
		<width>333</width>
		<height>500</height>
		<depth>3</depth>
	</size>
	<object>
		<name>1</name>
		<bndbox>
			<xmin>159</xmin>
			<ymin>125</ymin>
			<xmax>219</xmax>
			<ymax>335</ymax>
		</bndbox>
	</object>
	<object>
		<name>1</name>
		<name>6</name>
		<bndbox>
			<xmin>1</xmin>
			<ymin>1</ymin>
			<xmax>333</xmax>
			<ymax>500</ymax>
		</bndbox>
	</object>
	<object>
		<name>9</name>
		<scene>1</scene>
		<nobndbox>0</nobndbox>
	</object>
	<object>
		<name>7</name>
		<scene>0</scene>
		<nobndbox>1</nobndbox>
	</object>
</annotation>
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Annotations", "Sentences"):
        (tmp_path / name).mkdir()
    (tmp_path / "Annotations" / "1000092795.xml").write_text(ANNOTATION)
    (tmp_path / "Sentences" / "1000092795.txt").write_text(SENTENCES)
    return tmp_path


def test_boxes_are_counted_from_zero_and_belong_to_every_name(folder):
    found = Entities(folder).read(Path("1000092795.jpg"))
    assert found is not None
    assert found.boxes == {
        "1": ((158, 124, 219, 335), (0, 0, 333, 500)),
        "6": ((0, 0, 333, 500),),
    }


def test_captions_come_in_pieces(folder):
    found = Entities(folder).read(Path("1000092795.jpg"))
    assert found is not None
    assert found.captions[0] == (
        Piece("Two young guys", "1"),
        Piece("with", None),
        Piece("shaggy hair", "2"),
        Piece("look at their hands .", None),
    )
    assert found.captions[1][2:] == (
        Piece("a blue shirt", "7"),  # of two types
        Piece("standing in", None),
        Piece("a garden", "9"),
        Piece(",", None),
        Piece("who", None),  # chain 0 is no chain
        Piece("does n't move .", None),
    )


def test_photos_are_found_by_flickrs_number(folder):
    entities = Entities(folder)
    found = entities.read(Path("photos/1000092795.jpg"))
    assert found is not None
    assert entities.read(Path("1000092795_693b08cb0e.jpg")) == found  # as Flickr8k names it
    assert entities.read(Path("1000092796.jpg")) is None


def test_boxes_follow_the_size_of_the_copy(folder):
    found = Entities(folder).read(Path("1000092795.jpg"))
    assert found is not None
    assert found.boxes_on((333, 500)) == found.boxes
    (half,) = found.boxes_on((167, 250))["6"]
    assert half == (0, 0, 167, 250)
    with pytest.raises(DataError, match="1000092795 has 500 x 333 pixels.*333 x 500: it is cut"):
        found.boxes_on((500, 333))


def test_what_is_wrong_is_said(folder, tmp_path):
    with pytest.raises(DataError, match="has no folder Annotations and no folder Sentences"):
        Entities(tmp_path / "Annotations")
    annotation = folder / "Annotations" / "1000092795.xml"
    photo = Path("1000092795.jpg")
    for damage, says in (
        (ANNOTATION[:200], "no element found"),
        (ANNOTATION.replace("<xmin>159</xmin>", ""), "a bndbox has no xmin"),
        (ANNOTATION.replace("159", "many"), "many"),
        (ANNOTATION.replace("<width>333", "<width>0"), "a photo of 0 x 500 pixels"),
    ):
        annotation.write_text(damage)
        with pytest.raises(DataError, match=f"1000092795 in .*{says}.*Unpack"):
            Entities(folder).read(photo)
    annotation.unlink()
    with pytest.raises(DataError, match=r"1000092795\.xml.*Unpack"):
        Entities(folder).read(photo)
