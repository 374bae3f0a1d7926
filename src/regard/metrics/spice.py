"""SPICE, by the program of its authors.

Source: Anderson et al., "SPICE: semantic propositional image caption evaluation" (2016): a caption
and its references become graphs of objects, attributes and relations, and the score is the F-score
of the caption's tuples against the references'. The graphs come from a parser of English, so the
score cannot be had without that program, ``spice-1.0.jar`` of pycocoevalcap, which needs Java and
Stanford's CoreNLP 3.6.0. Nothing is downloaded here: who has not put CoreNLP in its place is told
how.

The program is run in a folder of its own that is gone afterwards. It runs without the cache of
graphs that it can keep: that cache is a native library for few machines, and saves nothing in a
single run. It parses a reference as often as it is given.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from regard.errors import MissingExtraError, ScoreUnavailable
from regard.metrics.score import Score, Tokens, check_photos

_ENGINE = "spice-1.0.jar of pycocoevalcap"
_CORENLP = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_ARCHIVE = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
_LAST_JAVA = 14
"""It writes its result by the JavaScript engine, which Java had until then: later ones parse for
minutes and then fail."""


def spice(
    hypotheses: Sequence[Tokens],
    references: Sequence[Sequence[Tokens]],
    *,
    timeout_s: float = 3600.0,
) -> Score:
    """SPICE, from 0 to 1; the corpus value is the mean over photos.

    A caption without words says nothing that could be right: its score is 0.

    Args:
        hypotheses: n captions.
        references: for each photo at least one.
        timeout_s: the program is ended after so many seconds. A thousand photos with five
            references take some minutes.

    Raises:
        DataError: the captions and references do not fit together.
        MissingExtraError: pycocoevalcap is not installed.
        ScoreUnavailable: Java or the models are missing, or the program failed.
    """
    check_photos(hypotheses, references)
    java, program = _find_program()
    each = np.zeros(len(hypotheses))
    asked = [i for i, said in enumerate(hypotheses) if said and any(references[i])]
    photos = [
        {
            "image_id": i,
            "test": " ".join(hypotheses[i]),
            "refs": [" ".join(reference) for reference in references[i] if reference],
        }
        for i in asked
    ]
    if photos:
        with tempfile.TemporaryDirectory(prefix="regard-spice-") as folder:
            each[asked] = _run(java, program, photos, Path(folder), timeout_s)
    return Score("SPICE", float(each.mean()), each, _ENGINE)


# --- what it needs ----------------------------------------------------------------------------


def _find_program() -> tuple[str, Path]:
    """Java and the program, once everything that they need is there."""
    package = find_spec("pycocoevalcap")
    places = package.submodule_search_locations if package is not None else None
    programs = [Path(place, "spice", "spice-1.0.jar") for place in places or ()]
    program = next(filter(Path.is_file, programs), None)
    if program is None:
        raise MissingExtraError("SPICE", "java")
    java, problem = _find_java()
    problems = [problem] if problem else []
    lib = program.parent / "lib"
    missing = [name for name in _CORENLP if not (lib / name).is_file()]
    if missing:
        problems.append(
            f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing in {lib}: "
            f"download {_ARCHIVE} (384 MB) and copy the two files there"
        )
    if problems:
        raise ScoreUnavailable(f"SPICE cannot run here: {'; '.join(problems)}. {_UNAFFECTED}")
    return java, program


_UNAFFECTED = "All other scores are unaffected."


def _find_java() -> tuple[str, str]:
    """The path of Java, and what is wrong with it, which is empty where nothing is."""
    wanted = f"Install Java 8 to {_LAST_JAVA} and put it first on PATH"
    java = shutil.which("java")
    if java is None:
        return "", f"there is no java on PATH ({wanted})"
    try:
        asked = subprocess.run(
            [java, "-version"],
            capture_output=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return java, f"{java} does not run: {error} ({wanted})"
    said = (asked.stderr + asked.stdout).decode(errors="replace")
    version = re.search(r'version "(?:1\.)?(\d+)', said)  # Java 8 calls itself 1.8
    if asked.returncode or version is None:
        return java, f"{java} does not run: {_last_lines(said)} ({wanted})"
    if int(version[1]) > _LAST_JAVA:
        return java, (
            f"{java} is Java {version[1]}, and the program writes its result by a part of Java "
            f"that was removed after version {_LAST_JAVA} ({wanted})"
        )
    return java, ""


# --- running it -------------------------------------------------------------------------------


def _run(
    java: str, program: Path, photos: Sequence[dict[str, Any]], folder: Path, timeout_s: float
) -> list[float]:
    """The scores of the photos, in their order."""
    given, made, errors = folder / "captions.json", folder / "scores.json", folder / "errors.txt"
    given.write_text(json.dumps(photos), encoding="utf-8")
    command = [
        java, "-Xmx8G",  # as its authors say
        # A decimal comma, or letters in another encoding, must not reach the program.
        "-Duser.language=en", "-Duser.country=US", "-Dfile.encoding=UTF-8",
        f"-Djava.io.tmpdir={folder}",
        "-jar", str(program), str(given), "-out", str(made), "-silent",
    ]  # fmt: skip
    code = _wait(command, folder, errors, timeout_s)
    last = _last_lines(errors.read_text(encoding="utf-8", errors="replace"))
    if code is None:
        raise ScoreUnavailable(
            f"SPICE was ended after {timeout_s:g} s, within which {len(photos)} photos were not "
            f"done. Its last words: {last}. Score fewer photos, or give it more time. {_UNAFFECTED}"
        )
    if code:
        raise ScoreUnavailable(
            f"SPICE's program failed with exit code {code}. Its last words: {last}. {_UNAFFECTED}"
        )
    try:
        rows = json.loads(made.read_text(encoding="utf-8"))
        values = {row["image_id"]: float(row["scores"]["All"]["f"]) for row in rows}
        found = [values[photo["image_id"]] for photo in photos]
        if not all(0 <= value <= 1 for value in found):  # nor NaN
            raise ValueError(f"{min(found)} to {max(found)} are no scores")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ScoreUnavailable(
            f"SPICE's program ended well, but its result cannot be read: {error!r}. Its last "
            f"words: {last}. {_UNAFFECTED}"
        ) from error
    return found


def _wait(command: Sequence[str], folder: Path, errors: Path, timeout_s: float) -> int | None:
    """Run a command to its end; none if it took too long. Nothing of it is left running."""
    # What it says goes into a file: nobody would read a pipe in time, and one that is kept open by
    # a process of its own could not be read to its end.
    with errors.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.returncode is None:
            # `java` may be a script that started the real one: all of its group must go.
            if hasattr(os, "killpg"):
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()
            process.wait()


def _last_lines(said: str) -> str:
    """The last lines as one, without the places in Java's code where an error passed."""
    lines = [line.strip() for line in said.splitlines()]
    lines = [line for line in lines if line and not re.match(r"at \S+\(|\.\.\. \d+ more", line)]
    return " | ".join(lines[-4:]) or "(none)"
