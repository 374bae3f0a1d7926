"""Settings: their order, and every complaint about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from regard.config import (
    PRESETS,
    Config,
    DecoderConfig,
    describe_fields,
    make_config,
    recorded,
    validated,
)
from regard.errors import ConfigError


def test_the_report_preset_is_the_report_protocol():
    train = make_config(preset="report").train
    assert (train.batch_size, train.grouping, train.optimizer) == (32, "caption", "adam")
    assert (train.learning_rate, train.schedule, train.step_epochs) == (1e-3, "step", 10)
    assert (train.step_factor, train.clip, train.label_smoothing) == (0.5, 5.0, 0.0)
    assert make_config(preset="report").text.vocabulary == "words:1"


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_valid_and_survives_being_written_down(preset):
    config = make_config(preset=preset)
    assert validated(config.model_dump()) == config


def test_later_settings_win(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("train:\n  epochs: 3\n  batch_size: 7\n  learning_rate: 1e-4\nseed: 5\n")
    config = make_config(
        preset="fast",
        file=file,
        overrides={"encoder.id": "small", "train.batch_size": 8},
        settings=["train.epochs=2", "decoder.dropout=0.25"],
    )
    assert (config.train.epochs, config.train.batch_size, config.seed) == (2, 8, 5)
    assert config.train.learning_rate == 1e-4
    assert config.train.grouping == "photo"
    assert config.encoder.id == "small"
    assert config.decoder.dropout == 0.25


def test_every_field_is_explained():
    described = dict(describe_fields())
    names = [
        name if not hasattr(field.annotation, "model_fields") else f"{name}.{inner}"
        for name, field in Config.model_fields.items()
        for inner in getattr(field.annotation, "model_fields", [None])
    ]
    assert sorted(described) == sorted(names)
    assert len(names) > 30
    for sentence in described.values():
        assert "None" not in sentence
        assert "default: " in sentence


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["train.epoch=2"], "unknown setting 'train.epoch' - did you mean 'train.epochs'?"),
        (["epochs=2"], "unknown setting 'epochs' - did you mean 'train.epochs'?"),
        (["decoder.hiden_width=2"], "did you mean 'decoder.hidden_width'?"),
        (["train.epochs=0"], "train.epochs = 0: input should be greater than or equal to 1"),
        (["train.schedule=linear"], "train.schedule = 'linear'"),
        (["train.epochs"], "not of the form name=value"),
        (["text.vocabulary=bpe"], "text.vocabulary = 'bpe': expected words:N"),
        (["text.vocabulary=words:0"], "text.vocabulary = 'words:0': expected words:N"),
        (["text.vocabulary=bpe:256"], "bpe:N with N at least 257, as in bpe:4000"),
        (
            ["text.vocabulary=bpe:400", "text.embeddings=glove.txt"],
            "text: glove.txt has vectors of words, and bpe:400 makes pieces of them",
        ),
        (["decoder.kind=gru"], "decoder.kind = 'gru': input should be 'lstm' or 'transformer'"),
        (
            ["decoder.kind=transformer", "decoder.heads=5"],
            "decoder: hidden_width is 512; a Transformer with 5 heads needs a multiple of 10",
        ),
        (["seed.x=1", "seed=2"], None),
        (["seed=2", "seed.x=1"], "'seed' is a single value"),
        (["train.epochs=[1"], "the value is not YAML"),
    ],
)
def test_bad_settings_are_named(settings, said):
    if said is None:
        assert make_config(settings=settings).seed == 2
        return
    with pytest.raises(ConfigError) as caught:
        make_config(settings=settings)
    assert said in str(caught.value)


def test_settings_of_earlier_versions_are_read():
    """Before there were pieces of words and a choice of decoders."""
    earlier = make_config(preset="fast").model_dump()
    earlier["text"] = {"min_count": 5, "max_length": 40, "embeddings": None}
    new = {"kind", "layers", "region_layers", "heads", "feed_forward_width", "positions", "tied"}
    earlier["decoder"] = {k: v for k, v in earlier["decoder"].items() if k not in new}
    assert recorded(earlier, source="config.json") == make_config(preset="fast")
    with pytest.raises(ConfigError, match=r"problems with config\.json:\n  unknown setting 'x'"):
        recorded({"x": 1}, source="config.json")


def test_each_kind_of_decoder_tells_its_own_settings():
    own = {kind: DecoderConfig(kind=kind).of_kind().keys() for kind in ("lstm", "transformer")}
    assert own["lstm"] | own["transformer"] == DecoderConfig.model_fields.keys()
    shared = {
        "kind", "embedding_width", "hidden_width", "dropout", "word_dropout", "region_dropout"
    }  # fmt: skip
    assert own["lstm"] & own["transformer"] == shared


def test_all_problems_are_reported_together():
    with pytest.raises(ConfigError) as caught:
        make_config(settings=["train.epochs=0", "train.clip=-1", "trian.epochs=3"])
    message = str(caught.value)
    assert "train.epochs = 0" in message
    assert "train.clip = -1" in message
    assert "trian" in message


def test_an_unknown_preset_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match="no preset 'fsat' - did you mean 'fast'"):
        make_config(preset="fsat")
    with pytest.raises(ConfigError, match="does not exist"):
        make_config(file=tmp_path / "none.yaml")
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [")
    with pytest.raises(ConfigError, match="cannot be read"):
        make_config(file=bad)
    bad.write_text("- 1")
    with pytest.raises(ConfigError, match="holds list, not settings by name"):
        make_config(file=bad)


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "configs").glob("*.yaml")))
def test_the_configurations_of_the_results_are_good(file):
    made = make_config(
        file=file, overrides={"captioner.init": "run"} if "scst" in file.name else {}
    )
    assert made.train.views == 6
