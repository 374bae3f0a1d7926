"""Files of the hub: what a repository lacks is named. The rest is in the tests of sources."""

from __future__ import annotations

import json
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import EntryNotFoundError

from regard.errors import ModelError
from regard.models.hub import SHARDED, fetch, is_hub_id

FILES = ("config.json", "words.json", "model.safetensors")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A hub that has only a config, and a machine with what is in the folder."""
    names: list[str] = []

    def metadata(url: str, timeout: float) -> None:
        names.append(url.rsplit("/", 1)[-1])
        if names[-1] != "config.json":
            raise EntryNotFoundError(names[-1])

    def cached(repository: str, name: str, *, revision: str | None) -> str | None:
        return str(tmp_path / name) if (tmp_path / name).exists() else None

    def download(repository: str, name: str, *, revision: str | None) -> str:
        (tmp_path / name).touch()
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", cached)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return names


def fetch_it(**settings: object) -> Path:
    return fetch(
        "somebody/model", FILES, optional=["words.json"], subject="Model", option="--model",
        **settings,
    )  # fmt: skip


def test_a_file_that_a_repository_lacks_is_named(asked):
    with pytest.raises(ModelError) as error:
        fetch_it(revision="v2")
    assert (
        "Model 'somebody/model' has no model.safetensors on the hub at revision v2. It must have "
        "config.json, model.safetensors. Take another revision" in str(error.value)
    )
    assert asked == [*FILES, "model.safetensors.index.json"]


def test_an_earlier_download_counts_when_all_of_it_is_here(asked, tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="offline use was asked for.*--revision v2 --local-dir"):
        fetch_it(offline=True, revision="v2")
    (tmp_path / "config.json").touch()
    assert fetch_it(offline=True) == tmp_path
    assert not asked


def test_hub_ids():
    assert is_hub_id("timm/resnet50.tv_in1k")
    assert not any(map(is_hub_id, ("small", "a/b/c", "./a", "a/", "../shared/models")))


def test_a_large_network_comes_in_shards(asked, tmp_path, monkeypatch):
    there = {"config.json", SHARDED, "a.safetensors", "b.safetensors"}

    def metadata(url: str, timeout: float) -> None:
        asked.append(url.rsplit("/", 1)[-1])
        if asked[-1] not in there:
            raise EntryNotFoundError(asked[-1])

    def download(repository: str, name: str, *, revision: str | None) -> str:
        index = {"weight_map": {"x": "b.safetensors", "y": "a.safetensors", "z": "a.safetensors"}}
        (tmp_path / name).write_text(json.dumps(index))
        return str(tmp_path / name)

    monkeypatch.setattr(huggingface_hub, "get_hf_file_metadata", metadata)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert fetch_it() == tmp_path
    assert {path.name for path in tmp_path.iterdir()} == there
    asked.clear()
    assert fetch_it() == tmp_path
    assert not asked
    (tmp_path / "b.safetensors").unlink()
    with pytest.raises(ModelError, match="offline use was asked for"):
        fetch_it(offline=True)
    (tmp_path / SHARDED).write_text('{"weight_map": {"x": "../b.safetensors"}}')
    with pytest.raises(ModelError, match="names '../b.safetensors', which is not beside it"):
        fetch_it(offline=True)
