"""The model folder: saved and loaded is the same; every damage is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from regard.build import build_decoder, build_encoder
from regard.checkpoint import Model, read_model, write_model
from regard.config import Config, make_config
from regard.errors import ModelError
from regard.files import hash_file
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Decoder
from regard.models.encoders import Encoder
from regard.text.subwords import Subwords
from regard.text.vocabulary import Lexicon, Vocabulary

WORDS = Vocabulary(["a", "dog", "runs", "on", "grass"])


PIECES = Subwords.from_captions([["a", "dog", "runs", "on", "grass"]] * 3, size=280)


def settings(encoder: str = "small", *more: str) -> Config:
    return make_config(
        preset="scenes",
        overrides={"encoder.id": encoder},
        settings=[
            "decoder.kind=lstm",
            "decoder.hidden_width=8",
            "decoder.attention_width=8",
            "decoder.embedding_width=6",
            *more,
        ],
    )


def make(config: Config, words: Lexicon = WORDS) -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    encoder = build_encoder(config.encoder)
    return encoder, build_decoder(
        config.decoder, vocabulary_size=len(words), feature_width=encoder.width
    )


def save(
    folder: Path, config: Config, encoder: Encoder, decoder: Decoder, words: Lexicon = WORDS
) -> Path:
    write_model(
        folder, config=config, vocabulary=words, encoder=encoder, decoder=decoder,
        scores={"split": "val (3 photos)", "CIDEr": 0.5}, data="tiny (table), 3 photos",
        frequencies=DocumentFrequencies(3, {("a", "dog"): 2}),
    )  # fmt: skip
    return folder


@pytest.fixture
def folder(tmp_path) -> Path:
    config = settings()
    return save(tmp_path / "model", config, *make(config))


def captions_of(model: Model) -> torch.Tensor:
    torch.manual_seed(5)
    photos, ids = torch.rand(2, 3, 112, 112), torch.randint(0, len(WORDS), (2, 1, 4))
    with torch.inference_mode():
        logits: torch.Tensor = model.decoder(model.encoder(photos), ids)
    return logits


@pytest.mark.parametrize("words", [WORDS, PIECES], ids=["words", "pieces"])
@pytest.mark.parametrize("kind", ["lstm", "transformer", "transformer, untied"])
def test_saved_and_loaded_is_the_same(tmp_path, kind, words):
    kind, _, untied = kind.partition(", ")
    config = settings(
        "small", f"decoder.kind={kind}", f"decoder.tied={not untied}",
        f"text.vocabulary={'words:1' if words is WORDS else 'bpe:280'}",
    )  # fmt: skip
    encoder, decoder = make(config, words)
    folder = save(tmp_path / "model", config, encoder, decoder, words)
    model = read_model(folder)
    before = Model(config, words, encoder.eval(), decoder.eval(), "", {})
    for ours, theirs in ((model.decoder, decoder), (model.encoder, encoder)):
        loaded, saved = ours.state_dict(), theirs.state_dict()
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[name], saved[name]) for name in saved)
    torch.testing.assert_close(captions_of(model), captions_of(before))
    assert type(model.decoder) is type(decoder)
    assert model.vocabulary.words == words.words
    assert model.config == config
    assert model.scores["CIDEr"] == 0.5
    assert model.frequencies() == DocumentFrequencies(3, {("a", "dog"): 2})
    assert not any(p.requires_grad for p in model.decoder.parameters())
    assert sorted(f.name for f in folder.iterdir()) == [
        "README.md", "config.json", "frequencies.json", "model.safetensors", words.file_name,
    ]  # fmt: skip


def test_the_card_tells_of_the_decoder_that_is_there(tmp_path):
    for kind, said, silent in (
        ("lstm", ("LSTM", "attention_width"), ("Transformer", "heads")),
        ("transformer", ("Transformer", "heads"), ("LSTM", "attention_width")),
    ):
        config = settings("small", f"decoder.kind={kind}")
        card = (save(tmp_path / kind, config, *make(config)) / "README.md").read_text()
        assert all(word in card for word in said)
        assert not any(word in card for word in silent)
        assert "| vocabulary | words:1: 9 entries |" in card


def test_a_folder_from_before_there_was_a_choice_is_read(folder):
    """As its settings were when there was one decoder, and words had a least count."""
    file = folder / "config.json"
    described = json.loads(file.read_text())
    model = read_model(folder)
    del described["settings"]["text"]["vocabulary"]
    described["settings"]["text"]["min_count"] = 1
    for name in ("kind", "layers", "heads", "feed_forward_width", "positions", "tied"):
        del described["settings"]["decoder"][name]
    file.write_text(json.dumps(described))
    before, now = read_model(folder).config.model_dump(), model.config.model_dump()
    # What only a Transformer has is what it is by default; an LSTM does not use it.
    assert read_model(folder).config.decoder.of_kind() == model.config.decoder.of_kind()
    assert before | {"decoder": now["decoder"]} == now
    torch.testing.assert_close(captions_of(read_model(folder)), captions_of(model))


def test_a_run_stands_for_its_model(folder):
    assert read_model(folder.parent).weights_hash == read_model(folder).weights_hash


def test_a_folder_is_replaced_as_a_whole(folder):
    config = settings()
    encoder, decoder = make(config)
    torch.nn.init.constant_(decoder.output.bias, 3.0)
    save(folder, config, encoder, decoder)
    assert float(read_model(folder).decoder.output.bias[0]) == 3.0
    assert [f.name for f in folder.parent.iterdir()] == ["model"]


def resnet_file(file: Path, seed: int) -> Path:
    from regard.models.resnet import ResNet

    torch.manual_seed(seed)
    save_file(ResNet(depth=18).state_dict(), str(file))
    return file


def test_a_frozen_encoder_is_named_and_checked_not_copied(tmp_path):
    weights = resnet_file(tmp_path / "resnet.safetensors", 0)
    config = settings(str(weights))
    folder = save(tmp_path / "model", config, *make(config))
    assert not any(k.startswith("encoder.") for k in load_file(folder / "model.safetensors"))
    model = read_model(folder)

    moved = weights.rename(tmp_path / "moved.safetensors")
    with pytest.raises(ModelError, match=r"needs the encoder .*--encoder"):
        read_model(folder)
    torch.testing.assert_close(
        captions_of(read_model(folder, encoder=str(moved))), captions_of(model)
    )

    other = resnet_file(tmp_path / "other.safetensors", 1)
    with pytest.raises(ModelError, match="has other weights"):
        read_model(folder, encoder=str(other))


def changed(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_every_damage_is_named(folder, tmp_path):
    def damaged(name: str) -> Path:
        copy = tmp_path / name
        shutil.copytree(folder, copy)
        return copy

    lacking = damaged("lacking")
    (lacking / "vocabulary.json").unlink()
    with pytest.raises(
        ModelError, match=r"lacking.vocabulary\.json cannot be read: .*No such file"
    ):
        read_model(lacking)

    torn = damaged("torn")
    weights = torn / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelError, match="Copy the whole folder again"):
        read_model(torn)

    newer = damaged("newer")
    changed(newer, format=99)
    with pytest.raises(ModelError, match="has format 99; this regard .* reads format 1"):
        read_model(newer)

    foreign = damaged("foreign")
    (foreign / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ModelError, match=r"is of a blip of transformers, .* is not taken here"):
        read_model(foreign)
    (foreign / "config.json").write_text('{"layers": 2}')
    with pytest.raises(ModelError, match="not of a captioner written by regard"):
        read_model(foreign)

    unreadable = damaged("unreadable")
    (unreadable / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(unreadable)

    partial = damaged("partial")
    file = partial / "config.json"
    file.write_text(json.dumps({"format": 1}))
    with pytest.raises(ModelError, match="lacks encoder, feature_width"):
        read_model(partial)


def rewritten(folder: Path, change) -> None:
    """Other tensors under a hash that fits them."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, str(file))
    changed(folder, weights=hash_file(file))


