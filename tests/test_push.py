"""To the hub and back: what was pushed is what is loaded, at the commit that was said.

The hub is a server of this process that speaks as much of its protocol as the client uses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

import tiny
from regard.apps.push import push_model
from regard.errors import ModelError
from test_checkpoint import make, save, settings

TOKEN = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """Repositories by id: their branches, and the files of each commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Requests)
        self.branches: dict[str, dict[str, str]] = {}
        self.commits: dict[str, dict[str, bytes]] = {"0" * 40: {}}
        self.made: list[dict] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Requests(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": f"no, not {self.headers.get('Authorization')}"})
            return
        match self.path.removeprefix("/api/").split("/"):
            case ["validate-yaml"]:
                self._answer(200, {"errors": [], "warnings": []})
            case ["repos", "create"]:
                asked = json.loads(body)
                id = f"{asked['organization']}/{asked['name']}"
                self.server.made.append(asked)
                self.server.branches.setdefault(id, {"main": "0" * 40})
                self._answer(200, {"url": f"{self.server.address}/{id}", "id": id})
            case ["models", user, name, "branch", branch]:
                branches = self.server.branches[f"{user}/{name}"]
                branches.setdefault(unquote(branch), branches["main"])
                self._answer(200, {})
            case ["models", _, _, "preupload", _]:
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for f in json.loads(body)["files"]
                ]
                self._answer(200, {"files": files})
            case ["models", user, name, "commit", branch]:
                self._answer(200, self._commit(f"{user}/{name}", unquote(branch), body))
            case _:
                self._answer(404, {"error": f"the hub of the tests does not know {self.path}"})

    def _commit(self, id: str, branch: str, body: bytes) -> dict[str, object]:
        branches = self.server.branches[id]
        files = dict(self.server.commits[branches[branch]])
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        commit = hashlib.sha1(body).hexdigest()
        self.server.commits[commit], branches[branch] = files, commit
        url = f"{self.server.address}/{id}/commit/{commit}"
        return {"success": True, "commitOid": commit, "commitUrl": url}

    def do_GET(self) -> None:
        match self.path.split("/"):
            case ["", user, name, "resolve", revision, file]:
                commit = self.server.branches.get(f"{user}/{name}", {}).get(revision, revision)
                content = self.server.commits.get(commit, {}).get(file)
                more = {"X-Repo-Commit": commit}
                if content is not None:
                    more["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
                    self._send(200, content, more)
                else:
                    self._send(404, b"", more | {"X-Error-Code": "EntryNotFound"})
            case _:
                self._answer(404, {"error": f"the hub of the tests does not know {self.path}"})

    do_HEAD = do_GET

    def _answer(self, status: int, content: object) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("push")
    config = settings()
    save(folder / "model", config, *make(config))
    (folder / "model" / "mine.txt").write_text("not of the model")
    tiny.draw_tiny(folder / "tiny")
    return folder


def regard(place: Path, hub: str, *arguments: object, code: int = 0, token: str = TOKEN):
    return tiny.regard(
        *arguments, cwd=place, code=code,
        HF_ENDPOINT=hub, HF_HUB_OFFLINE="0", HF_HOME=str(place / "home"), HF_TOKEN=token,
        HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HUB_DISABLE_XET="1",
    )  # fmt: skip


def test_what_is_pushed_is_what_is_loaded(hub, place):
    done = regard(place, hub.address, "push", "model", "someone/captioner", "--private")
    commit = hub.branches["someone/captioner"]["main"]
    assert done.stdout == (
        f"someone/captioner is at commit {commit}. Use it with --model someone/captioner\n"
    )
    assert [(m["name"], m["visibility"]) for m in hub.made] == [("captioner", "private")]
    names = {
        "README.md", "config.json", "frequencies.json", "model.safetensors", "vocabulary.json",
    }  # fmt: skip
    there = hub.commits[commit]
    assert there == {name: (place / "model" / name).read_bytes() for name in names}

    photo = "tiny/photos/00.png"
    here = tiny.inside("caption", photo, "--model", "model", cwd=place)
    found = regard(place, hub.address, "caption", photo, "--model", "someone/captioner")
    assert found.stdout == here.stdout
    assert found.stderr == f"someone/captioner is at commit {commit}.\n"
    assert here.stderr == ""


def test_a_branch_is_made_and_loaded_as_a_revision(hub, place):
    card = place / "model" / "README.md"
    regard(place, hub.address, "push", "model", "someone/branched")
    card.write_text(card.read_text() + "\nAnother card.\n")
    done = regard(place, hub.address, "push", "model", "someone/branched", "--revision", "v2")
    branches = hub.branches["someone/branched"]
    assert branches["v2"] != branches["main"]
    assert branches["v2"] in done.stdout
    found = regard(
        place, hub.address, "evaluate", "tiny", "--model", "someone/branched", "--revision", "v2",
        "--json", "scores.json", "--no-meteor",
    )  # fmt: skip
    assert f"someone/branched is at commit {branches['v2']}.\n" in found.stderr
    recorded = json.loads((place / "scores.json").read_text())["settings"]
    assert recorded["revision"] == branches["v2"]
    cached = place / "home" / "hub" / "models--someone--branched" / "snapshots"
    assert [folder.name for folder in cached.iterdir()] == [branches["v2"]]
    assert (cached / branches["v2"] / "README.md").read_text().endswith("Another card.\n")


def test_a_hub_that_refuses_or_is_away_is_said_in_a_line(hub, place):
    refused = regard(
        place, hub.address, "push", "model", "someone/other", code=2, token="hf_wrongwrong"
    )
    assert refused.stderr.startswith(
        "regard: The hub does not let this machine write to 'someone/other' (HTTP 401). Log in "
        "with `hf auth login`, or set HF_TOKEN"
    )
    away = regard(place, "http://127.0.0.1:9", "push", "model", "someone/other", code=2)
    assert "model could not be put into 'someone/other' on the hub: " in away.stderr
    for said in (refused, away):
        assert said.stderr.count("\n") == 1
        assert "hf_" not in said.stderr + said.stdout
    assert "someone/other" not in hub.branches


def push(source: Path | str, repository: str = "someone/captioner") -> None:
    push_model(source, repository, say=print)


def test_what_is_no_captioner_is_not_pushed(place, tmp_path, monkeypatch):
    def never(*_: object, **__: object) -> str:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("regard.apps.push.upload", never)
    for id in ("captioner", "a/b/c", "../model", "some one/captioner", ""):
        with pytest.raises(ModelError, match=r"is no hub id\. Expected user/name"):
            push(place / "model", id)
    with pytest.raises(ModelError, match="is no model folder"):
        push(tmp_path)
    with pytest.raises(ModelError, match="There is no model at someone/else"):
        push("someone/else")
    copy = tmp_path / "model"
    config = settings()
    save(copy, config, *make(config))
    (copy / "vocabulary.json").unlink()
    with pytest.raises(ModelError, match=r"vocabulary\.json cannot be read"):
        push(copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="Copy the whole folder again"):
        push(copy)


def test_an_encoder_that_others_do_not_have_is_said(place, monkeypatch):
    monkeypatch.setattr("regard.apps.push.upload", lambda *_, **__: "c")
    said: list[str] = []
    folder = place / "frozen"
    config = settings()
    encoder, decoder = make(config)
    save(folder, config, encoder, decoder)
    push_model(folder, "someone/captioner", say=said.append)
    assert not said  # the encoder is in the folder
    file = folder / "config.json"
    described = json.loads(file.read_text())
    described["trained_encoder"] = False
    for id, lines in (("timm/resnet50.tv_in1k", 0), ("/home/me/resnet", 1)):
        described["encoder"]["id"] = id
        file.write_text(json.dumps(described))
        push_model(folder, "someone/captioner", say=said.append)
        assert len(said) == lines
    assert "The encoder /home/me/resnet is on this machine alone" in said[0]
