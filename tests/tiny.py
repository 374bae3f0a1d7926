"""A tiny data set and the real commands, for journeys through the whole program."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from regard.cli import main

COLOURS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (40, 70, 220)}

# A training on it takes a second or two: an LSTM, and the encoder together with it.
QUICK = [
    "--set", "train.word_epochs=0",
    "--set", "decoder.kind=lstm",
    "--set", "decoder.start_state=zeros",
    "--set", "decoder.hidden_width=24",
    "--set", "decoder.attention_width=16",
    "--set", "decoder.embedding_width=12",
    "--set", "train.batch_size=8",
    "--set", "train.precision=float32",
]  # fmt: skip


def draw_tiny(folder: Path) -> Path:
    """24 photos of one coloured shape with two captions each, as a table with splits."""
    rows = []
    (folder / "photos").mkdir(parents=True)
    for i in range(24):
        colour = list(COLOURS)[i % 3]
        shape = ("circle", "square")[i // 3 % 2]
        photo = Image.new("RGB", (64, 48), (200, 200, 190))
        draw = ImageDraw.Draw(photo)
        box = (8 + i, 8, 36 + i, 36)
        (draw.ellipse if shape == "circle" else draw.rectangle)(box, fill=COLOURS[colour])
        name = f"photos/{i:02}.png"
        photo.save(folder / name)
        split = "train" if i < 12 else "val" if i < 18 else "test"
        for caption in (f"A {colour} {shape} .", f"There is a {shape} that is {colour} ."):
            rows.append({"image": name, "caption": caption, "split": split})
    (folder / "captions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def regard(
    *arguments: object, cwd: Path, code: int | None = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the real command; fail with its output if its exit code is not ``code``."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=environment(cwd, **variables), text=True,
        capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    if code is not None:
        assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr, done.stderr
    return done


def inside(
    *arguments: object, cwd: Path, code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """As :func:`regard`, but in this process, which has read torch already: it saves seconds.

    For what a command does once it runs. An exception that is not meant for people is raised here.
    """
    said, out, err = command(*arguments), io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", said)
        for name, value in environment(cwd, **variables).items():
            patch.setenv(name, value)
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as end,
        ):
            main()
    done = subprocess.CompletedProcess(said, end.value.code, out.getvalue(), err.getvalue())
    assert done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def command(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("regard")), *map(str, arguments)]


def environment(cwd: Path, **variables: str) -> dict[str, str]:
    return {
        **os.environ,
        "REGARD_CACHE": str(cwd / "cache"),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "NO_COLOR": "1",
        **variables,
    }
