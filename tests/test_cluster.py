"""A cluster's captions are those of one machine, whatever dies and wherever photos lie."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest

import tiny
from folders import photo
from regard.apps.cluster.shards import Done, ShardFolder
from regard.apps.cluster.units import Unit, find_units, photos_of
from regard.apps.cluster.workers import Workers, _room
from regard.apps.names import Named
from regard.apps.tables import read_table
from regard.errors import ConfigError, PhotoError
from regard.models.processors import ImageStatistics
from regard.models.resnet import ResNet
from regard.models.sources import write_resnet

pa = pytest.importorskip("pyarrow", reason="pyarrow is not installed")
parquet = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """``p`` with forty photos, and a broken one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p" / "q").mkdir(parents=True)
    for i in range(40):
        (tmp_path / "p" / ("q" if i % 3 else "") / f"{i:02}.png").write_bytes(photo(i))
    (tmp_path / "p" / "broken.png").write_bytes(photo(99)[:60])
    return tmp_path


def units(*given: str, size: int = 4, by: str = "") -> list[Unit]:
    return list(find_units(given, size=size, by=by))


def names(found: list[Unit]) -> list[str]:
    return [name.path for unit in found for name, _ in photos_of(unit)]


def content(source) -> bytes:
    return Path(source).read_bytes() if isinstance(source, str) else source.read()


# --- units ------------------------------------------------------------------------------------


def test_units_hold_every_photo_once(here):
    found = units("p", "p/q", "p/00.png")
    assert sorted(names(found)) == sorted(str(p) for p in Path("p").rglob("*.png"))
    assert len({u.id for u in found}) == len(found) > 4
    assert all(len(u.photos) <= 16 for u in found)
    assert found == units("p", "p/q", "p/00.png")


def test_a_photo_that_comes_goes_or_changes_changes_its_own_unit_alone(here):
    before = {u.id for u in units("p")}
    Path("p/q/01.png").write_bytes(photo(500, size=(31, 20)))
    changed = {u.id for u in units("p")}
    assert len(before - changed) == len(changed - before) == 1
    Path("p/q/02.png").unlink()
    gone = {u.id for u in units("p")}
    assert len(changed - gone) <= 2  # the unit, and its neighbour if it was the last of it
    Path("p/new.png").write_bytes(photo(501))
    assert len(gone - {u.id for u in units("p")}) <= 2
    assert not before & {u.id for u in units("p", by="another captioner")}


def write_tar(file: str, photos: list[tuple[str, bytes]]) -> None:
    with tarfile.open(file, "w") as tar:
        for name, data in photos:
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 7
            tar.addfile(member, io.BytesIO(data))


def test_tars_are_read_photo_by_photo(here):
    """As WebDataset writes them, with texts and other things beside the photos."""
    shots = [(f"s/{i:03}.jpg", photo(i, kind="JPEG")) for i in range(5)]
    others = [("s/000.txt", b"a dog"), ("s/000.json", b"{}"), ("s/.hidden.jpg", b"x")]
    write_tar("a.tar", shots[:3] + others)
    write_tar("b.tar", shots[3:])
    first, second = units("a.tar", "b.tar")
    assert [n for n, _ in photos_of(first)] == [
        Named(f"a.tar/{name}", len(data), 7 * 10**9) for name, data in shots[:3]
    ]
    assert [s.read() for _, s in photos_of(second)] == [data for _, data in shots[3:]]
    assert units(".", size=99)[0].archive == "./a.tar"  # in a folder too
    write_tar("b.tar", shots)
    assert units("a.tar", "b.tar")[1].id != second.id


