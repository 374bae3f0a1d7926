"""Every command of every tutorial is run, as it stands on the page.

A page's ``sh`` blocks go to bash one after another, in a folder that holds what the page takes for
granted: photos, captions, an encoder, a captioner. Here those are tiny and drawn, and a program
``regard`` that comes first on the PATH adds settings to ``regard train``, and to nothing else, that
make the captioner tiny and its training an epoch long. So a page's words are tested, and that each
command works after those before it; how good captions become is not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import foreign
import tiny
from regard.data.scenes import draw_scenes
from regard.models.processors import ImageStatistics
from regard.models.resnet import ResNet
from regard.models.sources import write_resnet

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "tutorials"
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)

QUICK = """
    train.epochs=1 train.batch_size=8 train.precision=float32 train.warmup_steps=1 train.views=1
    decoder.hidden_width=24 decoder.attention_width=16 decoder.embedding_width=12
    validation.max_photos=4
""".split()
"""What the first ``regard`` of the PATH adds to ``regard train``."""

SHORTER = """#!/usr/bin/env bash
if [ "$1" = train ]; then
    exec "{regard}" "$@" {settings}
fi
exec "{regard}" "$@"
"""


def blocks(page: str, kind: str = "sh") -> list[str]:
    """The fenced blocks of a kind, in order."""
    return [found[3] for found in FENCE.finditer(page) if found[2] == kind]


# --- what the pages take for granted ----------------------------------------------------------


def an_encoder(folder: Path) -> None:
    """A ResNet-18 of a few random channels, in timm's layout."""
    with torch.random.fork_rng():
        torch.manual_seed(18)
        resnet = ResNet(depth=18, channels=(8, 8, 8, 16), patches=True)
    write_resnet(folder, resnet, ImageStatistics())


def scenes(folder: Path, count: int) -> list[tuple[Path, list[str]]]:
    """Drawn photos with their captions."""
    draw_scenes(folder, count=count, seed=0)
    lines = (folder / "scenes.jsonl").read_text().splitlines()
    return [(folder / s["image"], s["captions"]) for s in map(json.loads, lines)]


def nothing(place: Path) -> None:
    """What is needed comes with the package."""


def own_photos(place: Path) -> None:
    """Photos with a text beside each, as a person has them."""
    an_encoder(place / "E")
    folder = place / "my-photos"
    folder.mkdir()
    for i, (photo, captions) in enumerate(scenes(place / "drawn", 30), 1):
        photo.rename(folder / f"IMG_{i:04}.jpg")
        (folder / f"IMG_{i:04}.txt").write_text("\n".join(captions) + "\n")


def a_flickr8k(place: Path) -> None:
    """Flickr8k's files, with drawn photos."""
    an_encoder(place / "E")
    folder = place / "flickr8k"
    (folder / "Images").mkdir(parents=True)
    token = []
    names = []
    for photo, captions in scenes(place / "drawn", 20):
        names.append(photo.name)
        photo.rename(folder / "Images" / photo.name)
        token += [f"{photo.name}#{i}\t{caption}\n" for i, caption in enumerate(captions)]
    (folder / "Flickr8k.token.txt").write_text("".join(token))
    for split, part in {"train": names[:15], "dev": names[15:18], "test": names[18:]}.items():
        (folder / f"Flickr_8k.{split}Images.txt").write_text("".join(f"{n}\n" for n in part))


def encoders(place: Path) -> None:
    """Flickr8k, and a vision Transformer in transformers' layout."""
    pytest.importorskip("transformers", reason="transformers is not installed")
    a_flickr8k(place)
    foreign.save_backbone(place / "vit", "vit")


# --- the pages --------------------------------------------------------------------------------

PREPARED: dict[str, tuple[Callable[[Path], None], list[str], list[str]]] = {
    "caption-a-folder": (
        nothing,
        ["matplotlib"],
        ["alt.jsonl", "page/index.html", "album/holiday/beach.jpg.xmp", "gaze/dog.jpg.gaze.png"],
    ),
    "train-on-your-own-photos": (
        own_photos,
        ["matplotlib", "jinja2"],
        ["run/model/model.safetensors", "scores.json", "report/index.html", "gaze/*.gaze.png"],
    ),
    "reproduce-the-report": (
        a_flickr8k,
        ["matplotlib", "jinja2"],
        ["report/model/model.safetensors", "report.json", "fast.json", "page/index.html"],
    ),
    "add-an-encoder": (
        encoders,
        ["transformers"],
        [f"{run}/model/model.safetensors" for run in ("with-vit", "larger", "tuned")],
    ),
}
"""By page: what prepares its folder, what has to be installed, what must be there at the end."""


def test_every_page_is_prepared_and_in_the_navigation():
    pages = {page.stem for page in PAGES.glob("*.md")}
    assert pages == PREPARED.keys()
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert all(f"tutorials/{page}.md" in nav for page in pages)


@pytest.mark.slow
@pytest.mark.parametrize("name", PREPARED)
def test_the_commands_of_a_page_work(name, tmp_path):
    prepare, needed, made = PREPARED[name]
    for module in ["lightning", *needed]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    prepare(tmp_path)
    environment = with_shorter_trainings(tmp_path)
    found = blocks((PAGES / f"{name}.md").read_text(encoding="utf-8"))
    assert found
    for block in found:
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, text=True,
            capture_output=True, timeout=600, check=False,
        )  # fmt: skip
        said = f"{block}\nexit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.returncode == 0, said
        assert "Traceback" not in said
        print(said)  # read with pytest -s or -rP
    missing = [file for file in made if not list(tmp_path.glob(file))]
    assert missing == []


def with_shorter_trainings(place: Path) -> dict[str, str]:
    """The environment of the commands: first on its PATH is a ``regard`` that trains less."""
    program = place / "bin" / "regard"
    program.parent.mkdir()
    settings = " ".join(f"--set {setting}" for setting in QUICK)
    real = Path(sys.executable).with_name("regard")
    program.write_text(SHORTER.format(regard=real, settings=settings))
    program.chmod(0o755)
    path = os.pathsep.join([str(program.parent), str(real.parent), os.environ["PATH"]])
    return tiny.environment(place, PATH=path, COLUMNS="100")


@pytest.mark.parametrize("name", PREPARED)
def test_no_command_stands_where_it_is_not_run(name):
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    run = [line for block in blocks(page) for line in block.splitlines()]
    commands = re.findall(r"^ *(?:\$ )?(regard .*)$", page, re.MULTILINE)
    assert commands
    assert [line for line in commands if line not in run] == []


# --- the site ---------------------------------------------------------------------------------


def test_the_site_is_built_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed")
    pytest.importorskip("material", reason="mkdocs-material is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    fetched = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?:[^"]+)"', page)
    assert fetched == []
