"""Training finished captioners further: what is learnt, what is kept, and that nothing is lost.

The captioners are tiny and random, saved by transformers as real ones are.
"""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import foreign
import regard
import tiny
from regard.config import Config, make_config
from regard.data.dataset import Dataset, read_dataset
from regard.describe import Decoding
from regard.errors import ConfigError, ModelError
from regard.finished import load_finished
from regard.models.speakers import KINDS
from regard.training.finetune import PAD, FinishedLearner, finished_trainee
from regard.training.log import read_log
from regard.training.loop import Progress, Watch
from regard.training.run import Listener, Machine, train

transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("lightning", reason="lightning is not installed")

KIND = ["blip", "git", "vision-encoder-decoder"]
TOWER = {
    "blip": "vision_model.", "git": "git.image_encoder.", "vision-encoder-decoder": "encoder.",
}  # fmt: skip
LAST = {
    "blip": "vision_model.encoder.layers.1.",
    "git": "git.image_encoder.vision_model.encoder.layers.1.",
    "vision-encoder-decoder": "encoder.encoder.layer.1.",  # as files name them
}
SAID = [
    "A black dog runs.", "Two men in red shirts!", "A girl climbs the stairs.", "Dogs, and a dog?",
]  # fmt: skip
HERE = Machine(device="cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("captioners")
    return {kind: foreign.save_captioner(place / kind, kind) for kind in [*KIND, "blip-2"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Four photos of one colour each, with two captions that say the same."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for i, said in enumerate(SAID):
        Image.new("RGB", (48, 40), (255 * (i % 2), 255 * (i // 2), 90)).save(folder / f"{i}.png")
        for caption in (said, said.lower()):
            rows.append({"image": f"{i}.png", "caption": caption, "split": "train"})
    (folder / "captions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(folder)


def settings(folder: Path, *more: str) -> Config:
    return make_config(
        overrides={"captioner.id": str(folder)},
        settings=[
            "validation.split=train", "train.epochs=3", "train.batch_size=2",
            "train.precision=float32", "train.learning_rate=1e-2", "train.warmup_steps=2",
            "train.encoder_learning_rate=1e-2", *more,
        ],
    )  # fmt: skip


@pytest.mark.parametrize("kind", KIND)
def test_it_learns_the_captions_and_is_loaded_as_it_was(kind, data, tmp_path):
    folder = foreign.save_captioner(tmp_path / kind, kind, std=None)
    config = settings(
        folder, "train.epochs=5", "train.freeze=none", "train.label_smoothing=0", "train.clip=0",
        "train.weight_decay=0", "train.grouping=caption", "train.batch_size=4",
        "validation.max_photos=1",
    )  # fmt: skip
    often = [replace(photo, captions=photo.captions * 20) for photo in data.photos]
    outcome = train(replace(data, photos=tuple(often)), config, tmp_path / "run", machine=HERE)
    losses = [row["val_loss"] for row in read_log(tmp_path / "run" / "log" / "epochs.csv")]
    assert losses[-1] < 0.2 < losses[0]
    captioner = regard.load(tmp_path / "run", device="cpu")
    found = list(captioner.captions([p.path for p in data.photos], Decoding(beam=1)))
    taught = ["a black dog runs", "two men in red shirts", "a girl climbs the stairs"]
    assert [caption.text for caption in found] == [*taught, "dogs and a dog"]

    # transformers alone says the same of the folder.
    model = outcome.model
    network = getattr(transformers, KINDS[kind].model).from_pretrained(model)
    words = transformers.AutoTokenizer.from_pretrained(model)
    pixels = transformers.AutoImageProcessor.from_pretrained(model, backend="pil")
    for photo, caption in zip(data.photos, found, strict=True):
        seen = pixels(images=Image.open(photo.path), return_tensors="pt")["pixel_values"]
        said = network.generate(pixel_values=seen, max_new_tokens=30, num_beams=1)[0]
        assert words.decode(said, skip_special_tokens=True).strip() == caption.text
    for name in ("tokenizer.json", "preprocessor_config.json"):
        assert (model / name).read_bytes() == (folder / name).read_bytes()
    record = json.loads((model / "regard.json").read_text())
    assert record["from"] == load_finished(folder, device="cpu").describe_self()
    assert record["settings"]["train"]["epochs"] == 5
    assert captioner.model.describe_self()["from"] == record["from"]
    card = (model / "README.md").read_text()
    assert record["from"]["weights"] in card
    assert "| trained | all of it |" in card


@pytest.mark.parametrize("kind", ["blip", "git"])  # GIT has dropout
def test_resumed_is_uninterrupted(kind, folders, data, tmp_path):
    config = settings(folders[kind], "train.save_every=1", "encoder.fine_tune_stages=1")
    whole, out = tmp_path / "whole", tmp_path / "stopped"
    train(data, config, whole, machine=HERE)

    def stop(progress: Progress, loss: float, speed: float) -> None:
        if progress.step == 3:
            signal.raise_signal(signal.SIGINT)

    stopped = train(data, config, out, machine=HERE, listener=Listener(watch=Watch(iteration=stop)))
    assert (stopped.progress.step, stopped.progress.finished) == (3, False)
    kept = torch.load(out / "resume.pt", weights_only=True)["learner"]
    tower = f"network.{TOWER[kind]}"
    assert all(n.startswith(f"network.{LAST[kind]}") for n in kept if n.startswith(tower))
    assert train(data, config, out, machine=HERE, resume=True).progress.finished
    first, second = (load_file(r / "model" / "model.safetensors") for r in (whole, out))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_log(whole / "log" / "steps.csv") == read_log(out / "log" / "steps.csv")
    assert not list(out.rglob("*.new"))


@pytest.mark.parametrize("kind", KIND)
@pytest.mark.parametrize("more", ["train.freeze=vision", "encoder.fine_tune_stages=1"])
def test_what_is_frozen_stays_and_the_rest_moves(kind, more, folders, data, tmp_path):
    config = settings(folders[kind], more, "train.max_steps=2", "validation.max_photos=1")
    outcome = train(data, config, tmp_path / "run", machine=HERE)
    before = load_file(folders[kind] / "model.safetensors")
    after = load_file(outcome.model / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    opened = {
        name for name in before
        if not name.startswith(TOWER[kind]) or ("stages" in more and name.startswith(LAST[kind]))
    }  # fmt: skip
    assert moved <= opened
    # Keys' biases have no effect, and the last positions are those of no caption.
    still = {name for name in opened - moved if "key.bias" not in name and "k_proj" not in name}
    assert not still
    assert len(opened) < len(before)


@pytest.mark.parametrize("kind", KIND)
def test_the_loss_is_that_of_transformers_on_the_words_alone(kind, folders, data):
    captioner = load_finished(folders[kind], device="cpu")
    config = settings(folders[kind])
    trainee = finished_trainee(config, data.photos, data.photos, begin=lambda *_: None)
    trainee.learner.eval()
    photos = trainee.source.read([0, 1])
    groups = [trainee.captions.by_photo[0], trainee.captions.by_photo[2]]
    groups[1] = groups[1][:1]  # a photo with fewer captions than the other
    captions = trainee.captions.padded(groups)  # (B, K, T + 1)
    with torch.no_grad():
        total, nll = trainee.learner(photos, captions)
        smooth, same = FinishedLearner(captioner, label_smoothing=0.1).eval()(photos, captions)
    assert float(nll) == float(same) == pytest.approx(float(nll))
    assert float(smooth) != float(same)
    expected = 0.0
    for b, k in ((0, 0), (0, 1), (1, 0)):
        ids = captions[b, k][captions[b, k] != PAD][None]  # (1, T + 1), unpadded
        assert ids[0, 0] == captioner.start
        assert ids[0, -1] == captioner.end
        labels = {"input_ids": ids, "labels": ids}
        if kind == "vision-encoder-decoder":
            labels = {"decoder_input_ids": ids[:, :-1], "labels": ids[:, 1:]}
        with torch.no_grad():
            loss = captioner.network(pixel_values=photos[b : b + 1], **labels).loss
        expected += float(loss) * (ids.shape[1] - 1)
    assert float(nll) == pytest.approx(expected, rel=1e-5)
    assert total != nll  # the preset smooths


def test_captions_are_those_that_scores_are_counted_on(folders, data):
    captioner = load_finished(folders["blip"], device="cpu")
    trainee = finished_trainee(
        settings(folders["blip"], "text.max_length=3"), data.photos, [], begin=lambda *_: None
    )
    words = captioner._tokenizer
    assert [len(set(group)) for group in trainee.captions.by_photo] == [1] * 4  # case, punctuation
    assert words.decode(trainee.captions.by_photo[0][0]) == words.decode(
        words("a black dog runs", add_special_tokens=False).input_ids[:3]
    )
    assert trainee.captions.end == words.sep_token_id


@pytest.mark.parametrize("kind", KIND)
def test_photos_are_prepared_as_for_captioning(kind, folders, data):
    trainee = finished_trainee(
        settings(folders[kind]), data.photos, data.photos, begin=lambda *_: None
    )
    pixels = transformers.AutoImageProcessor.from_pretrained(folders[kind], backend="pil")
    theirs = pixels(images=[Image.open(p.path) for p in data.photos], return_tensors="pt")
    assert torch.equal(trainee.source.read([0, 1, 2, 3]), theirs["pixel_values"])
    assert torch.equal(trainee.judging.read([3, 1]), theirs["pixel_values"][[3, 1]])


def test_a_changed_origin_is_not_gone_on_with(folders, data, tmp_path):
    folder = foreign.save_captioner(tmp_path / "blip", "blip")
    config = settings(folder, "train.max_steps=1", "validation.max_photos=1")
    train(data, config, tmp_path / "run", machine=HERE)
    network = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    torch.nn.init.zeros_(network.vision_model.embeddings.class_embedding)
    network.save_pretrained(folder)
    with pytest.raises(ConfigError, match=r"other settings or data:\n  from\.weights: "):
        train(data, config, tmp_path / "run", machine=HERE, resume=True)


def test_a_run_goes_through_every_command(folders, data, tmp_path):
    """Trained by the command line; scored, shown, captioned, and begun from again."""
    done = tiny.inside(
        "train", data.root, "--from", folders["blip"], "--fine-tune", 1, "--out", "blip",
        "--set", "validation.split=train", "--set", "train.max_steps=2", cwd=tmp_path,
    )  # fmt: skip
    assert "The model is in blip/model" in done.stdout
    short = ("train.max_steps=1", "validation.max_photos=1")
    train(data, settings(folders["git"], *short), tmp_path / "git", machine=HERE)
    tiny.inside(
        "evaluate", data.root, "--split", "train", "--model", "blip", "--no-meteor", "--json",
        "scores.json", cwd=tmp_path,
    )  # fmt: skip
    described = json.loads((tmp_path / "scores.json").read_text())["settings"]["captioner"]
    assert described["from"]["id"] == str(folders["blip"])
    tiny.inside(
        "report", "blip", "git", "--data", data.root, "--split", "train", "--out", "page",
        "--photos", 1, cwd=tmp_path,
    )  # fmt: skip
    page = (tmp_path / "page" / "index.html").read_text()
    assert "without a gaze" in page  # GIT has none
    assert list((tmp_path / "page" / "figures").glob("gaze-*-1.png"))  # and BLIP has
    assert not list((tmp_path / "page" / "figures").glob("gaze-*-2.png"))
    assert "nearest to the preset <b>finetune</b>" in page
    again = settings(tmp_path / "blip", *short)
    outcome = train(data, again, tmp_path / "again", machine=HERE)
    assert json.loads((outcome.model / "regard.json").read_text())["from"]["from"]["id"] == str(
        folders["blip"]
    )


# --- what cannot be done ----------------------------------------------------------------------


def test_options_of_our_own_are_refused_beside_it(folders, data, tmp_path):
    said = tiny.inside(
        "train", data.root, "--from", folders["blip"], "--encoder", "small", "--decoder", "lstm",
        "--out", "no", cwd=tmp_path, code=2,
    )  # fmt: skip
    assert "--encoder and --decoder cannot stand beside --from" in said.stderr
    with pytest.raises(ConfigError, match=r"decoder\.hidden_width cannot be set for"):
        settings(folders["blip"], "decoder.hidden_width=8")
    with pytest.raises(ConfigError, match=r"train\.freeze = 'text': input should be 'vision' or"):
        settings(folders["blip"], "train.freeze=text")
    with pytest.raises(ConfigError, match=r"trains its last blocks alone; set one of them"):
        settings(folders["blip"], "train.freeze=none", "encoder.fine_tune_stages=1")
    with pytest.raises(ConfigError, match=r"train\.freeze is none, which is for a finished"):
        make_config(settings=["train.freeze=none"])


def refused(source: Path | str, data: Dataset, out: Path, *more: str) -> str:
    with pytest.raises(ModelError) as error:
        train(data, settings(Path(source), *more), out, machine=HERE)
    assert not (out / "settings.json").exists()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_no_captioner_to_be_trained_is_refused(folders, data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    assert "is no captioner that others finished. Give --from" in refused(
        tmp_path / "empty", data, out
    )
    assert "A blip-2 can caption here, but not be trained further. Give --from one of these" in (
        refused(folders["blip-2"], data, out)
    )
    assert "Cannot train the last 3 blocks" in refused(
        folders["git"], data, out, "encoder.fine_tune_stages=3"
    )
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/x")
    said = refused("somebody/blip-nowhere", data, out)
    assert "could not be fetched from the hub" in said
    assert "--from blip-nowhere" in said


def test_the_preset_is_taken_for_it_alone():
    config = make_config(overrides={"captioner.id": "a/b"})
    assert (config.train.learning_rate, config.train.freeze) == (1e-5, "vision")
    assert make_config().train.learning_rate == 1e-3
    assert make_config(overrides={"captioner.id": "a/b"}, preset="report").train.epochs == 20
    assert "decoder" not in config.in_use()
    assert "captioner" not in make_config().in_use()
    assert np.isclose(config.train.encoder_learning_rate, 1e-5)
