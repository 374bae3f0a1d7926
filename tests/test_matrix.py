"""Every encoder with every decoder and every vocabulary: trained a few steps, then captions.

What a setting offers is asked of the settings, so that a new decoder or vocabulary is a value here.
"""

from __future__ import annotations

import typing
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import foreign
import tiny
from regard.captioner import Captioner, load
from regard.checkpoint import read_model
from regard.config import DecoderConfig, TextConfig, make_config
from regard.data.dataset import Dataset, read_dataset
from regard.errors import ModelError
from regard.models.encoders import load_encoder
from regard.training.run import train

pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")


def decoders() -> list[str]:
    """The kinds of decoder that the settings know."""
    kind = DecoderConfig.model_fields.get("kind")
    return list(typing.get_args(kind.annotation)) if kind is not None else ["lstm"]


def vocabularies() -> list[str]:
    """Ways of making a vocabulary."""
    return ["words:1", "bpe:400"] if "vocabulary" in TextConfig.model_fields else ["words:1"]


ENCODERS = ["small", *foreign.backbones()]
SMALL = {
    "decoder.hidden_width": 16, "decoder.attention_width": 16, "decoder.embedding_width": 16,
    "train.batch_size": 8, "train.precision": "float32", "train.max_steps": 3,
    "train.learning_rate": 1e-2, "validation.max_photos": 2, "encoder.image_size": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(tiny.draw_tiny(tmp_path_factory.mktemp("matrix") / "tiny"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    place = tmp_path_factory.mktemp("encoders")
    made = {kind: foreign.save_backbone(place / kind, kind) for kind in foreign.backbones()}
    return {"small": "small", **{kind: str(folder) for kind, folder in made.items()}}


def trained(
    dataset: Dataset, out: Path, encoder: str, decoder: str, vocabulary: str, **more: object
) -> Captioner:
    chosen: dict[str, object] = {**SMALL, "encoder.id": encoder, **more}
    if len(decoders()) > 1:
        chosen["decoder.kind"] = decoder
    if len(vocabularies()) > 1:
        chosen["text.vocabulary"] = vocabulary
    outcome = train(dataset, make_config(overrides=chosen), out / "run", cache=out / "cache")
    assert outcome.progress.finished
    captioner = load(out / "run", device="cpu")
    assert isinstance(captioner, Captioner)
    return captioner


@pytest.mark.parametrize("vocabulary", vocabularies())
@pytest.mark.parametrize("decoder", decoders())
@pytest.mark.parametrize("encoder", ENCODERS)
def test_it_trains_and_captions(encoder, decoder, vocabulary, dataset, folders, tmp_path):
    captioner = trained(dataset, tmp_path, folders[encoder], decoder, vocabulary)
    found = captioner.caption(dataset.photos[0].path)
    grid = captioner.model.encoder.grid
    assert found.words
    assert found.maps.shape == (len(found.words), *grid)
    np.testing.assert_allclose(found.maps.sum((1, 2)), 1, atol=1e-4)
    assert captioner.model.encoder.preparation.size == (64, 64)


@pytest.mark.parametrize("encoder", ["vit", "swin"])
def test_a_grid_is_a_setting(encoder, dataset, folders, tmp_path):
    captioner = trained(
        dataset, tmp_path, folders[encoder], decoders()[0], "words:1", **{"encoder.grid": 3}
    )
    found = captioner.caption(dataset.photos[0].path)
    assert found.maps.shape[1:] == (3, 3)


@pytest.mark.parametrize("encoder", ["vit", "convnext"])
def test_trained_blocks_travel_with_the_model(encoder, dataset, folders, tmp_path, monkeypatch):
    more = {"encoder.fine_tune_stages": 1, "train.encoder_learning_rate": 1e-2}
    captioner = trained(dataset, tmp_path, folders[encoder], decoders()[0], "words:1", **more)
    stored = load_file(tmp_path / "run" / "model" / "model.safetensors")
    before = load_encoder(folders[encoder]).state_dict()
    named = [name for name in stored if name.startswith("encoder.backbone.network.")]
    assert len(named) > 10

    def moved(name: str) -> bool:
        return not torch.equal(stored[name], before[name.removeprefix("encoder.")])

    last = captioner.model.encoder.backbone.family.stages
    count = len(captioner.model.encoder.backbone.stages)
    open_ = f"encoder.backbone.network.{last}.{count - 1}."
    shut = f"encoder.backbone.network.{last}.0."
    assert any(moved(name) for name in named if name.startswith(open_))
    assert not any(moved(name) for name in named if name.startswith(shut))

    # The model folder is enough: nobody asks for the encoder's own.
    def gone(*_: object, **__: object) -> None:
        raise AssertionError("the encoder's own folder was asked for")

    monkeypatch.setattr("regard.models.encoders.locate", gone)
    again = read_model(tmp_path / "run")
    assert again.encoder.weights_hash == captioner.model.encoder.weights_hash


def test_an_encoder_with_other_weights_is_refused(dataset, folders, tmp_path):
    trained(dataset, tmp_path, folders["vit"], decoders()[0], "words:1")
    with pytest.raises(ModelError, match=r"has other weights .* Give the place of the right ones"):
        read_model(tmp_path / "run", encoder=folders["vit_msn"])
