"""The HTTP API and the web page: over a real server, and in a browser."""

from __future__ import annotations

import concurrent.futures
import contextlib
import io
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tiny
from folders import Mute, photo, spelled
from regard.apps.alt_text import alt_text
from regard.apps.serve import Limits, _named, start
from regard.apps.serve.batching import Batcher, QueueFullError
from regard.apps.serve.schema import Settings
from regard.describe import Decoding
from regard.errors import ConfigError

application = pytest.importorskip(
    "regard.apps.serve.application", reason="the extra web is not installed"
)
httpx = pytest.importorskip("httpx", reason="httpx is not installed")
uvicorn = pytest.importorskip("uvicorn", reason="uvicorn is not installed")


class Slow(Mute):
    """Waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.batches: list[int] = []

    def wait_until_busy(self) -> None:
        """What comes now waits together."""
        while not self.batches:
            time.sleep(0.01)

    def _say(self, prepared, decoding):
        self.batches.append(len(prepared))
        assert self.go_on.wait(20)
        return super()._say(prepared, decoding)


def pixels_of(content: bytes) -> bytes:
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


@contextlib.contextmanager
def served(captioners: dict[str, Any], **limits: float) -> Iterator[str]:
    """The address of a server in a thread of its own."""
    app = application.build_application(captioners, Limits(**limits))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served({"mute": Mute(), "other": Mute()}, megabytes=0.2, megapixels=1) as found:
        yield found


PNG = {"Content-Type": "image/png"}


def post(address: str, content: bytes, query: str = "", **headers: str) -> Any:
    asked = {**PNG, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return httpx.post(f"{address}/v1/captions{query}", content=content, headers=asked, timeout=20)


def test_a_photo_gets_its_caption(address):
    answer = post(address, photo(1))
    assert answer.status_code == 200
    said = answer.json()
    wanted = spelled(pixels_of(photo(1)))
    (caption,) = said["captions"]
    assert (said["model"], said["width"], said["height"]) == ("mute", 30, 20)
    assert said["seen"] == [0, 0, 30, 20]
    assert caption["text"] == wanted.text
    assert caption["alt_text"] == alt_text(wanted.text)
    assert [word["word"] for word in caption["words"]] == list(wanted.words)
    np.testing.assert_allclose([word["gaze"] for word in caption["words"]], wanted.maps, atol=1e-5)
    assert post(address, photo(1), "?model=other&gaze=false").json()["model"] == "other"
    without = post(address, photo(1), "?gaze=false").json()["captions"][0]["words"]
    assert {word["gaze"] for word in without} == {None}
    for kind, name in (("JPEG", "jpeg"), ("WEBP", "webp"), ("GIF", "gif"), ("BMP", "bmp")):
        assert post(address, photo(1, kind=kind), Content_Type=f"image/{name}").is_success


def test_settings_are_those_of_the_library():
    assert set(Settings.model_fields) - {"model", "gaze"} == {f.name for f in fields(Decoding)}
    assert Settings().decoding() == Decoding()
    changed = Settings(beam=4, groups=2, forbid=["a b"], top_p=0.5, no_repeat=2, prefix="a")
    assert changed.decoding() == Decoding(
        beam=4, groups=2, forbid=("a b",), top_p=0.5, no_repeat=2, prefix="a"
    )


@pytest.mark.parametrize(
    ("content", "query", "headers", "status", "said"),
    [
        (photo(size=(2000, 600)), "", {}, 413, "more than 0.2 MB"),
        (photo(size=(40, 40)), "", {"Content_Type": "text/plain"}, 415, "type is text/plain"),
        (b"no photo", "", {}, 415, "is text, not a photo"),
        (b"%PDF-1.7", "", {}, 415, "a PDF document"),
        (b"", "", {}, 422, "is empty"),
        (photo()[:300], "", {}, 422, "cannot be decoded"),
        (photo(), "?beam=0", {}, 422, "beam: input should be greater than or equal to 1"),
        (photo(), "?groups=2", {}, 422, "groups is 2, it must be a divisor of the beam"),
        (photo(), "?bean=3", {}, 422, "bean: extra inputs are not permitted"),
        (photo(), "?model=none", {}, 422, "no model 'none' here. There is mute, other"),
        (photo(), "?forbid=.", {}, 422, "must be at least one word"),
    ],
)
def test_what_is_wrong_is_said_in_one_form(address, content, query, headers, status, said):
    answer = post(address, content, query, **headers)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert set(answer.json()["error"]) == {"code", "message"}
    assert said in answer.json()["error"]["message"]


def test_a_photo_of_too_many_pixels_is_not_decoded(address):
    stream = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(stream, "PNG")
    assert len(stream.getvalue()) < 200_000
    answer = post(address, stream.getvalue())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "too_large")


def test_a_body_without_a_length_is_counted(address):
    def endless() -> Iterator[bytes]:
        for _ in range(1000):
            yield b"x" * 10_000

    with contextlib.suppress(httpx.WriteError, httpx.ReadError):
        answer = httpx.post(f"{address}/v1/captions", content=endless(), headers=PNG)
        assert answer.status_code == 413


def test_a_slow_upload_is_given_up():
    with served({"mute": Mute()}, seconds=0.3) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                b"POST /v1/captions HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
                b"Content-Length: 100\r\n\r\nabc"
            )
            assert b"408" in connection.recv(4096).split(b"\r\n")[0]


def test_pages_of_other_sites_get_nothing(address):
    strange = httpx.get(f"{address}/health", headers={"Host": "evil.example"})
    assert strange.status_code == 400
    asked = httpx.options(
        f"{address}/v1/captions",
        headers={"Origin": "https://evil.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "content-type"},
    )  # fmt: skip
    assert "access-control-allow-origin" not in asked.headers
    page = httpx.get(address)
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["x-frame-options"] == "DENY"
    assert re.search(r"script-src 'sha256-[\w+/=]+';", page.text)
    for content in (b"/etc/passwd", b"http://localhost/x.png", b"file:///etc/passwd"):
        assert post(address, content).status_code == 415  # no path or address is followed


def test_health_metrics_and_the_document(address):
    health = httpx.get(f"{address}/health").json()
    assert health["status"] == "ok"
    assert health["models"] == [{"name": "mute", "gaze": True}, {"name": "other", "gaze": True}]
    before = _count(address, 'regard_requests_total{path="/v1/captions",status="200"}')
    post(address, photo(2))
    after = _count(address, 'regard_requests_total{path="/v1/captions",status="200"}')
    assert after == before + 1
    assert _count(address, "regard_batch_photos_count") > 0
    assert _count(address, 'regard_waiting_photos{model="mute"}') == 0
    document = httpx.get(f"{address}/openapi.json").json()
    answers = document["paths"]["/v1/captions"]["post"]["responses"]
    assert set(answers) == {"200", "400", "408", "413", "415", "422", "429", "503"}
    assert httpx.get(f"{address}/docs").status_code == 404


def _count(address: str, name: str) -> float:
    for line in httpx.get(f"{address}/metrics").text.splitlines():
        if line.startswith(name + " "):
            return float(line.rsplit(" ", 1)[1])
    return 0.0


# --- many at once -------------------------------------------------------------------------------


def test_what_waits_together_is_one_batch_and_each_gets_its_own():
    slow = Slow()
    with (
        served({"slow": slow}, queue=40, per_client=40, batch=8) as address,
        concurrent.futures.ThreadPoolExecutor(24) as clients,
    ):
        answers = [clients.submit(post, address, photo(0))]
        slow.wait_until_busy()
        answers += [clients.submit(post, address, photo(i)) for i in range(1, 21)]
        answers += [clients.submit(post, address, photo(i), "?beam=1") for i in range(3)]
        while _count(address, 'regard_waiting_photos{model="slow"}') < 23:
            time.sleep(0.02)
        slow.go_on.set()
        said = [answer.result().json()["captions"][0]["text"] for answer in answers]
    assert said == [spelled(pixels_of(photo(i))).text for i in (*range(21), *range(3))]
    assert sorted(slow.batches[1:]) != [1] * 23
    assert max(slow.batches) <= 8
    assert sum(slow.batches) == 24
    assert len(slow.batches) <= 6  # 1, then 20 or so in batches of at most 8, then those of beam 1


@pytest.mark.parametrize(
    ("limits", "accepted", "status", "code"),
    [
        ({"queue": 2, "per_client": 16}, 3, 503, "busy"),
        ({"queue": 16, "per_client": 4}, 4, 429, "too_many_requests"),
    ],
)
def test_too_many_are_sent_away_and_told_when_to_come_back(limits, accepted, status, code):
    slow = Slow()
    with (
        served({"slow": slow}, **limits) as address,
        concurrent.futures.ThreadPoolExecutor(12) as clients,
    ):
        answers = [clients.submit(post, address, photo(0))]
        slow.wait_until_busy()
        answers += [clients.submit(post, address, photo(i)) for i in range(1, accepted)]
        while _count(address, 'regard_waiting_photos{model="slow"}') < accepted - 1:
            time.sleep(0.02)
        refused = [clients.submit(post, address, photo(i)).result() for i in range(5)]
        slow.go_on.set()
        assert [answer.result().status_code for answer in answers] == [200] * accepted
    for answer in refused:
        assert answer.status_code == status
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["code"] == code


def test_a_caption_that_takes_too_long_is_given_up_and_not_computed():
    slow = Slow()
    with served({"slow": slow}, seconds=0.4) as address:
        with concurrent.futures.ThreadPoolExecutor(2) as clients:
            first = clients.submit(post, address, photo(0))
            slow.wait_until_busy()
            second = clients.submit(post, address, photo(1))
            for answer in (first, second):
                assert answer.result().status_code == 503
                assert answer.result().json()["error"]["code"] == "too_slow"
        slow.go_on.set()
        assert post(address, photo(3)).status_code == 200
    assert sum(slow.batches) == 2  # the second was taken out of the queue


def test_an_error_of_one_batch_is_no_error_of_the_next():
    class Broken(Mute):
        def _say(self, prepared, decoding):
            if decoding.beam == 1:
                raise ConfigError("beam 1 is broken")
            return super()._say(prepared, decoding)

    with served({"broken": Broken()}) as address:
        answer = post(address, photo(), "?beam=1")
        assert (answer.status_code, answer.json()["error"]["message"]) == (422, "beam 1 is broken")
        assert post(address, photo()).status_code == 200


def test_a_closed_batcher_takes_nothing():
    batcher = Batcher(Mute())
    image = Image.new("RGB", (4, 4))
    assert batcher.submit(batcher.captioner.prepare(image), Decoding()).result(5).text
    batcher.close()
    assert not batcher.alive
    with pytest.raises(QueueFullError):
        batcher.submit(batcher.captioner.prepare(image), Decoding())


# --- against its document -----------------------------------------------------------------------


def test_it_keeps_to_its_document(address, tmp_path):
    """Hundreds of requests, made from the OpenAPI document, good and bad."""
    pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{address}/openapi.json",
         "--max-examples", "25", "--seed", "1", "--checks", "all", "--exclude-checks",
         "positive_data_acceptance", "--no-color"],
        capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    assert re.search(r"\d{2,} generated", done.stdout), done.stdout


# --- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("serve")
    tiny.draw_tiny(folder / "tiny")
    tiny.inside("train", "tiny", "--preset", "scenes", *tiny.QUICK, "--set", "train.epochs=20",
                "--set", "train.learning_rate=5e-3", "--out", "run", cwd=folder)  # fmt: skip
    return folder


def test_the_command_serves_what_the_command_line_says(trained):
    photos = sorted((trained / "tiny" / "photos").iterdir())[:12]
    tiny.inside("caption", "tiny/photos", "--model", "run", "--out", "all.jsonl", cwd=trained)
    lines = (trained / "all.jsonl").read_text().splitlines()
    wanted = {Path(made["path"]).name: made["caption"] for made in map(json.loads, lines)}
    command = tiny.command("serve", "--model", "run", "--model", "b=run", "--port", "0")
    with subprocess.Popen(
        command, cwd=trained, env=tiny.environment(trained), stdout=subprocess.PIPE, text=True
    ) as running:
        try:
            address = running.stdout.readline().split()[-1].rstrip("/")
            with concurrent.futures.ThreadPoolExecutor(6) as clients:
                answers = clients.map(lambda file: post(address, file.read_bytes()), photos)
                for file, answer in zip(photos, answers, strict=True):
                    assert answer.json()["captions"][0]["text"] == wanted[file.name]
            both = post(address, photos[0].read_bytes(), "?model=b&count=3").json()
            assert len(both["captions"]) == 3
        finally:
            running.terminate()
    assert running.returncode in (0, -15)


def test_wrong_uses_of_the_command_say_so(trained):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = tiny.regard("serve", "--model", "run", "--port", port, cwd=trained, code=2)
    assert f"127.0.0.1:{port} cannot be listened at" in done.stderr
    with pytest.raises(ConfigError, match="Two models are called 'run'"):
        start(["a/run", "b/run/model"], Limits(), host="", port=0, names=(), revision=None,
              encoder=None, device="cpu", say=print)  # fmt: skip
    assert _named("x=a/b") == ("x", "a/b")
    assert _named("user/model") == ("user", "user/model")
    assert _named("./runs/first/") == ("first", "./runs/first/")
    assert "image/jpeg" in application.TYPES


# --- in a browser -------------------------------------------------------------------------------


@pytest.fixture
def page(opened, address, request) -> Any:
    """The page; nothing may be asked for elsewhere, and it may refuse what is no photo."""
    options = getattr(request, "param", {})
    return opened(
        address, allowed=lambda asked: asked.startswith(address), forgiven="415", **options
    )


def give(page: Any, *contents: bytes) -> None:
    page.set_input_files(
        "#files",
        [
            {"name": f"{i}.png", "mimeType": "image/png", "buffer": c}
            for i, c in enumerate(contents)
        ],
    )


def test_a_photo_is_given_read_and_looked_through(page):
    give(page, photo(5))
    wanted = spelled(pixels_of(photo(5)))
    words = page.locator(".words button")
    words.first.wait_for()
    assert words.all_text_contents() == list(wanted.words)
    assert page.locator(".alt").text_content().startswith(alt_text(wanted.text))
    assert page.locator(".view img").get_attribute("alt") == alt_text(wanted.text)
    lights = []
    for i in range(2):
        words.nth(i).hover()
        page.locator(".view.lit").wait_for()
        lights.append(
            page.locator("canvas").evaluate(
                """canvas => [0, 1].flatMap((y) => [0, 1, 2].map((x) => 255 - canvas.getContext(
                    "2d").getImageData((x + .5) * canvas.width / 3, (y + .5) * canvas.height / 2,
                    1, 1).data[3]))"""
            )
        )
        assert int(np.argmax(lights[-1])) == int(wanted.maps[i].argmax())
        assert "probability 0.61" in page.locator(".readout").text_content()
    assert lights[0] != lights[1]
    words.first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert words.nth(1).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    assert page.locator(".view.lit").count() == 0
    assert page.locator("[role=status]").text_content() == f"0.png: {alt_text(wanted.text)}"


def test_several_photos_and_one_that_is_none(page):
    give(page, photo(1), b"no photo", photo(2))
    page.locator(".words").nth(1).wait_for()
    page.locator(".error").wait_for()
    assert page.locator(".name").all_text_contents() == ["0.png", "1.png", "2.png"]
    assert "is text, not a photo" in page.locator(".error").text_content()
    page.locator(".card").nth(1).get_by_role("button", name="Remove").click()
    assert page.locator(".card").count() == 2


def test_settings_go_with_the_photo(page):
    give(page, photo(3))
    page.locator(".words").wait_for()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.locator("summary").click()
    page.locator("[name=model]").select_option("other")
    page.locator("[name=sampling]").select_option("true")
    assert not page.locator("[name=beam]").is_visible()
    page.get_by_label("Temperature").fill("0.5")
    page.get_by_label("Never say").fill("red shirt, man")
    with page.expect_response("**/v1/captions*"):
        page.get_by_role("button", name="Caption again").click()
    query = httpx.URL(asked[-1]).params
    assert query.get_list("forbid") == ["red shirt", "man"]
    assert (query["model"], query["sampling"], query["temperature"]) == ("other", "true", "0.5")
    assert "beam" not in query


def test_photos_are_dropped_and_pasted(page):
    page.evaluate(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "given.png", {type: "image/png"}));
            dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
            dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
        }""",
        list(photo(8)),
    )
    page.locator(".words").nth(1).wait_for()
    assert page.locator(".name").all_text_contents() == ["given.png", "given.png"]


