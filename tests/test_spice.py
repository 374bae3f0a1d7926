"""SPICE: the program is fed and read rightly, and whatever it does ends in one clear line.

Its models are 384 MB and nowhere in the tests: a script called ``java`` plays it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from regard.errors import MissingExtraError, ScoreUnavailable
from regard.metrics.spice import spice

HYPOTHESES = [["a", "dog", "runs"], ["zwei", "hüte"], [], ["a", "cat"]]
REFERENCES = [[["a", "dog"], []], [["hüte"]], [["a", "man"]], [[], []]]
CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

# What is known of the program: arguments, input, output. It is German unless told otherwise.
PROGRAM = """
arguments = sys.argv[1:]
if arguments == ["-version"]:
    print('openjdk version "VERSION" 2024-01-16', file=sys.stderr)
    sys.exit()
with open("LOG", "w") as log:
    json.dump({"arguments": arguments, "folder": os.getcwd()}, log)
place = arguments.index("-jar") + 2
assert arguments[place + 1] == "-out"
given, made = json.load(open(arguments[place])), arguments[place + 2]
print("Parsing reference captions", file=sys.stderr)
results = [
    {"image_id": p["image_id"], "scores": {"All": {"f": len(p["test"].split()) / 10, "pr": None}}}
    for p in reversed(given)
]
text = json.dumps(results)
if "-Duser.language=en" not in arguments and os.environ.get("LANG", "").startswith("de"):
    text = text.replace("0.", "0,")
DEED
with open(made, "w") as file:
    file.write(text)
"""


class Play:
    """A machine with a package, its models and a Java of our making."""

    def __init__(self, root: Path) -> None:
        self.package = root / "packages" / "pycocoevalcap"
        self.lib = self.package / "spice" / "lib"
        self.bin, self.temp, self.log = root / "bin", root / "temp", root / "log.json"
        for folder in (self.lib, self.bin, self.temp):
            folder.mkdir(parents=True)
        (self.package / "__init__.py").touch()
        (self.package / "spice" / "spice-1.0.jar").touch()
        for name in CORENLP:
            (self.lib / name).touch()
        self.java()

    def java(self, deed: str = "", version: str = "1.8.0_402") -> None:
        text = PROGRAM.replace("VERSION", version).replace("LOG", str(self.log))
        self.script(f"#!{sys.executable}\nimport json, os, sys, time\n{text.replace('DEED', deed)}")

    def script(self, text: str) -> None:
        (self.bin / "java").write_text(text)
        (self.bin / "java").chmod(0o755)

    def files(self) -> set[Path]:
        return {*self.package.rglob("*")}


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After each test nothing may be left in the temporary folder or beside the program."""
    machine = Play(tmp_path)
    monkeypatch.delitem(sys.modules, "pycocoevalcap", raising=False)  # the real one goes before
    monkeypatch.syspath_prepend(machine.package.parent)
    monkeypatch.setenv("PATH", f"{machine.bin}:/usr/bin:/bin")
    monkeypatch.setattr(tempfile, "tempdir", str(machine.temp))
    before = machine.files()
    yield machine
    assert not list(machine.temp.iterdir())
    assert machine.files() <= before


def refusal(**settings: float) -> str:
    with pytest.raises(ScoreUnavailable) as error:
        spice(HYPOTHESES, REFERENCES, **settings)
    message = str(error.value)
    assert "\n" not in message
    assert "All other scores are unaffected" in message
    return message


def test_scores_are_those_of_the_program_in_the_order_of_the_photos(play):
    score = spice(HYPOTHESES, REFERENCES)
    np.testing.assert_array_equal(score.per_photo, [0.3, 0.2, 0, 0])
    assert score.corpus == pytest.approx(0.125)
    assert (score.name, score.engine) == ("SPICE", "spice-1.0.jar of pycocoevalcap")


def test_captions_without_words_are_not_sent(play):
    play.java("text = json.dumps([]); os.rename(arguments[place], LOG)".replace("LOG", "'../g'"))
    refusal()
    given = play.temp / "g"
    assert json.loads(given.read_text()) == [
        {"image_id": 0, "test": "a dog runs", "refs": ["a dog"]},
        {"image_id": 1, "test": "zwei hüte", "refs": ["hüte"]},
    ]
    given.unlink()
    play.java("sys.exit('never reached')")
    assert spice([[]], [[["a"]]]).corpus == 0


