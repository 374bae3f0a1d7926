from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Two processes of tests share the machine, and tensors here are tiny: threads would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos, captions and weights that some machines have."""
    folder = Path(os.environ.get("REGARD_SHARED", Path(__file__).parents[2] / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}; REGARD_SHARED names another folder")
    return folder


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), "")
    if not program:
        pytest.skip("there is no Chromium here")
    quiet = "--disable-gpu --no-first-run --disable-background-networking --disable-sync "
    quiet += "--disable-component-update" + (" --no-sandbox" if os.geteuid() == 0 else "")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=program, args=quiet.split())
        yield opened
        opened.close()
