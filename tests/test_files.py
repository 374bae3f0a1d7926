"""JSON files: whole or not there, and one clear line where they cannot be."""

from __future__ import annotations

import json

import pytest

from regard.errors import RegardError
from regard.files import write_json


def test_a_file_is_written_whole_and_replaced(tmp_path):
    file = tmp_path / "new" / "a.json"
    for values in ({"é": [1, 2.5]}, {"b": None}):
        write_json(file, values)
        assert json.loads(file.read_text("utf-8")) == values
    assert [f.name for f in file.parent.iterdir()] == ["a.json"]


def test_what_cannot_be_json_leaves_the_old_file(tmp_path):
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})
    with pytest.raises(TypeError):
        write_json(file, {"a": object()})
    assert json.loads(file.read_text()) == {"a": 1}


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RegardError, match=r"a\.json cannot be written: .*Give a place that can"):
        write_json(tmp_path / "file" / "a.json", {})
