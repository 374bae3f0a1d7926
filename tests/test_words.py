"""An encoder that learns words before the decoder does: the formula, the stage, and its end."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tiny
from regard.captioner import load
from regard.training.log import read_log
from regard.training.words import has_word, said
from test_training import same_run

STAGED = ["--preset", "scenes", *tiny.QUICK, "--set", "decoder.kind=transformer"]
STAGED += ["--set", "train.word_epochs=3", "--set", "train.epochs=2"]


def test_a_photo_has_a_word_as_its_strongest_region_has_it():
    torch.manual_seed(0)
    scores = 20 * torch.randn(3, 49, 11)
    highest = scores.amax(1)
    found = has_word(scores)
    assert (found >= highest).all()
    torch.testing.assert_close(found, highest, atol=np.log(49) / 4, rtol=0)
    torch.testing.assert_close(has_word(scores[:, :1]), scores[:, 0])


def test_what_is_said_is_in_any_caption_of_the_photo():
    captions = torch.tensor([[[1, 4, 2], [1, 5, 2]], [[1, 6, 2], [0, 0, 0]]])
    there = said(captions, 8)
    assert there.tolist() == [[0, 1, 1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0]]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.draw_tiny(tmp_path_factory.mktemp("data") / "tiny")


@pytest.fixture(scope="module")
def whole(data) -> Path:
    tiny.inside("train", data, "--out", "whole", *STAGED, "--cache", "cache", cwd=data.parent)
    return data.parent / "whole"


def test_the_encoder_learns_words_and_then_no_more(whole, data):
    learnt = torch.load(whole / "encoder.pt", weights_only=True)
    kept = load_file(whole / "model" / "model.safetensors")
    for name, tensor in learnt.items():
        assert torch.equal(tensor, kept[f"encoder.backbone.{name}"]), name
    other = data.parent / "fewer"
    tiny.inside(
        "train", data, "--out", other, *STAGED, "--set", "train.word_epochs=1", "--cache", "cache",
        cwd=data.parent,
    )  # fmt: skip
    fewer = torch.load(other / "encoder.pt", weights_only=True)
    assert not torch.equal(fewer["stem.0.conv.weight"], learnt["stem.0.conv.weight"])
    # The model stands alone: it captions a photo that no cache knows.
    photo = load(shutil.copytree(whole / "model", data.parent / "model")).caption(
        data / "photos" / "20.png"
    )
    assert photo.maps.shape[1:] == (14, 14)


def test_a_run_killed_after_the_words_goes_on_with_the_same_encoder(whole, data):
    part = data.parent / "part"
    part.mkdir()
    for name in ("settings.json", "encoder.pt"):
        shutil.copy(whole / name, part / name)
    kept = (part / "encoder.pt").stat().st_mtime_ns
    said = tiny.inside(
        "train", data, "--out", "part", *STAGED, "--cache", "cache", "--resume", cwd=data.parent
    )
    assert "Words:" not in said.stdout + said.stderr
    assert (part / "encoder.pt").stat().st_mtime_ns == kept
    same_run(whole, part)


def test_a_run_killed_while_learning_words_begins_them_again(whole, data):
    begun = data.parent / "begun"
    begun.mkdir()
    shutil.copy(whole / "settings.json", begun / "settings.json")
    said = tiny.inside(
        "train", data, "--out", "begun", *STAGED, "--cache", "cache", "--resume", cwd=data.parent
    )
    assert "Words: epoch 3 of 3" in said.stdout + said.stderr
    same_run(whole, begun)
    assert len(read_log(begun / "log" / "epochs.csv")) == 2


def test_words_that_cannot_be_learnt_are_explained(data):
    failed = tiny.inside(
        "train", data, "--out", "nan", *STAGED, "--set", "train.learning_rate=1e30",
        "--set", "train.warmup_steps=0", "--cache", "cache", cwd=data.parent, code=2,
    )  # fmt: skip
    assert "While the encoder learnt words, the loss became" in failed.stderr


def test_learning_words_and_fine_tuning_exclude_each_other(data):
    refused = tiny.inside(
        "train", data, "--out", "both", *STAGED, "--fine-tune", "2", cwd=data.parent, code=2
    )
    assert "train.word_epochs is 3" in refused.stderr
    assert "encoder.fine_tune_stages is 2" in refused.stderr
    assert not (data.parent / "both").exists()
