"""What is built of the project is whole: it captions where nothing else of it is there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, the wheel made from the sdist as pip does."""
    pytest.importorskip("hatchling", reason="hatchling is not installed")
    out = tmp_path_factory.mktemp("built")
    build = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run([*build, "-t", "sdist"], cwd=ROOT, check=True, capture_output=True)
    (source,) = out.glob("*.tar.gz")
    with tarfile.open(source) as opened:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # from 3.11.4
        opened.extractall(out / "source", **safely)
    (inner,) = (out / "source").iterdir()
    subprocess.run([*build, "-t", "wheel"], cwd=inner, check=True, capture_output=True)
    return out


def test_the_wheel_holds_the_package_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    package = {n for n in names if not n.partition("/")[0].endswith(".dist-info")}
    kept = {"__pycache__"}
    source = {
        str(path.relative_to(ROOT / "src"))
        for path in (ROOT / "src" / "regard").rglob("*")
        if path.is_file() and not kept & set(path.parts)
    }
    assert package == source
    assert any(n.endswith("licenses/LICENSE") for n in names)
    assert wheel.stat().st_size < 26_000_000


def test_the_sdist_holds_what_it_takes_to_test(built):
    (source,) = built.glob("*.tar.gz")
    with tarfile.open(source) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {"README.md", "LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"} <= names


def test_the_wheel_captions_by_itself(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        opened.extractall(tmp_path / "there")
    shutil.copy(ROOT / "src" / "regard" / "box" / "photos" / "dog.jpg", tmp_path / "x.jpg")
    done = subprocess.run(
        [sys.executable, "-m", "regard", "caption", "x.jpg"], cwd=tmp_path, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "there"), "HF_HUB_OFFLINE": "1"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("x.jpg: ")
    assert not list(tmp_path.glob("there/regard/box/**/*.new"))