@pytest.mark.parametrize(
    "page", [{"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}],
    indirect=True,
)  # fmt: skip
def test_it_works_on_a_phone(page):
    give(page, photo(5, size=(64, 48)))
    word = page.locator(".words button").nth(1)
    word.tap()
    page.locator(".view.lit").wait_for()
    page.locator("summary").tap()
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    for button in page.locator("button, label.button").all():
        if button.is_visible():
            assert button.bounding_box()["height"] >= 40
    unnamed = page.evaluate(
        """[...document.querySelectorAll("button, input, select")].filter((one) =>
            !one.textContent.trim() && !(one.labels && one.labels.length)
            && !one.getAttribute("aria-label")).length"""
    )
    assert unnamed == 0


@pytest.mark.parametrize(
    "page", [{"color_scheme": "light"}, {"color_scheme": "dark"}], indirect=True
)
def test_texts_have_contrast(page):
    give(page, photo(5), b"no photo")
    page.locator(".error").wait_for()
    page.locator(".words").wait_for()
    worst = page.evaluate(
        """() => {
            const parts = (colour) => colour.match(/[\\d.]+/g).map(Number);
            const light = ([r, g, b]) => [r, g, b].map((c) => c / 255).map((c) =>
                c <= .03928 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
                .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
            const behind = (one) => {
                for (; one; one = one.parentElement) {
                    const colour = parts(getComputedStyle(one).backgroundColor);
                    if (colour.length < 4 || colour[3] > 0) return colour;
                }
                return [255, 255, 255];
            };
            return Math.min(...[...document.querySelectorAll("body *")].filter((one) =>
                one.offsetParent
                && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()))
                .map((one) => {
                    const [a, b] = [light(parts(getComputedStyle(one).color)), light(behind(one))];
                    return (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
                }));
        }"""
    )
    assert worst >= 4.5