@pytest.mark.parametrize("language", ["de_DE.UTF-8", "C"])
def test_the_language_of_the_machine_does_not_matter(play, monkeypatch, language):
    monkeypatch.setenv("LANG", language)
    monkeypatch.setenv("LC_ALL", language)
    assert spice(HYPOTHESES, REFERENCES).per_photo[0] == 0.3


def test_it_runs_in_a_folder_of_its_own(play):
    spice(HYPOTHESES, REFERENCES)
    log = json.loads(play.log.read_text())
    assert Path(log["folder"]).parent == play.temp
    assert f"-Djava.io.tmpdir={log['folder']}" in log["arguments"]
    assert str(play.package / "spice" / "spice-1.0.jar") in log["arguments"]


def test_a_program_that_hangs_is_ended_with_all_it_started(play, tmp_path):
    survived = tmp_path / "survived"
    play.script(
        "#!/bin/sh\n"
        '[ "$1" = -version ] && echo \'java version "11.0.2"\' && exit\n'
        "echo Parsing test captions >&2\n"
        f"(sleep 2; touch {survived}) &\n"
        "wait\n"
    )
    started = time.monotonic()
    message = refusal(timeout_s=0.5)
    assert time.monotonic() - started < 1.8
    assert "ended after 0.5 s, within which 2 photos were not done" in message
    assert "Its last words: Parsing test captions" in message
    time.sleep(2)
    assert not survived.exists()


def test_a_program_that_dies_is_quoted(play):
    play.java(
        "print('Error: Could not score batched file input:', file=sys.stderr)\n"
        "print('java.lang.OutOfMemoryError: Java heap space', file=sys.stderr)\n"
        "print('\\tat edu.anu.spice.SpiceScorer.main(SpiceScorer.java:60)', file=sys.stderr)\n"
        "print('\\t... 3 more', file=sys.stderr)\n"
        "sys.exit(1)"
    )
    message = refusal()
    assert "failed with exit code 1" in message
    assert (
        "Its last words: Parsing reference captions | Error: Could not score batched file input: | "
        "java.lang.OutOfMemoryError: Java heap space. All" in message
    )


@pytest.mark.parametrize(
    "deed",
    [
        "text = '[{'",
        "text = '{}'",
        "text = 'null'",
        "text = '[1, 2]'",
        "text = json.dumps(results[:1])",
        "results[0]['scores'] = {}; text = json.dumps(results)",
        "results[0]['scores']['All']['f'] = None; text = json.dumps(results)",
        "results[0]['scores']['All']['f'] = float('nan'); text = json.dumps(results)",
        "results[0]['scores']['All']['f'] = 17; text = json.dumps(results)",
        "sys.exit()",
    ],
)
def test_garbage_is_refused(play, deed):
    play.java(deed)
    assert "ended well, but its result cannot be read" in refusal()


def test_all_that_is_missing_is_named_at_once(play, monkeypatch):
    for name in CORENLP:
        (play.lib / name).unlink()
    monkeypatch.setenv("PATH", str(play.temp))
    message = refusal()
    assert "there is no java on PATH (Install Java 8 to 14 and put it first on PATH)" in message
    assert f"{CORENLP[0]} and {CORENLP[1]} are missing in {play.lib}: download https://" in message


def test_a_single_missing_file_is_named(play):
    (play.lib / CORENLP[1]).unlink()
    assert f"here: {CORENLP[1]} is missing in {play.lib}" in refusal()


@pytest.mark.parametrize("version", ["17.0.15", "15", "21-ea"])
def test_a_java_that_is_too_young_is_refused_before_it_works_for_minutes(play, version):
    play.java(version=version)
    number = version[:2]
    assert f"is Java {number}, and the program writes its result by a part of Java" in refusal()
    assert not play.log.exists()


@pytest.mark.parametrize("version", ["1.8.0_402", "11.0.2", "14.0.2", "9"])
def test_a_java_that_is_old_enough_is_taken(play, version):
    play.java(version=version)
    assert spice(HYPOTHESES, REFERENCES).corpus > 0


def test_a_java_that_does_not_run_is_refused(play):
    play.script("#!/bin/sh\necho Unable to locate a Java Runtime. >&2\nexit 1\n")
    assert "does not run: Unable to locate a Java Runtime." in refusal()
    play.script("no program at all")
    assert "does not run: " in refusal()


def test_without_the_package_its_extra_is_named(play):
    (play.package / "spice" / "spice-1.0.jar").unlink()
    with pytest.raises(MissingExtraError, match=r"SPICE needs packages .*regard\[java\]"):
        spice(HYPOTHESES, REFERENCES)
