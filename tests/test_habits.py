"""What people expect of a command: completion, a version, colours, errors in one line."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

import regard as package
import tiny

ESCAPE = "\x1b["


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_commands_and_options(tmp_path, shell):
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # or it is the shell it runs in
    script = tiny.regard("--show-completion", shell, cwd=tmp_path, **named).stdout
    assert "_REGARD_COMPLETE" in script


def test_bash_is_told_the_commands(tmp_path):
    asked = {"_REGARD_COMPLETE": "complete_bash", "COMP_WORDS": "regard cap", "COMP_CWORD": "1"}
    assert tiny.regard(cwd=tmp_path, **asked).stdout.split() == ["caption"]
    asked |= {"COMP_WORDS": "regard caption --no-r", "COMP_CWORD": "2"}
    assert tiny.regard(cwd=tmp_path, **asked).stdout.split() == ["--no-repeat"]


def test_it_has_a_version(tmp_path):
    assert tiny.regard("--version", cwd=tmp_path).stdout == f"regard {package.__version__}\n"


def test_it_is_a_module_too(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "regard", "--version"], cwd=tmp_path, text=True,
        capture_output=True, check=True, env=tiny.environment(tmp_path),
    )  # fmt: skip
    assert done.stdout == f"regard {package.__version__}\n"


COMMANDS = (
    "caption", "compare", "data", "demo", "evaluate", "export", "features", "find", "gaze-check",
    "push", "report", "serve", "train",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_every_default(tmp_path, command):
    said = tiny.regard(command, "--help", cwd=tmp_path, COLUMNS="200").stdout
    assert said.startswith("Usage: regard")
    assert ESCAPE not in said
    if "--model" in said and command != "evaluate":
        assert re.search(r"--model .*regard-small", said.replace("\n", " "))
    if "--beam" in said:
        assert "[default: 3]" in said


def on_terminal(*arguments: object, cwd: Path, **variables: str) -> str:
    """What the command says where standard error is a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        tiny.command(*arguments), cwd=cwd, stderr=theirs, stdout=subprocess.DEVNULL,
        env=tiny.environment(cwd, TERM="xterm", **variables),
    )  # fmt: skip
    os.close(theirs)
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # it has ended
            break
        if not part:
            break
        said += part
    os.close(ours)
    done.wait(60)
    return said.decode()


def test_colours_are_for_terminals_alone(tmp_path):
    wrong = ("data", "check", "nowhere")
    assert ESCAPE in on_terminal(*wrong, cwd=tmp_path, NO_COLOR="")
    assert ESCAPE not in on_terminal(*wrong, cwd=tmp_path)
    assert ESCAPE not in tiny.regard(*wrong, cwd=tmp_path, code=2).stderr


def test_errors_are_one_line_and_debug_shows_where(tmp_path):
    said = tiny.regard("data", "check", "nowhere", cwd=tmp_path, code=2).stderr
    assert said.startswith("regard: ")
    assert said.count("\n") == 1
    shown = subprocess.run(
        tiny.command("--debug", "data", "check", "nowhere"), cwd=tmp_path, text=True,
        capture_output=True, check=False, env=tiny.environment(tmp_path),
    ).stderr  # fmt: skip
    assert "Traceback" in shown
    assert said.removeprefix("regard: ").strip()[:40] in shown


FAULTY = """
import sys
import regard.data.dataset
def faulty(*args, **kwargs): raise KeyError("some\\nname")
regard.data.dataset.read_dataset = faulty
from regard.cli import main
sys.argv = ["regard", *sys.argv[1:]]
main()
"""


def test_a_fault_of_its_own_is_one_line_too(tmp_path):
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", FAULTY, *options, "data", "check", "x"], cwd=tmp_path,
            text=True, capture_output=True, check=False, env=tiny.environment(tmp_path),
        )  # fmt: skip

    done = run()
    assert done.returncode == 3
    assert done.stderr == (
        "regard: KeyError: 'some\\nname'. This is a fault of regard's own. The same command after "
        "`regard --debug` shows where; please report that.\n"
    )
    assert "Traceback" in run("--debug").stderr
