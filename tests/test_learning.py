"""Every decoder and every vocabulary learns, is stopped, goes on, and captions."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

import regard
import tiny
from regard.config import Config, make_config
from regard.data.dataset import Dataset, read_dataset
from regard.describe import Decoding
from regard.training.log import read_log
from regard.training.loop import Progress, Watch
from regard.training.run import Listener, Machine, train

# The other two pairs are trained, and then rewarded, in test_scst.
KINDS = [("lstm", "bpe:300"), ("transformer", "words:1")]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return read_dataset(tiny.draw_tiny(tmp_path_factory.mktemp("data") / "tiny"))


def settings(kind: str, vocabulary: str) -> Config:
    return make_config(
        preset="scenes",
        overrides={"text.vocabulary": vocabulary, "train.save_every": 1},
        settings=[*tiny.QUICK[1::2], f"decoder.kind={kind}", "decoder.heads=4",
                  "train.epochs=20", "train.batch_size=3", "train.learning_rate=5e-3",
                  "train.warmup_steps=10", "decoder.dropout=0.1",
                  "decoder.hidden_width=48", "validation.max_photos=3"],
    )  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=str)
def run(request, data, tmp_path_factory) -> tuple[Config, Path]:
    config = settings(*request.param)
    out = tmp_path_factory.mktemp("run") / "run"
    train(data, config, out, machine=Machine(device="cpu"))
    return config, out


def test_resumed_is_uninterrupted(run, data, tmp_path):
    config, whole = run

    def stop(progress: Progress, loss: float, speed: float) -> None:
        if progress.step == 13:
            signal.raise_signal(signal.SIGINT)

    out, here = tmp_path / "run", Machine(device="cpu")
    stopped = train(data, config, out, machine=here, listener=Listener(watch=Watch(iteration=stop)))
    assert (stopped.progress.step, stopped.progress.finished) == (13, False)
    outcome = train(data, config, out, machine=here, resume=True)
    assert outcome.progress.finished
    first, second = (load_file(r / "model" / "model.safetensors") for r in (whole, out))
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)
    assert read_log(whole / "log" / "steps.csv") == read_log(out / "log" / "steps.csv")


def test_it_learns_and_its_words_have_their_gaze(run, data):
    _, out = run
    losses = [row["val_loss"] for row in read_log(out / "log" / "epochs.csv")]
    assert losses[-1] < losses[0] * 0.7
    captioner = regard.load(out)
    photos = [photo.path for photo in data.photos]
    for found in captioner.captions(photos, Decoding(beam=2)):
        assert found.text == " ".join(found.words)
        assert len(found.words) == len(found.log_probabilities) == len(found.maps)
        assert all(p <= 0 for p in found.log_probabilities)
        np.testing.assert_allclose(found.maps.sum((1, 2)), 1, atol=1e-5)


def test_a_transformer_of_pieces_through_every_command(data):
    """Trained, scored and shown; one line where the two options contradict others."""
    place = data.root.parent
    options = ["--decoder", "transformer", "--vocabulary", "bpe:300"]
    few = ["--preset", "scenes", *tiny.QUICK, "--set", "train.epochs=2"]
    tiny.inside("train", "tiny", *few, *options, "--out", "run", cwd=place)
    tiny.inside("evaluate", "tiny", "--model", "run", "--no-meteor", "--json", "s.json", cwd=place)
    scored = json.loads((place / "s.json").read_text())
    assert len(scored["photos"]) == 6
    assert "vocabulary used" not in scored["diagnosis"]  # any word can be said
    tiny.regard("report", "run", "--data", "tiny", "--out", "page", "--photos", 1, cwd=place)
    page = (place / "page" / "index.html").read_text()
    assert "pieces, which make any word" in page
    assert "Transformer: layers." in page
    said = tiny.inside(
        "train", "tiny", *options, "--embeddings", "glove.txt", "--out", "no", cwd=place, code=2
    )
    assert "bpe:300 makes pieces of them; take words:5, or no embeddings" in said.stderr