def test_tensors_that_do_not_fit_are_all_named(folder):
    def change(tensors):
        del tensors["decoder.output.bias"]
        tensors["decoder.extra"] = torch.zeros(1)
        tensors["decoder.of_word.bias"] = torch.zeros(3)
        tensors["decoder.gate"] = torch.full((1,), float("nan"))

    rewritten(folder, change)
    with pytest.raises(ModelError) as caught:
        read_model(folder)
    for said in (
        "decoder.output.bias is missing",
        "decoder.extra is not known",
        "decoder.of_word.bias is (3,), (32,) was expected",
        "decoder.gate holds values that are not finite",
    ):
        assert said in str(caught.value)


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(ModelError, match="is no model folder"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match=r"There is no model at \./nothing"):
        read_model("./nothing")


def test_a_hub_id_out_of_reach_says_what_to_do(monkeypatch):
    import huggingface_hub

    # An address that refuses connections, so that the test does the same with a network.
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/x")
    with pytest.raises(ModelError, match=r"hf download someone/captioner .*--model captioner"):
        read_model("someone/captioner")


def test_a_hub_id_is_fetched(folder, monkeypatch):
    asked = {}

    def fetched(name, files, **options):
        asked.update(options, name=name, files=files)
        return folder

    monkeypatch.setattr("regard.checkpoint.fetch", fetched)
    assert read_model("someone/captioner", revision="v1").vocabulary.words == WORDS.words
    assert (asked["name"], asked["revision"]) == ("someone/captioner", "v1")
    assert asked["files"][-1] == "model.safetensors"