def test_a_tar_that_is_cut_off_gives_what_it_has(here):
    write_tar("a.tar", [(f"{i}.png", photo(i, size=(64, 64))) for i in range(4)])
    whole = Path("a.tar").read_bytes()
    Path("a.tar").write_bytes(whole[: len(whole) // 3])
    (unit,) = units("a.tar")
    *_, (name, error) = found = list(photos_of(unit))
    assert len(found) == 2
    assert name.path == "a.tar"
    assert isinstance(error, PhotoError)
    assert "damaged" in str(error)


def test_webdatasets_own_shards_are_read(here):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    with webdataset.TarWriter("w.tar") as writer:
        for i in range(3):
            writer.write({"__key__": f"{i:06}", "png": photo(i), "txt": "a dog"})
    (unit,) = units("w.tar")
    assert [(n.path, s.read()) for n, s in photos_of(unit)] == [
        (f"w.tar/{i:06}.png", photo(i)) for i in range(3)
    ]


def test_parquet_holds_photos_or_names_them(here):
    held = pa.table({"image": [{"bytes": photo(i), "path": f"{i}.png"} for i in range(5)]})
    parquet.write_table(held, "held.parquet", row_group_size=2)
    found = units("held.parquet")
    assert [u.count for u in found] == [2, 2, 1]
    assert names(found)[:3] == [
        "held.parquet/0/0/0.png", "held.parquet/0/1/1.png", "held.parquet/1/0/2.png"
    ]  # fmt: skip
    assert [content(s) for u in found for _, s in photos_of(u)] == [photo(i) for i in range(5)]
    named = pa.table({"path": ["p/00.png", "p/nowhere.png", None], "caption": ["a", "b", "c"]})
    parquet.write_table(named, "named.parquet")
    (unit,) = units("named.parquet")
    listed = list(photos_of(unit))
    assert [s for _, s in listed[:2]] == ["p/00.png", "p/nowhere.png"]
    assert isinstance(listed[2][1], PhotoError)
    parquet.write_table(pa.table({"text": ["a"]}), "other.parquet")
    with pytest.raises(ConfigError, match=r"no column of photos: it has text\."):
        units("other.parquet")
    Path("no.parquet").write_text("no")
    with pytest.raises(ConfigError, match="is no Parquet file"):
        units("no.parquet")


def test_urls_of_any_file_system_are_read(here):
    system = fsspec.filesystem("memory")
    for i in range(6):
        system.pipe_file(f"/album/{'sub/' if i % 2 else ''}{i}.png", photo(i))
    system.pipe_file("/album/notes.txt", b"no photo")
    system.pipe_file("/album/.trash/7.png", photo(7))
    write_tar("t.tar", [("x.png", photo(8))])
    system.put_file("t.tar", "/album/t.tar")
    found = units("memory://album")
    every = {name.path: source.read() for u in found for name, source in photos_of(u)}
    assert every == {
        f"memory:///album/{'sub/' if i % 2 else ''}{i}.png": photo(i) for i in range(6)
    } | {"memory:///album/t.tar/x.png": photo(8)}
    (one,) = units("memory://album/0.png")
    assert content(next(iter(photos_of(one)))[1]) == photo(0)
    (none,) = units("memory://nowhere")
    assert isinstance(next(iter(photos_of(none)))[1], PhotoError)
    with pytest.raises(ConfigError, match="noscheme://x cannot be read"):
        units("noscheme://x")
    local = units(f"file://{here}/p")
    assert len(names(local)) == 41


# --- shards -----------------------------------------------------------------------------------

RECORDS = [
    {"path": "a.png", "caption": "a dog", "words": [], "width": 3, "height": 2, "by": "x"},
    {"path": "b.png", "error": "b.png is empty.", "reason": "empty", "by": "x"},
]


@pytest.mark.parametrize("place", ["captions", "memory://captions"])
def test_a_folder_of_shards_knows_what_is_done(here, place):
    if "://" in place:
        fsspec.filesystem("memory").store.clear()
    folder = ShardFolder(place)
    folder.claim({"photos": ["p"], "by": "x"})
    assert folder.done() == {}
    first, second = "0123456789abcdef", "f" * 16
    assert folder.find(first) is None
    assert folder.write(first, RECORDS) == Done(1, 1)
    folder.write(second, RECORDS[:1])
    assert folder.find(first) == Done(1, 1)
    assert folder.done() == {first: Done(1, 1), second: Done(1, 0)}
    folder.claim({"photos": ["p"], "by": "another"})  # the same photos: it goes on
    assert folder.record()["by"] == "another"
    with pytest.raises(ConfigError, match=r"holds the captions of p, not of q\."):
        folder.claim({"photos": ["q"]})
    assert folder.keep({second}) == 1
    assert folder.done() == {second: Done(1, 0)}


def test_a_folder_of_something_else_is_left_alone(here):
    with pytest.raises(ConfigError, match=r"holds \S+, which is of no run"):
        ShardFolder("p").claim({"photos": ["p"]})
    with pytest.raises(ConfigError, match="is a file"):
        ShardFolder("p/00.png").claim({"photos": ["p"]})
    with pytest.raises(ConfigError, match="no file system"):
        ShardFolder("noscheme://x").done()
    assert len(list(Path("p").rglob("*"))) == 42


def test_shards_are_a_table(here):
    folder = ShardFolder("captions")
    folder.claim({"photos": ["p"]})
    folder.write("0" * 16, RECORDS)
    folder.write("1" * 16, [RECORDS[0] | {"path": "c.png"}])
    found = list(read_table(Path("captions")))
    assert [one["path"] for one in found] == ["a.png", "b.png", "c.png"]
    assert found[0]["caption"] == "a dog"


def test_workers_that_do_not_fit_are_refused():
    assert _room(Workers(), {"CPU": 2.0}) == 2
    assert _room(Workers(count=1), {"CPU": 2.0}) == 1
    assert _room(Workers(cpus=2, gpus=0.5), {"CPU": 8.0, "GPU": 1.0}) == 2
    with pytest.raises(ConfigError, match="no room for a worker with 4 CPUs and 0 GPUs"):
        _room(Workers(cpus=4), {"CPU": 2.0})


# --- the cluster itself -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A captioner in ``run``, beside a data set in ``data`` and photos of all kinds in ``p``."""
    pytest.importorskip("ray", reason="ray is not installed")
    pytest.importorskip("lightning", reason="lightning is not installed")
    folder = tmp_path_factory.mktemp("cluster")
    tiny.draw_tiny(folder / "data")
    tiny.regard(
        "train", "data", "--encoder", "small", "--preset", "fast", "--out", "run", *tiny.QUICK,
        "--set", "train.epochs=1", cwd=folder,
    )  # fmt: skip
    (folder / "p").mkdir()
    for i in range(60):
        (folder / "p" / f"{i:02}.png").write_bytes(photo(i, size=(64, 48)))
    (folder / "p" / "broken.png").write_bytes(photo(99)[:60])
    (folder / "p" / "empty.jpg").write_bytes(b"")
    return folder


def told(record: dict) -> dict:
    """What a record says, without where it was written."""
    words = [(w["word"], round(w["log_probability"], 3)) for w in record.get("words") or []]
    return {k: v for k, v in record.items() if k not in ("words", "size", "modified")} | {
        "words": words
    }


def by_path(file: Path) -> dict[str, dict]:
    found = {record["path"]: told(record) for record in read_table(file)}
    assert len(found) == sum(1 for _ in read_table(file))
    return found


def killed(ends: float) -> int:
    """Kill one worker that has begun, as an out-of-memory killer does; its process."""
    while time.monotonic() < ends:
        for entry in Path("/proc").iterdir():
            try:
                name = (entry / "cmdline").read_bytes().rstrip(b"\0")
                ours = b"REGARD_TEST_CLUSTER=1" in (entry / "environ").read_bytes()
            except OSError:
                continue
            if ours and name.startswith(b"ray::") and b"_Called" in name and entry.name.isdigit():
                os.kill(int(entry.name), signal.SIGKILL)
                return int(entry.name)
        time.sleep(0.05)
    raise AssertionError("no worker began")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find workers")
def test_a_worker_that_is_killed_loses_nothing(model):
    """Captioned by two workers, one of them killed at work: as by one machine, then known."""
    tiny.regard("caption", "p", "--model", "run", "--out", "local.parquet", cwd=model, code=1)
    arguments = [
        "caption", "p", "--model", "run", "--engine", "ray", "--out", "shards", "--unit", "8",
        "--workers", "2", "--log", "json",
    ]  # fmt: skip
    running = subprocess.Popen(
        tiny.command(*arguments), cwd=model, text=True, stderr=subprocess.PIPE,
        env=tiny.environment(model, REGARD_TEST_CLUSTER="1"),
    )  # fmt: skip
    killed(time.monotonic() + 120)
    _, said = running.communicate(timeout=240)
    assert running.returncode == 1, said  # two photos are none
    events = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert events[0] == {"event": "begin", "photos": 62}
    assert events[-1]["captioned"] == 60
    assert sum(events[-1]["failed_by_reason"].values()) == 2
    assert by_path(model / "shards") == by_path(model / "local.parquet")

    shards = sorted(path.name for path in (model / "shards").iterdir())
    lost = next(name for name in shards if name.endswith("-0.parquet"))
    (model / "shards" / lost).unlink()
    count = int(lost.split("-")[1])
    again = tiny.regard(*arguments, "--dry-run", cwd=model, code=1).stderr
    assert json.loads(again.splitlines()[-1])["captioned"] == count
    again = tiny.regard(*arguments, cwd=model, code=1).stderr
    last = json.loads(again.splitlines()[-1])
    assert (last["captioned"], last["done_before"], last["failed"]) == (count, 60 - count, 2)
    assert sorted(path.name for path in (model / "shards").iterdir()) == shards
    found = tiny.regard("find", tiny_word(model), "shards", cwd=model)
    assert "p/" in found.stdout


def tiny_word(model: Path) -> str:
    """A word of some caption."""
    return next(r["caption"] for r in read_table(model / "shards") if r.get("caption")).split()[-1]


@pytest.mark.slow
def test_workers_fill_the_cache_that_one_machine_fills(model):
    """The features of two caches are the same to the last bit, an unreadable photo is named."""
    (model / "data/photos/23.png").write_bytes(b"")
    write_resnet(model / "E", ResNet(depth=18, channels=(8, 8, 8, 8)), ImageStatistics())
    arguments = ["features", "data", "--encoder", "E", "--image-size", "64"]
    one = tiny.regard(*arguments, "--cache", "one", cwd=model, code=2)
    two = tiny.regard(
        *arguments, "--cache", "two", "--engine", "ray", "--workers", "1", cwd=model, code=2
    )
    assert "23.png is empty" in one.stderr
    assert "23.png is empty" in two.stderr
    assert cached(model / "one") == cached(model / "two") != {}


def cached(root: Path) -> dict[str, bytes]:
    """The features of each photo, by its fingerprint."""
    from safetensors import safe_open

    found = {}
    for shard in root.rglob("*.safetensors"):
        with safe_open(shard, "np") as opened:
            names = json.loads(opened.metadata()["fingerprints"])
            rows = opened.get_tensor("features")
        found |= {
            name: np.ascontiguousarray(row).tobytes() for name, row in zip(names, rows, strict=True)
        }
    return found


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--gallery", "g", "--txt"], "--txt and --gallery cannot stand beside --engine ray"),
        ([], "no folder for the shards"),
        (["--out", "x", "--engine", "spark"], "--engine is 'spark', it must be local or ray."),
    ],
)
def test_what_a_cluster_cannot_do_is_refused(tmp_path, options, said):
    made = ["caption", "p", "--model", "run", "--engine", "ray", *options]
    assert said in tiny.regard(*made, cwd=tmp_path, code=2).stderr
