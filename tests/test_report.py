"""The report of a run: what it says, and what a browser makes of it."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tiny
from regard.apps.report import (
    choose_photos,
    entropy,
    gaze,
    loss_at,
    make_report,
    scores,
)
from regard.apps.report_page import check_place
from regard.data.dataset import read_dataset
from regard.describe import Caption, Decoding
from regard.errors import ConfigError
from regard.evaluation import Extras, evaluate_model
from regard.images import overlay_map
from regard.plots import curve_charts

HOSTILE = "<script>window.hit=1</script>"
HOSTILE_NAME = "<img src=x onerror=window.hit=1>.png"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set with a caption and a file name made to harm, and a run on it."""
    folder = tmp_path_factory.mktemp("report")
    data = tiny.draw_tiny(folder / "tiny")
    (data / "photos" / "13.png").rename(data / "photos" / HOSTILE_NAME)
    rows = [json.loads(line) for line in (data / "captions.jsonl").read_text().splitlines()]
    for row in rows:
        if row["split"] == "val":
            row["caption"] += HOSTILE
        if row["image"] == "photos/13.png":
            row["image"] = f"photos/{HOSTILE_NAME}"
    rows[0]["caption"] += HOSTILE  # of a training photo: its words are in the vocabulary
    (data / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.inside(
        "train", "tiny", "--preset", "scenes", *tiny.QUICK, "--set", "train.epochs=60",
        "--set", "train.learning_rate=5e-3", "--set", "train.batch_size=3", "--out", "run",
        cwd=folder,
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def report(place) -> Callable[..., str]:
    """A function that writes a report and returns its page."""
    dataset = read_dataset(place / "tiny")
    # METEOR's tables take seconds to read, each time.
    quick = functools.partial(evaluate_model, extras=Extras(meteor=False))

    def write(out: str, *runs: str, **options: Any) -> str:
        options = {"decoding": Decoding(beam=1), "cache": place / "cache"} | options
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("regard.apps.report.evaluate_model", quick)
            page = make_report([place / run for run in runs], dataset, place / out, **options)
        return page.read_text(encoding="utf-8")

    return write


@pytest.fixture(scope="module")
def alone(report) -> str:
    return report("alone", "run", photos=6)


@pytest.fixture(scope="module")
def pair(place, report) -> str:
    """The report of two runs, the second with other losses, settings and a name made to harm."""
    other = shutil.copytree(place / "run", place / "<b>$2")
    settings = json.loads((other / "settings.json").read_text())
    settings["settings"]["train"]["clip"] = 7.5
    (other / "settings.json").write_text(json.dumps(settings))
    (other / "machine.json").write_text('{"machine": {"cores": 64}, "versions": {"torch": "9.9"}}')
    return report("pair", "run", "<b>$2", photos=1)


def text_of(page: str) -> str:
    """What a reader of the page sees, roughly."""
    body = page.split("<body>", 1)[1].split("<script>", 1)[0]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", body))


def test_the_page_says_what_the_run_left(place, alone):
    text = text_of(alone)
    for part in (
        "Training", "Losses beside the original report", "Scores", "Captions of unseen photos",
        "Gaze", "Settings", "Words", "Data and machine",
    ):  # fmt: skip
        assert part in text
    first = (place / "run" / "log" / "steps.csv").read_text().splitlines()[1].split(",")
    assert f"0 9.89 {float(first[2]):.2f}" in text
    assert "11,000 2.60 –" in text
    assert "BLEU-4" in text
    assert "hidden_width 24" in text
    assert "6 photos of tiny, val" in text
    assert alone.count('class="card"') == 6
    assert alone.count("data:image/jpeg;base64,") == 6
    assert alone.count("<svg ") == 4
    linked = {Path(name).name for name in re.findall(r'href="(figures/[^"]+)"', alone)}
    assert linked == {file.name for file in (place / "alone" / "figures").iterdir()}
    assert {f"gaze-all-{n}.{e}" for n in range(1, 7) for e in ("png", "svg")} < linked


def test_the_page_asks_for_nothing_from_elsewhere(alone):
    loaded = re.findall(r'\b(?:src|srcset|action|data)="([^"]*)"', alone)
    loaded += re.findall(r'<link[^>]*href="([^"]*)"', alone)
    assert loaded
    assert {address.split(",")[0] for address in loaded} <= {"data:image/jpeg;base64", "data:"}
    assert not re.search(r"url\((?!#)", alone)
    assert "@import" not in alone


def test_what_is_made_to_harm_is_text(alone, pair):
    for page in (alone, pair):
        assert HOSTILE not in page
        assert HOSTILE_NAME not in page
        assert "<b>$2" not in page
        assert page.count("<script") == 1
        assert "&lt;script&gt;window.hit=1&lt;/script&gt;" in page
    assert "&lt;img src=x onerror=window.hit=1&gt;.png" in alone
    assert "&lt;b&gt;$2" in pair


def test_runs_stand_side_by_side(pair):
    text = text_of(pair)
    assert "Runs side by side" in text
    assert re.search(r"Settings that differ.*train\.clip 5 7\.5 \(not the preset’s\)", text)
    assert "All settings are the same" not in text
    assert re.search(r"torch \S+ 9\.9", text)
    assert "best" in text
    assert pair.count('class="card"') == 1
    assert pair.count('role="toolbar"') == 2


def test_a_run_without_a_model_gets_the_parts_it_has(place, report):
    young = shutil.copytree(place / "run", place / "young", ignore=lambda *_: ["model"])
    (young / "log" / "epochs.csv").unlink()
    text = text_of(report("young-report", "young"))
    assert "There is no model yet" in text
    assert "No epoch is finished yet" in text
    assert "Losses beside the original report" in text
    assert "hidden_width 24" in text
    assert "Captions of unseen photos" not in text
    both = text_of(report("young-and-old", "young", "run", photos=1))
    assert "There is no model yet" in both
    assert "Captions of unseen photos" in both
    (young / "log" / "steps.csv").unlink()
    assert "No iteration is logged yet" in text_of(report("young-report", "young"))


def test_a_report_is_replaced_and_nothing_else_is_touched(place, report):
    report("twice", "run", photos=4)
    out = place / "twice"
    mine = out / "figures" / "mine.txt"
    mine.write_text("mine")
    assert (out / "figures" / "gaze-best-2.png").exists()
    report("twice", "run", photos=1)
    assert mine.read_text() == "mine"
    assert not (out / "figures" / "gaze-best-2.png").exists()
    assert (out / "figures" / "gaze-best-1.png").exists()
    assert not [f for f in [*place.rglob("*.new")] if "cache" not in f.parts]

    mine = place / "other" / "index.html"
    mine.parent.mkdir()
    mine.write_text("<title>my page</title>")
    with pytest.raises(ConfigError, match="other exists and holds no report"):
        report("other", "run")
    assert mine.read_text() == "<title>my page</title>"
    with pytest.raises(ConfigError, match="holds no report"):
        check_place(mine)


def test_a_failure_leaves_the_old_report(place, report, monkeypatch):
    before = report("kept", "run", photos=1)

    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("regard.apps.report.origin", fail)
    with pytest.raises(RuntimeError):
        report("kept", "run", photos=1)
    assert (place / "kept" / "index.html").read_text(encoding="utf-8") == before
    assert not [f for f in place.iterdir() if f.name.endswith(".new")]


@pytest.mark.parametrize(
    ("runs", "options", "said"),
    [
        (["tiny"], {}, "tiny is no run: it has no settings.json"),
        (["run", "run"], {}, "run is given twice"),
        ([], {}, "Give the folder of a run"),
        (["run"], {"photos": 0}, "--photos is 0"),
    ],
)
def test_wrong_inputs_say_so(place, report, runs, options, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        report("never", *runs, **options)
    assert not (place / "never").exists()


def test_a_line_that_is_no_number_is_named(place, report):
    torn = shutil.copytree(place / "run", place / "torn")
    with (torn / "log" / "steps.csv").open("a") as stream:
        stream.write("999,9,2.5,1e-\n")
    with pytest.raises(ConfigError, match=r"steps\.csv holds something that is no number"):
        report("never", "torn")


def result(**values: float) -> dict[str, Any]:
    return {"photos": [{"id": id, "scores": {"CIDEr": v}} for id, v in values.items()]}


def test_the_best_the_middle_and_the_worst_are_chosen():
    ranked = result(**{f"p{i:02}": 20 - i for i in range(20)})
    assert choose_photos({"a": ranked}, 6) == [
        ("Best", ["p00", "p01"]), ("Middle", ["p09", "p10"]), ("Worst", ["p18", "p19"]),
    ]  # fmt: skip
    for count in range(1, 30):
        chosen = [id for _, ids in choose_photos({"a": ranked}, count) for id in ids]
        assert len(chosen) == len(set(chosen)) == min(count, 20)
    # Of two runs their mean counts, and equals stand by their ids.
    both = {"a": result(x=1, y=3, z=0), "b": result(x=3, y=1, z=9)}
    assert choose_photos(both, 9) == [("All, from best to worst", ["z", "x", "y"])]
    assert choose_photos({}, 3) == []


def test_a_loss_is_a_mean_over_the_batches_around():
    steps = [{"iteration": i, "loss": float(i)} for i in range(1010)]
    assert loss_at(steps, 0) == 0
    assert loss_at(steps, 100) == 100
    assert loss_at(steps, 1000) == np.mean(np.arange(975, 1010))
    assert loss_at(steps, 3000) is None
    assert loss_at([], 0) is None


def test_entropy_goes_from_one_region_to_all_alike():
    maps = np.zeros((3, 7, 7), np.float32)
    maps[0, 2, 3] = 1
    maps[1] = 1 / 49
    maps[2, 0, :2] = 0.5
    np.testing.assert_allclose(entropy(maps), [0, math.log(49), math.log(2)], atol=1e-6)


def caption(maps: np.ndarray) -> Caption:
    return Caption("a dog", ("a", "dog"), (-1.0, -2.0), maps, 0.0, False)


def test_flat_maps_are_called_flat(place, report, monkeypatch):
    flat, focused = np.full((2, 7, 7), 1 / 49), np.zeros((2, 7, 7))
    focused[:, 1, 1] = 1
    (one,) = gaze({"r": [caption(flat)] * 6})
    assert one["flat"]
    assert one["share"] == "100%"
    (one,) = gaze({"r": [caption(focused)] * 6})
    assert not one["flat"]
    assert one["covered"] == "1"
    mixed = np.stack([flat[0], focused[0]])  # "a" looks everywhere, "dog" at one place
    (one,) = gaze({"r": [caption(mixed)] * 6})
    assert [row["word"] for row in one["focused"]] == ["dog"]
    assert [row["word"] for row in one["spread"]] == ["a"]

    # A run whose decoder has learnt nothing looks nowhere in particular: the page must say so.
    monkeypatch.setattr("regard.apps.report.FLAT", -1.0)
    page = report("flat", "run", photos=1)
    assert page.count('class="warning"') == 2
    assert "nearly flat" in text_of(page)


def test_people_stand_beside_the_runs_and_the_best_is_marked():
    def scored(cider: float, **more: Any) -> dict[str, Any]:
        return {"scores": {"CIDEr": cider}, "settings": {"decoding": {"beam": 3}}} | more

    human = {"human": {"CIDEr": 0.9}, "diagnosis": {"mean length": 9.25, "words used": 31}}
    table = scores({"a": scored(0.5), "b": scored(0.61, **human)})
    assert table is not None
    assert table["rows"] == [
        {"name": "CIDEr", "values": [("0.500", False), ("0.610", True)], "human": "0.900"}
    ]
    assert [row["values"] for row in table["diagnosis"]] == [["–", "9.2"], ["–", "31"]]
    assert scores({}) is None


def test_charts_take_the_colours_of_the_page(tmp_path):
    steps = [{"iteration": i, "loss": 9 / (i + 1), "learning_rate": 1e-3} for i in range(300)]
    epochs = [{"epoch": 0, "train_loss": 3.0, "val_loss": 3.0, "CIDEr": 0.4}]
    runs = {"_a": (steps, epochs), HOSTILE: (steps, []), "$x$": ([], [])}
    charts = curve_charts(runs, tmp_path)
    assert list(charts) == ["batch-loss", "epoch-loss", "cider", "learning-rate"]
    for name, chart in charts.items():
        assert re.match(r'<svg viewBox="0 0 [\d.]+ [\d.]+">', chart)
        assert not re.search(r"#[0-9a-f]{6}", chart)
        assert "font-family" not in chart
        assert "<script" not in chart
        assert {"var(--ink)", "var(--run-1)"} <= set(re.findall(r"var\([^)]*\)", chart))
        assert "> _a<" in chart
        assert "> $x$<" in chart
        assert (tmp_path / f"{name}.png").exists()
        assert (tmp_path / f"{name}.svg").exists()
    rewarded = [{**step, "reward": 0.5} for step in steps]
    faults = [{**epochs[0], "cut_off": 0.1, "words_used": 90}]
    drawn = curve_charts({**runs, "rewarded": (rewarded, faults)}, tmp_path)
    assert list(drawn) == [*charts, "reward", "repeated", "cut-off", "words-used"]
    charts |= {name: drawn[name] for name in ("reward", "repeated", "cut-off", "words-used")}
    # Ids are the page's: no two charts may share one.
    ids = [id for chart in charts.values() for id in re.findall(r' id="([^"]*)"', chart)]
    assert len(ids) == len(set(ids)) > 0


# In a browser


@pytest.fixture
def visit(opened, place) -> Callable[..., Any]:
    """A function that opens a report; nothing may be asked for but the page."""

    def allowed(address: str) -> bool:
        return address.startswith(f"file://{place}") and address.endswith("/index.html")

    return lambda name, **options: opened(
        (place / name / "index.html").as_uri(), allowed=allowed, **options
    )


PIXELS = """canvas => Array.from(canvas.getContext('2d').getImageData(
    0, 0, canvas.width, canvas.height).data)"""


def test_a_word_lights_the_photo_where_it_looked(visit, alone):
    page = visit("alone")
    card = page.locator(".card").first
    view, canvas = card.locator(".view"), card.locator("canvas")
    words = card.locator(".words button")
    lit = re.compile("lit")
    assert lit.search(view.get_attribute("class")) is None

    words.nth(0).hover()
    first = canvas.evaluate(PIXELS)
    assert len(set(first)) > 2
    assert lit.search(view.get_attribute("class"))
    said = card.locator("output").inner_text()
    assert "probability" in said
    assert "nats" in said
    # Another map is another picture. (The word is given one: a tiny model's maps may be equal.)
    words.nth(1).evaluate("word => word.dataset.gaze = word.dataset.gaze.replace(/^\\d+/, 99999)")
    words.nth(1).hover()
    assert canvas.evaluate(PIXELS) != first
    page.mouse.move(0, 0)
    assert lit.search(view.get_attribute("class")) is None
    assert page.evaluate("window.hit") is None


def test_the_light_is_that_of_the_figures(visit, alone):
    page = visit("alone")
    card = page.locator(".card").first
    weights = np.random.default_rng(0).dirichlet(np.ones(12)).reshape(3, 4)
    seen = (0.1, 0.25, 0.85, 1.0)
    word = card.locator(".words button").first
    word.evaluate(
        """(word, [gaze, seen]) => Object.assign(word.closest('.said').dataset, {grid: '3 4', seen})
        && (word.dataset.gaze = gaze)""",
        [" ".join(str(w * 1e5) for w in weights.reshape(-1)), " ".join(map(str, seen))],
    )
    word.hover()
    canvas = card.locator("canvas")
    width, height = canvas.evaluate("canvas => [canvas.width, canvas.height]")
    shown = np.array(canvas.evaluate(PIXELS)).reshape(height, width, 4)
    sides = (width, height, width, height)
    light = overlay_map(weights, (width, height), tuple(np.multiply(seen, sides)))
    light /= light.max()
    cover = 0.84 * (1 - light) + 0.22 * light**2
    np.testing.assert_allclose(shown[:, :, 3], 255 * cover, atol=1)


def test_keys_move_along_a_caption_and_keep_a_word(visit, alone):
    page = visit("alone")
    card = page.locator(".card").first
    words = card.locator(".words button")
    view = card.locator(".view")
    page.keyboard.press("Tab")  # so that the focus is a keyboard's
    words.nth(0).focus()
    assert "lit" in view.get_attribute("class")
    page.keyboard.press("ArrowRight")
    assert words.nth(1).evaluate("word => word === document.activeElement")
    page.keyboard.press("Enter")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Tab")  # one stop for each caption: the next is no word of this one
    assert page.evaluate("document.activeElement.closest('.words')") is None
    assert "lit" in view.get_attribute("class")
    words.nth(1).focus()
    page.keyboard.press("Escape")
    assert "lit" not in view.get_attribute("class")
    assert words.nth(1).get_attribute("aria-pressed") == "false"


def test_a_phone_taps_and_scrolls_one_way_only(visit, alone, pair):
    for name in ("alone", "pair"):
        page = visit(name, viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        card = page.locator(".card").first
        word = card.locator(".words button").nth(1)
        word.tap()
        assert word.get_attribute("aria-pressed") == "true"
        assert "lit" in card.locator(".view").get_attribute("class")
        photo, canvas = (card.locator(each).bounding_box() for each in (".view img", "canvas"))
        assert photo == canvas
        word.tap()
        assert word.get_attribute("aria-pressed") == "false"


def luminance(colour: str) -> float:
    """Relative luminance of ``rgb(r, g, b)``, as the contrast rules of WCAG define it."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_day_and_night_have_contrast(visit, pair, scheme):
    page = visit("pair", color_scheme=scheme)
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert paper < 0.02 if scheme == "dark" else paper > 0.9
    checked = 0
    for selector in ("body", ".note", ".set", "svg text", ".files a", ".key", "summary"):
        properties = "fill" if selector == "svg text" else "color"
        ink = luminance(
            page.locator(selector).first.evaluate(f"e => getComputedStyle(e).{properties}")
        )
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, selector
        checked += 1
    assert checked == 7


def test_words_are_searched(visit, alone):
    page = visit("alone")
    page.get_by_text("All words, the most frequent first").click()
    listed = page.locator(".list")
    assert {"red", "circle"} <= set(listed.inner_text().split())
    page.get_by_label("Search").fill("RE")
    found = listed.inner_text().split()
    assert "red" in found
    assert all("re" in word for word in found)


def test_it_prints(visit, alone):
    page = visit("alone", color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert page.locator(".view img").first.is_visible()
    assert page.pdf().startswith(b"%PDF")


def test_without_scripts_the_figures_are_there(visit, place, alone):
    page = visit("alone", java_script_enabled=False)
    assert page.get_by_text("drawn in the figure linked beside").is_visible()
    assert not page.locator(".search").is_visible()
    link = page.locator(".files a[href*=gaze]").first.get_attribute("href")
    assert (place / "alone" / link).read_bytes().startswith(b"\x89PNG")


def test_everything_has_a_name_for_those_who_listen(visit, pair):
    page = visit("pair")
    nameless = page.evaluate(
        """[...document.querySelectorAll(`a, button, input, summary, img, [role=region], [role=img],
            [role=toolbar]`)].filter(e => !(e.getAttribute('aria-label') || e.alt || e.textContent
            || e.labels?.length)).map(e => e.outerHTML.slice(0, 80))"""
    )
    assert nameless == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate("document.documentElement.lang") == "en"
