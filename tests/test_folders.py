"""Runs over photos: nothing stops them, nothing is lost or said twice, whatever happens."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import resource
import signal
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folders import Ear, Mute, draw, run, spelled
from regard.apps.journal import Journal, read_journal
from regard.apps.listeners import Json, Text, listener_of
from regard.apps.names import Photos
from regard.apps.photos import Outputs, Tally
from regard.apps.sidecars import TextBeside
from regard.apps.tables import read_table
from regard.errors import ConfigError, RegardError


def records(file: Path) -> dict[str, dict]:
    """By path; no photo has two."""
    made = list(read_journal(file))
    found = {one["path"]: one for one in made}
    assert len(found) == len(made)
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """``p`` with twelve photos."""
    monkeypatch.chdir(tmp_path)
    for i in range(12):
        draw(tmp_path / "p" / f"{i:02}.png", i)
    return tmp_path


def test_every_photo_has_its_caption(folder):
    ear = run(Photos(["p"]), Outputs(out=Path("c.jsonl")))
    found = records(Path("c.jsonl"))
    assert list(found) == list(ear.said) == [f"p/{i:02}.png" for i in range(12)]
    for path, made in found.items():
        with Image.open(path) as photo:
            wanted = spelled(photo.tobytes())
        assert made["caption"] == ear.said[path] == wanted.text
        assert [word["word"] for word in made["words"]] == list(wanted.words)
        assert (made["width"], made["height"]) == (12, 8)
    assert ear.total == ear.tally.captioned == ear.tally.seen == 12


# --- what can be wrong with a photo -----------------------------------------------------------


def hostile(folder: Path) -> dict[str, str | None]:
    """A folder of everything that people's folders have, and what each is called; none is good."""
    cases: dict[str, str | None] = {}

    def add(name: str, content: bytes | None, reason: str | None) -> None:
        cases[f"h/{name}"] = reason
        if content is not None:
            (folder / "h" / name).write_bytes(content)

    def saved(image: Image.Image, kind: str, **options) -> bytes:
        stream = io.BytesIO()
        image.save(stream, kind, **options)
        return stream.getvalue()

    (folder / "h").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    photo = Image.fromarray(pixels)
    jpeg = saved(photo, "JPEG")
    add("good.jpg", jpeg, None)
    add("truncated.jpg", jpeg[: len(jpeg) // 2], "damaged")
    add("truncated.png", saved(photo, "PNG")[:900], "damaged")
    add("empty.jpg", b"", "empty")
    add("text.jpg", b"This is no photo.\n", "not a photo")
    add("page.png", b"<!doctype html><title>404</title>", "not a photo")
    add("pdf.jpg", b"%PDF-1.7\n", "not a photo")
    add("png-inside.jpg", saved(photo, "PNG"), None)
    add("CAPITAL.JPG", jpeg, None)
    add("cmyk.jpg", saved(photo.convert("CMYK"), "JPEG"), None)
    deep = Image.fromarray(pixels[..., 0].astype("u2") * 257)
    add("sixteen-bit.png", saved(deep, "PNG"), None)
    add("palette.gif", saved(photo.convert("P"), "GIF"), None)
    add("clear.png", saved(photo.convert("RGBA"), "PNG"), None)
    add("grey.webp", saved(photo.convert("L"), "WEBP"), None)
    frames = [photo.rotate(90 * i).resize((60, 40)) for i in range(3)]
    moving = {"save_all": True, "append_images": frames[1:]}
    add("moving.gif", saved(frames[0], "GIF", **moving), None)
    add("moving.webp", saved(frames[0], "WEBP", **moving), None)
    add("one-pixel.png", saved(photo.crop((0, 0, 1, 1)), "PNG"), None)
    add("line.png", saved(photo.crop((0, 0, 60, 1)).resize((5000, 1)), "PNG"), None)
    bomb = Image.new("1", (30_000, 30_000))
    add("huge.png", saved(bomb, "PNG"), "too large")
    add("two\nlines.png", saved(photo, "PNG"), None)
    add("\x1b[31mred.png", saved(photo, "PNG"), None)
    add("<b>&amp;'\".png", saved(photo, "PNG"), None)
    add(" spaces .png", saved(photo, "PNG"), None)
    add("ünïcödé 写真.png", saved(photo, "PNG"), None)
    add(os.fsdecode(b"\xff\xfe.png"), saved(photo, "PNG"), None)
    add("é" * 120 + ".png", saved(photo, "PNG"), None)
    (folder / "h/x.png").mkdir()
    add("x.png", None, "a folder")
    (folder / "h/loop").symlink_to("../h")
    add("loop", None, "link loop")
    (folder / "h/gone.png").symlink_to("nowhere.png")
    add("gone.png", None, "missing")
    os.mkfifo(folder / "h/pipe.png")
    add("pipe.png", None, "no file")
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed")
    stream = io.BytesIO()
    heif.from_pillow(photo).save(stream)
    add("phone.heic", stream.getvalue(), None)
    add("broken.heic", stream.getvalue()[:200], "damaged")
    return cases


def test_nothing_stops_the_run(folder):
    cases = hostile(folder)
    ear = run(Photos(["h", "p"]), Outputs(out=Path("c.jsonl"), gallery=Path("g")))
    found = {one["path"]: one for one in read_journal(Path("c.jsonl"))}
    assert len(found) == len(cases) + 12
    for path, reason in cases.items():
        made = found[os.fsencode(path).decode("utf-8", "replace")]
        assert made.get("reason") == reason, made
        assert ("caption" in made) == (reason is None)
        assert (path in ear.said) == (reason is None)
        assert (path in ear.errors) == (reason is not None)
        if reason is not None:
            assert len(made["error"]) > 40
    wrong = [reason for reason in cases.values() if reason is not None]
    assert ear.tally.failed.total() == len(wrong)
    assert dict(ear.tally.failed) == {reason: wrong.count(reason) for reason in wrong}
    assert ear.tally.captioned == len(cases) - len(wrong) + 12
    for line in Path("c.jsonl").read_bytes().splitlines():
        json.loads(line.decode("utf-8"))
    again = run(Photos(["h", "p"]), Outputs(out=Path("c.jsonl")))
    assert again.tally.captioned == 0
    assert again.tally.known == ear.tally.captioned
    assert again.tally.failed == ear.tally.failed


def test_a_photo_that_vanishes_meanwhile_is_missing(folder):
    class Thief(Mute):
        def _prepare(self, photo):
            Path("p/11.png").unlink(missing_ok=True)
            return super()._prepare(photo)

    ear = run(Photos(["p"]), Outputs(out=Path("c.jsonl")), Thief())
    assert ear.errors["p/11.png"].reason == "missing"
    assert ear.tally.captioned == 11


def test_no_photo_at_all_is_an_error(folder):
    Path("nothing").mkdir()
    with pytest.raises(ConfigError, match="There is no photo in nothing"):
        run(Photos(["nothing"]))


# --- to go on ---------------------------------------------------------------------------------


def test_what_is_done_is_not_done_again_unless_it_changed(folder):
    outputs = Outputs(out=Path("c.jsonl"))
    first = run(Photos(["p"]), outputs)
    captioner = Mute()
    again = run(Photos(["p"]), outputs, captioner)
    assert (captioner.seen, again.tally.known, again.said) == (0, 12, {})
    draw(Path("p/03.png"), 99)
    draw(Path("p/new.png"), 100)
    changed = run(Photos(["p"]), outputs, captioner)
    assert list(changed.said) == ["p/03.png", "p/new.png"]
    found = records(Path("c.jsonl"))
    assert len(found) == 13
    assert found["p/03.png"]["caption"] == changed.said["p/03.png"] != first.said["p/03.png"]
    # Another captioner's captions are others.
    other = Mute(identity="other")
    assert run(Photos(["p"]), outputs, other).tally.captioned == other.seen == 13
    assert len(records(Path("c.jsonl"))) == 13
    # A photo that was damaged is tried again, and has one record.
    Path("p/04.png").write_text("no photo")
    assert run(Photos(["p"]), outputs, other).tally.failed == {"not a photo": 1}
    size = Path("c.jsonl").stat().st_size
    assert run(Photos(["p"]), outputs, other).tally.failed == {"not a photo": 1}
    assert Path("c.jsonl").stat().st_size == size
    draw(Path("p/04.png"), 5)
    assert list(run(Photos(["p"]), outputs, other).said) == ["p/04.png"]


def test_a_run_that_is_killed_loses_nothing_and_says_nothing_twice(folder, monkeypatch):
    """Twenty times SIGKILL, at random: then it is as if it had never been stopped."""
    for i in range(300):
        draw(folder / "many" / f"{i:03}.png", i)
    outputs = Outputs(out=Path("c.jsonl"), sidecars=(TextBeside(),))
    monkeypatch.setattr("regard.apps.photos._AT_ONCE", 5)
    chance = random.Random(7)
    stopped = []
    for _ in range(20):
        child = os.fork()
        if child == 0:
            run(Photos(["many"]), outputs, Mute(seconds=0.03))
            os._exit(0)
        killer = threading.Timer(chance.uniform(0.005, 0.12), os.kill, (child, signal.SIGKILL))
        killer.start()
        status = os.waitpid(child, 0)[1]
        killer.cancel()
        stopped.append(os.waitstatus_to_exitcode(status) == -signal.SIGKILL)
        done = list(read_journal(Path("c.jsonl"))) if Path("c.jsonl").exists() else []
        assert len({one["path"] for one in done}) == len(done)
    assert sum(stopped) >= 5
    before = len(done)
    captioner = Mute()
    run(Photos(["many"]), outputs, captioner)
    assert captioner.seen == 300 - before
    whole = Path("whole.jsonl")
    run(Photos(["many"]), Outputs(out=whole))
    assert records(Path("c.jsonl")) == records(whole)
    for path, made in records(whole).items():
        assert Path(path + ".txt").read_text() == made["caption"] + "\n"


def test_an_interrupted_run_keeps_what_it_captioned(folder):
    class Impatient(Mute):
        def _say(self, prepared, decoding):
            if self.seen:
                raise KeyboardInterrupt
            return super()._say(prepared, decoding)

    for i in range(60):
        draw(folder / "q" / f"{i:02}.png", i)
    outputs = Outputs(out=Path("c.jsonl"))
    with pytest.raises(KeyboardInterrupt):
        run(Photos(["q"]), outputs, Impatient())
    kept = records(Path("c.jsonl"))
    assert 0 < len(kept) < 60
    assert run(Photos(["q"]), outputs).tally.known == len(kept)


def test_a_torn_line_is_cut_off_and_other_files_are_left(folder):
    outputs = Outputs(out=Path("c.jsonl"))
    run(Photos(["p"]), outputs)
    whole = Path("c.jsonl").read_bytes()
    Path("c.jsonl").write_bytes(whole[:-9])
    assert run(Photos(["p"]), outputs).tally.known == 11
    assert Path("c.jsonl").read_bytes() == whole
    for text in ("my notes\n", '{"a": 1}\n', whole.decode() + "my notes\n{}\n"):
        Path("mine.jsonl").write_text(text)
        with pytest.raises(ConfigError, match=r"mine.jsonl exists, and line \d+ is no record"):
            run(Photos(["p"]), Outputs(out=Path("mine.jsonl")))
        assert Path("mine.jsonl").read_text() == text


def test_two_runs_do_not_write_one_file(folder):
    journal = Journal(Path("c.jsonl"))
    with pytest.raises(ConfigError, match="being written by another process"):
        run(Photos(["p"]), Outputs(out=Path("c.jsonl")))
    journal.close()
    run(Photos(["p"]), Outputs(out=Path("c.jsonl")))


def test_a_full_disk_is_an_error_and_loses_nothing(folder, monkeypatch):
    """As far as a process may write, which is where a full disk would stop it."""
    monkeypatch.setattr("regard.apps.photos._AT_ONCE", 2)
    outputs = Outputs(out=Path("c.jsonl"))
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        try:
            run(Photos(["p"]), outputs)
        except RegardError as error:
            os._exit(7 if "c.jsonl cannot be written: File too large" in str(error) else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    kept = records(Path("c.jsonl"))
    assert 0 < len(kept) < 12
    assert run(Photos(["p"]), outputs).tally.known == len(kept)
    assert len(records(Path("c.jsonl"))) == 12


@pytest.mark.parametrize("out", ["/proc/c.jsonl", "p/00.png/c.jsonl"])
def test_places_that_cannot_be_written_to_say_so(folder, out):
    with pytest.raises(RegardError, match=f"{Path(out).parent}.* cannot be written: "):
        run(Photos(["p"]), Outputs(out=Path(out)))


def test_a_dry_run_changes_nothing(folder):
    outputs = Outputs(out=Path("c.jsonl"), sidecars=(TextBeside(),), gallery=Path("g"))
    captioner = Mute()
    ear = run(Photos(["p"]), outputs, captioner, dry_run=True)
    assert ear.asked == [f"p/{i:02}.png" for i in range(12)]
    assert sorted(path.name for path in folder.iterdir()) == ["p"]
    run(Photos(["p"]), outputs)
    draw(Path("p/05.png"), 50)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    ear = run(Photos(["p"]), outputs, captioner, dry_run=True)
    assert (ear.asked, ear.tally.known, captioner.seen) == (["p/05.png"], 11, 0)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# --- tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_tables_hold_what_the_records_hold(folder, ending):
    if ending == ".parquet":
        pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    Path("p/03.png").write_text("no photo")
    out = Path("c").with_suffix(ending)
    run(Photos(["p"]), Outputs(out=out, alt=True))
    rows = {row["path"]: row for row in read_table(out)}
    made = records(Path(f"c{ending}.jsonl"))
    assert rows.keys() == made.keys()
    for path, row in rows.items():
        for name in row.keys() - {"words"}:
            assert str(row[name]) == str(made[path][name])
    assert rows["p/03.png"]["reason"] == "not a photo"
    if ending == ".csv":
        with out.open(newline="") as stream:
            assert len(list(csv.DictReader(stream))) == 12
    draw(Path("p/03.png"), 3)
    assert run(Photos(["p"]), Outputs(out=out, alt=True)).tally.known == 11
    assert {row["path"]: row for row in read_table(out)}["p/03.png"]["caption"]


def test_a_table_of_no_known_kind_is_refused(folder):
    with pytest.raises(ConfigError, match=r"c.xlsx ends in .xlsx. Records are written"):
        Outputs(out=Path("c.xlsx"))
    with pytest.raises(ConfigError, match="There is no file for the records"):
        Outputs(gallery=Path("g"))


# --- many ---------------------------------------------------------------------------------------


class Endless:
    """Names of one photo, so many that nothing may be kept of each."""

    given, lists, single, countable = ("many",), (), False, False

    def __init__(self, folder: Path, count: int) -> None:
        self.photo, self.count = draw(folder / "one.png", size=(2, 2)), count

    def __iter__(self):
        from regard.apps.names import Named

        for i in range(self.count):
            yield Named(f"{self.photo.parent}/{'./' * (i % 40)}one.png", 9, i)


def test_memory_does_not_grow_with_the_photos(tmp_path):
    def peak(count: int) -> int:
        tracemalloc.start()
        out = tmp_path / f"{count}.jsonl"
        ear = run(Endless(tmp_path, count), Outputs(out=out))
        assert ear.tally.captioned == count
        ear.said.clear()
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    class Deaf(Ear):
        def captioned(self, path, found, alt):
            pass

    peak(200)
    few, many = peak(400), peak(4000)
    # Eight bytes a photo for each of three arrays when the file is tidied, and a little air.
    assert many - few < 3600 * 100 + 200_000


# --- what is told -------------------------------------------------------------------------------


def test_a_log_of_json_has_a_line_an_event(folder):
    Path("p/03.png").write_text("no photo")
    stream = io.StringIO()
    listener = Json(captions=True, stream=stream)
    from regard.apps.photos import caption_photos
    from regard.describe import Decoding

    caption_photos(Mute(), Photos(["p"]), Decoding(), Outputs(), listener)
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "begin"
    assert events[0]["photos"] == 12
    assert kinds.count("captioned") == 11
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert (failed["path"], failed["reason"]) == ("p/03.png", "not a photo")
    assert events[-1]["event"] == "end"
    assert (events[-1]["captioned"], events[-1]["failed"], events[-1]["seen"]) == (11, 1, 12)
    assert events[-1]["failed_by_reason"] == {"not a photo": 1}


def test_a_person_reads_lines(folder, capsys):
    Path("p/\x1b[31mred.png").write_text("no photo")
    from regard.apps.photos import caption_photos
    from regard.describe import Decoding

    caption_photos(Mute(), Photos(["p"]), Decoding(), Outputs(), Text(captions=True))
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 12
    assert said.out.startswith("p/00.png: ")
    assert "\x1b" not in said.err
    assert "\\x1b[31mred.png is text, not a photo" in said.err
    assert said.err.endswith("12 captioned, 1 failed (1 not a photo)\n")
    caption_photos(Mute(), Photos(["p"]), Decoding(), Outputs(), Text(captions=True, quiet=True))
    quiet = capsys.readouterr()
    assert quiet.out == ""
    assert len(quiet.err.splitlines()) == 1
    with pytest.raises(ConfigError, match="--log is 'loud', it must be one of text, json, quiet"):
        listener_of("loud", captions=True, count=1)


def test_progress_is_told_every_few_seconds(monkeypatch):
    stream = io.StringIO()
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    listener = Json(captions=False, stream=stream)
    listener.begin(100)
    for i in range(100):
        now[0] += 0.5
        listener.going(Tally(captioned=i + 1))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["seen"] for event in events[1:]] == [20, 40, 60, 80, 100]
    assert {event["photos_per_second"] for event in events[1:]} == {2.0}
