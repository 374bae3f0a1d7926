"""Full-text search over captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from regard.apps.find import find_captions
from regard.apps.tables import write_table
from regard.errors import ConfigError, RegardError

CAPTIONS = {
    "a.jpg": "a dog runs on the beach",
    "b.jpg": "two dogs are running through the grass",
    "c.jpg": "a child on a swing",
    "d.jpg": "a man reads a newspaper at the beach",
    "beach-9.jpg": "a red car",
}


@pytest.fixture
def file(tmp_path) -> Path:
    made = tmp_path / "c.jsonl"
    rows = [{"path": f"p/{path}", "caption": caption} for path, caption in CAPTIONS.items()]
    rows.append({"path": "p/broken.jpg", "error": "a dog ate it", "reason": "damaged"})
    made.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return made


def names(query: str, file: Path, **options) -> list[str]:
    return [Path(made["path"]).name for made in find_captions(query, file, **options).records]


def test_all_words_are_looked_for_in_their_forms(file):
    assert names("dog on a beach", file) == ["a.jpg"]
    assert set(names("dog", file)) == {"a.jpg", "b.jpg"}
    assert set(names("Running DOGS!", file)) == {"a.jpg", "b.jpg"}
    assert set(names("beach", file)) == {"a.jpg", "d.jpg", "beach-9.jpg"}
    assert names("a", file, limit=1)  # nothing but a word that is everywhere
    assert names("zebra", file) == []


def test_some_words_are_better_than_none(file):
    found = find_captions("dog newspaper", file)
    assert not found.whole
    assert {Path(made["path"]).name for made in found.records} == {"a.jpg", "b.jpg", "d.jpg"}
    assert find_captions("newspaper", file).whole
    assert find_captions("beach", file, limit=2).count == 3


@pytest.mark.parametrize("query", ['"dog', "dog*", "dog AND", "caption:dog", "dog'; --", "NEAR("])
def test_a_query_is_words_and_no_program(file, query):
    find_captions(query, file)


def test_the_index_follows_the_file(file):
    assert names("zebra", file) == []
    assert file.with_name("c.jsonl.index").exists()
    with file.open("a") as stream:
        stream.write(json.dumps({"path": "p/z.jpg", "caption": "a zebra"}) + "\n")
        stream.write(json.dumps({"path": "p/a.jpg", "caption": "a cat"}) + "\n")
    assert names("zebra", file) == ["z.jpg"]
    assert names("dog beach", file) != ["a.jpg"]  # its last record counts
    file.with_name("c.jsonl.index").write_text("damaged")
    assert names("zebra", file) == ["z.jpg"]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_are_searched_too(file, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    table = file.with_suffix(ending)
    write_table(file, table)
    assert names("dog on a beach", table) == ["a.jpg"]


def test_wrong_inputs_say_so(file, tmp_path):
    with pytest.raises(ConfigError, match=r"The query is '\.\.\.'"):
        find_captions("...", file)
    with pytest.raises(RegardError, match=r"none.jsonl cannot be read.*Caption photos first"):
        find_captions("dog", tmp_path / "none.jsonl")
    with pytest.raises(ConfigError, match="is no file of captions"):
        find_captions("dog", tmp_path)
