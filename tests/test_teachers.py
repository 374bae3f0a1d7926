"""Learning what other captioners expect: what they expect, in which places, and the commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import tiny
from regard.checkpoint import read_model
from regard.data.batches import Captions, Expected, Plan
from regard.data.dataset import read_dataset
from regard.data.features import build_features
from regard.models.processors import ImageStatistics
from regard.models.resnet import ResNet
from regard.models.sources import write_resnet
from regard.text.tokenise import tokenise
from regard.training.log import read_log
from test_training import same_run

STUDENT = ["--preset", "scenes", *tiny.QUICK, "--set", "train.epochs=3"]
OTHER = ["--set", "decoder.hidden_width=32", "--set", "seed=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two teachers, one of each decoder, and a student of both."""
    folder = tmp_path_factory.mktemp("teachers")
    tiny.draw_tiny(folder / "tiny")
    tiny.inside("train", "tiny", "--out", "lstm", *STUDENT, cwd=folder)
    tiny.inside(
        "train", "tiny", "--out", "transformer", *STUDENT, "--set", "decoder.kind=transformer",
        "--set", "seed=2", cwd=folder,
    )  # fmt: skip
    tiny.inside("train", "tiny", "--out", "student", *STUDENT, *OTHER, *taught(), cwd=folder)
    return folder


def taught(*names: str) -> list[str]:
    return [word for name in names or ("lstm", "transformer") for word in ("--teacher", name)]


def test_it_is_the_mean_of_what_each_says_word_by_word(place):
    """Found all at once and in a batch; here one photo, one caption and one word at a time."""
    dataset = read_dataset(place / "tiny")
    photos = [p for p in dataset.split("train") if p.captions]
    models = [read_model(place / name) for name in ("lstm", "transformer")]
    found = load_file(place / "student" / "teachers.safetensors")
    words = zip(found["ids"], found["shares"], strict=True)
    for photo in photos:
        stores = [build_features([photo.path], m.encoder, place / "cache") for m in models]
        for caption in photo.captions:
            vocabulary = models[0].vocabulary
            said = [*vocabulary.encode(tokenise(caption), max_length=50), vocabulary.end]
            states = [
                m.decoder.eval().start(torch.from_numpy(s.read([photo.path])).float())
                for m, s in zip(models, stores, strict=True)
            ]
            before = vocabulary.start
            for word in said:
                steps = [
                    m.decoder.step(torch.tensor([before]), state)
                    for m, state in zip(models, states, strict=True)
                ]
                mean = torch.stack([s.logits.softmax(-1) for s in steps]).mean(0)[0]
                best = mean.detach().topk(min(16, len(mean)))
                ids, shares = next(words)
                np.testing.assert_array_equal(ids, best.indices.numpy())
                kept = best.values / best.values.sum()
                np.testing.assert_allclose(shares, kept.numpy(), rtol=2e-3, atol=1e-6)
                states, before = [s.state for s in steps], word
    assert next(words, None) is None


def test_what_is_expected_stands_where_its_words_are():
    rng = np.random.default_rng(0)
    groups = tuple(
        tuple(tuple(rng.integers(4, 9, rng.integers(1, 6)).tolist()) for _ in range(count))
        for count in (2, 3, 1, 0, 3)
    )
    words = sum(len(c) + 1 for group in groups for c in group)
    numbered = np.arange(words)[:, None] + np.zeros((1, 2), np.int64)
    captions = Captions(groups, pad=0, start=1, end=2, expected=Expected(numbered, numbered + 0.5))
    first = {}
    for photo, group in enumerate(groups):
        for k in range(len(group)):
            first[photo, k] = sum(len(c) + 1 for g in groups[:photo] for c in g)
            first[photo, k] += sum(len(c) + 1 for c in group[:k])

    class Nothing:
        def read(self, indices, views=None):
            return torch.zeros(len(indices), 1, 1)

    for grouping in ("photo", "caption"):
        plan = Plan(captions, grouping=grouping, batch_size=2, captions_per_photo=2, bucket=True)
        for items, batch in zip(plan.order(0), plan.batches(Nothing(), epoch=0), strict=True):
            ids, shares = batch.expected
            assert ids.shape == (*batch.captions[..., 1:].shape, 2)
            right = np.zeros_like(ids)
            for b, (photo, ks) in enumerate(items):
                for row, k in enumerate(ks):
                    length = len(groups[photo][k]) + 1
                    start = first[photo, k]
                    right[b, row, :length] = np.arange(start, start + length)[:, None]
            np.testing.assert_array_equal(ids, right)
            said = (batch.captions[..., 1:] != 0).numpy()
            np.testing.assert_array_equal(shares, (right + 0.5) * said[..., None])


