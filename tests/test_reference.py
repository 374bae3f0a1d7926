"""The reference pages of the documentation are what the program says of itself."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from regard.config import PRESETS, describe_fields

ROOT = Path(__file__).parents[1]


def script():
    spec = importlib.util.spec_from_file_location("reference", ROOT / "scripts" / "reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


PAGES = script().pages()


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_as_python_scripts_reference_py_writes_them(name):
    written = (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8")
    assert written == PAGES[name]


def test_nothing_is_left_out():
    """Counted apart from the script: commands by their help, settings and presets by the config."""
    for name in ("caption", "data check", "gaze-check", "push", "train"):
        assert f"\n## regard {name}\n" in PAGES["commands.md"]
    for option in ("--fine-tune <int>", "--xmp-stem", "--meteor / --no-meteor", "--per-client"):
        assert f"- `{option}" in PAGES["commands.md"]
    for name, _ in describe_fields():
        assert f"- `{name}` " in PAGES["settings.md"]
    for name in PRESETS:
        assert f"\n### {name}\n" in PAGES["settings.md"]
