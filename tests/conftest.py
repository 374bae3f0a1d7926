from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Two processes of tests share the machine, and tensors here are tiny: threads would only wait.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = (
    "test_tutorials.py", "test_training.py", "test_cluster.py", "test_export.py", "test_scst.py"
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take longest come first: no process is left with one when the other has none."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


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


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Any]]:
    """A function that opens a page at an address, with options of a browser's context.

    Nothing else may be asked for than ``allowed`` says, and no error may come of it but those
    that have ``forgiven`` in their text.
    """
    contexts: list[Any] = []
    wrong: list[str] = []

    def open_page(
        address: str, *, allowed: Callable[[str], bool], forgiven: str | None = None, **options: Any
    ) -> Any:
        def judge(route: Any) -> None:
            if not allowed(route.request.url):
                wrong.append(route.request.url)
            route.continue_()

        def hear(said: Any) -> None:
            if said.type == "error" and (forgiven is None or forgiven not in said.text):
                wrong.append(said.text)

        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(10_000)
        context.route("**/*", judge)
        page = context.new_page()
        page.on("console", hear)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.goto(address)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []
