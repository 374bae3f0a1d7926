"""The page of captioned photos, in a browser."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from folders import draw, run
from regard.apps import gallery
from regard.apps.gallery import write_gallery
from regard.apps.journal import read_journal
from regard.apps.names import Photos
from regard.apps.photos import Outputs
from regard.errors import ConfigError

HOSTILE = "<img src=x onerror=window.hit=1></script>.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Photos of all shapes and one that is none, and their gallery ``page``."""
    folder = tmp_path_factory.mktemp("gallery")
    before = Path.cwd()
    os.chdir(folder)
    for i in range(30):
        draw(folder / "p" / f"{i:02}.png", i, [(60, 40), (40, 60), (50, 50)][i % 3])
    draw(folder / "p" / HOSTILE.replace("/", "∕"), 50)
    (folder / "p" / "bad.jpg").write_text("no photo")
    size, gallery.PART = gallery.PART, 8
    run(Photos(["p"]), Outputs(out=Path("c.jsonl"), alt=True, gallery=Path("page")))
    gallery.PART = size
    os.chdir(before)
    return folder


@pytest.fixture
def visit(opened, place) -> Callable[..., Any]:
    """A function that opens the page; nothing may be asked for but what is in its folder."""

    def visited(**options: Any) -> Any:
        page = opened(
            (place / "page" / "index.html").as_uri(),
            allowed=lambda address: address.startswith(f"file://{place}/page/"),
            **{"viewport": {"width": 900, "height": 700}, **options},
        )
        page.locator(".grid li").first.wait_for()
        return page

    return visited


def lit(page: Any, card: Any) -> list[float]:
    """How much light is on each of the 2 x 3 regions of a card's photo."""
    found: list[float] = card.locator("canvas").evaluate(
        """canvas => {
            const {width, height} = canvas, drawing = canvas.getContext("2d");
            return [0, 1].flatMap((y) => [0, 1, 2].map((x) => {
                const at = [Math.floor((x + .5) * width / 3), Math.floor((y + .5) * height / 2)];
                return 255 - drawing.getImageData(...at, 1, 1).data[3];
            }));
        }"""
    )
    return found


def shown(page: Any, count: int) -> None:
    """Wait until so many photos are there."""
    expect = pytest.importorskip("playwright.sync_api").expect
    expect(page.locator(".grid li")).to_have_count(count)


def test_a_word_lights_the_photo_where_it_looked(visit, place):
    page = visit()
    made = next(read_journal(place / "c.jsonl"))
    card = page.locator(".grid li").first
    words = card.locator(".words button")
    assert words.all_text_contents() == [word["word"] for word in made["words"]]
    view = card.locator(".view")
    assert not re.search("lit", view.get_attribute("class"))
    import base64

    import numpy as np

    maps = np.frombuffer(base64.b64decode(made["gaze"]["maps"]), np.uint8).reshape(-1, 6)
    for i in range(len(maps)):
        words.nth(i).hover()
        assert re.search("lit", view.get_attribute("class"))
        assert int(np.argmax(lit(page, card))) == int(maps[i].argmax())
    page.mouse.move(0, 0)
    assert not re.search("lit", view.get_attribute("class"))
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    assert int(np.argmax(lit(page, card))) == int(maps[1].argmax())


def test_all_photos_come_as_the_page_is_scrolled(visit):
    page = visit(viewport={"width": 500, "height": 400})
    seen = page.locator(".grid li").count()
    assert seen < 32
    for _ in range(40):
        page.mouse.wheel(0, 3000)
        page.wait_for_timeout(20)
    shown(page, 32)
    assert page.locator("output").text_content() == "32 photos, 1 failed"
    assert page.locator(".failed").text_content().startswith("not a photo")


def test_captions_and_names_are_searched(visit, place):
    page = visit()
    made = [one for one in read_journal(place / "c.jsonl") if "caption" in one]
    word = made[20]["words"][0]["word"]
    wanted = [
        one["path"] for one in made
        if word in f"{one['caption']} {one['alt_text']} {one['path']}".lower()
    ]  # fmt: skip
    page.get_by_role("searchbox").fill(word)
    shown(page, len(wanted))
    assert page.locator(".foot a").all_text_contents() == wanted
    page.get_by_role("searchbox").fill("07.png")
    shown(page, 1)
    page.get_by_role("searchbox").fill("zebra")
    page.get_by_text("Nothing is found.").wait_for()
    page.get_by_role("searchbox").fill("")
    page.get_by_label("failed only").check()
    shown(page, 1)


def test_names_and_captions_do_no_harm(visit):
    page = visit()
    page.get_by_role("searchbox").fill("onerror")
    shown(page, 1)
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert "<img src=x" in page.locator(".foot a").text_content()


def test_everything_has_a_name_and_fits_a_phone(visit, place):
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    for image in page.locator("img").all()[:5]:
        assert image.get_attribute("alt").endswith(".")
    assert page.locator(".mark").first.text_content() == "machine-made, unreviewed"
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    page.locator(".words button").nth(1).tap()
    assert page.locator(".view").first.get_attribute("class") == "view lit"
    link = page.locator(".foot a").first.get_attribute("href")
    assert (place / "page" / link).resolve() == place / "p" / "00.png"


# --- the folder ---------------------------------------------------------------------------------


def test_it_is_renewed_and_other_folders_are_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(3):
        draw(tmp_path / "p" / f"{i}.png", i)
    outputs = Outputs(out=Path("c.jsonl"), gallery=Path("g"))
    run(Photos(["p"]), outputs)
    first = {file: file.stat().st_mtime_ns for file in Path("g").rglob("*.jpg")}
    draw(Path("p/1.png"), 9)
    run(Photos(["p"]), outputs)
    second = {file: file.stat().st_mtime_ns for file in Path("g").rglob("*.jpg")}
    assert len(first.items() & second.items()) == 2  # what is unchanged is not made again
    assert len(second) == 3
    shutil.rmtree("p")
    assert write_gallery(Path("g"), read_journal(Path("c.jsonl"))) == 3
    assert len(list(Path("g").rglob("*.jpg"))) == 3  # pictures of photos that are gone stay
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ConfigError, match="mine exists and holds no gallery"):
        write_gallery(tmp_path / "mine", [])
    assert json.loads(Path("c.jsonl").read_text().splitlines()[0])["gaze"]["grid"] == [2, 3]