def test_a_student_comes_near_what_its_teacher_expects(place):
    """All of the target is the teacher's: its surprise at people's words becomes the student's."""
    asked = [*STUDENT, *OTHER, "--set", "train.epochs=30", "--set", "train.learning_rate=0.01"]
    losses = {}
    for name, more in (
        ("alone", []),
        ("taught", [*taught("lstm"), "--set", "train.teaching=1"]),
    ):
        tiny.inside("train", "tiny", "--out", name, *asked, *more, cwd=place)
        losses[name] = float(read_log(place / name / "log" / "epochs.csv")[-1]["train_loss"])
    teacher = float(read_log(place / "lstm" / "log" / "epochs.csv")[-1]["train_loss"])
    assert losses["alone"] < 0.8 * losses["taught"]  # alone it goes on to learn captions by heart
    assert losses["taught"] == pytest.approx(teacher, rel=0.3)


def test_a_run_that_was_killed_goes_on_with_what_was_found(place):
    part = place / "part"
    part.mkdir()
    for name in ("settings.json", "teachers.safetensors"):
        shutil.copy(place / "student" / name, part / name)
    kept = (part / "teachers.safetensors").stat().st_mtime_ns
    again = ["train", "tiny", "--out", "part", *STUDENT, *OTHER, *taught(), "--resume"]
    done = tiny.inside(*again, cwd=place)
    assert "teachers ..." not in done.stdout + done.stderr
    assert (part / "teachers.safetensors").stat().st_mtime_ns == kept
    same_run(place / "student", part)


@pytest.mark.parametrize("damage", ["none", "cut", "of other captions"])
def test_what_cannot_be_read_is_found_again(place, damage):
    part = place / f"damaged {damage}"
    part.mkdir()
    shutil.copy(place / "student" / "settings.json", part / "settings.json")
    whole, file = place / "student" / "teachers.safetensors", part / "teachers.safetensors"
    if damage == "cut":
        file.write_bytes(whole.read_bytes()[:1000])
    elif damage == "of other captions":
        save_file({name: values[:5] for name, values in load_file(whole).items()}, file)
    again = ["train", "tiny", "--out", part, *STUDENT, *OTHER, *taught(), "--resume"]
    done = tiny.inside(*again, cwd=place)
    assert "Reading the captions of 12 photos with 2 teachers ..." in done.stdout + done.stderr
    same_run(place / "student", part)
    assert file.read_bytes() == whole.read_bytes()


def test_the_run_says_who_taught(place):
    described = json.loads((place / "student" / "settings.json").read_text())
    assert described["settings"]["train"]["teachers"] == ["lstm", "transformer"]
    assert described["teachers"] == [
        read_model(place / name).weights_hash for name in ("lstm", "transformer")
    ]
    alone = json.loads((place / "lstm" / "settings.json").read_text())
    assert not {"teachers", "teaching"} & alone["settings"]["train"].keys()
    other = tiny.inside(
        "train", "tiny", "--out", "student", *STUDENT, *OTHER, *taught("lstm"), "--resume",
        cwd=place, code=2,
    )  # fmt: skip
    assert "train.teachers" in other.stderr


def test_a_captioner_may_be_taught_further(place):
    tiny.inside(
        "train", "tiny", "--init", "lstm", "--out", "further", "--set", "train.epochs=1",
        *taught("transformer"), cwd=place,
    )  # fmt: skip
    assert (place / "further" / "teachers.safetensors").exists()


def test_a_teacher_may_have_other_eyes(place):
    """--encoder says where the student's are; the teacher's folder says where its own are."""
    for name, width in (("E", 8), ("F", 16)):
        torch.manual_seed(width)
        write_resnet(place / name, ResNet(depth=18, channels=(width,) * 4), ImageStatistics())
    anew = [*STUDENT, "--set", "encoder.image_size=32"]
    short = ["--set", "train.epochs=1", "--set", "train.precision=float32"]
    for name, asked in (
        ("eyes", [*anew, "--encoder", "E"]),
        ("others", [*anew, "--encoder", "F"]),
        ("anew", [*anew, "--encoder", "F", *taught("eyes")]),
        ("on", ["--init", "others", *taught("eyes")]),
    ):
        tiny.inside("train", "tiny", "--out", name, *asked, *short, cwd=place)
    found = [load_file(place / n / "teachers.safetensors") for n in ("anew", "on")]
    for name in Expected._fields:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_wrong_teachers_are_refused(place):
    ask = ["train", "tiny", "--out", "wrong", *STUDENT]

    def refused(*more: object) -> str:
        said = tiny.inside(*ask, *more, cwd=place, code=2).stderr
        assert not (place / "wrong").exists()
        return said

    assert "--teacher nowhere" in refused("--teacher", "nowhere")
    strange = refused("--teacher", "lstm", "--vocabulary", "bpe:270")
    assert "--teacher lstm knows" in strange
    assert "text.vocabulary" in strange
    assert "train.teaching = 0" in refused("--teacher", "lstm", "--set", "train.teaching=0")
    rewarded = refused("--scst", "--init", "lstm", "--teacher", "lstm", "--preset", "scst")
    assert "teachers is" in rewarded
    finished = tiny.inside(
        "train", "tiny", "--out", "wrong", "--from", "some/blip", "--teacher", "lstm", cwd=place,
        code=2,
    )  # fmt: skip
    assert "train.teachers" in finished.stderr
