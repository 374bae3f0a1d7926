"""Self-critical training: drawn as from the model, rewarded with the end, learnt without bias."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import regard
import tiny
from regard.build import build_decoder
from regard.config import Config, make_config
from regard.data.batches import Batch
from regard.data.dataset import Dataset, read_dataset
from regard.errors import ConfigError, ModelError
from regard.metrics.bleu import bleu
from regard.metrics.cider import DocumentFrequencies, cider
from regard.metrics.clipscore import PROMPT
from regard.models.decoder import Decoder, Step
from regard.search import Rules, draw
from regard.text.vocabulary import Vocabulary
from regard.training.learner import Learner
from regard.training.log import read_log
from regard.training.reward import Reward
from regard.training.run import Machine, train
from regard.training.scst import SelfCritical, advantages
from regard.training.validate import validate
from test_checkpoint import resnet_file
from test_training import same_run

pytest.importorskip("lightning", reason="lightning is not installed")

HERE = Machine(device="cpu")
SPOKEN = Vocabulary(["a", "dog", "runs", "far"])
KINDS = ["lstm", "transformer"]


# --- the data set, a captioner that speaks, and what is trained from it -----------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return read_dataset(tiny.draw_tiny(tmp_path_factory.mktemp("data") / "tiny"))


@pytest.fixture(scope="module", params=[("lstm", "words:1"), ("transformer", "bpe:300")], ids=str)
def base(request, data, tmp_path_factory) -> Path:
    """A captioner that has learnt some: there is a reward to be had, and more of it to be had."""
    kind, vocabulary = request.param
    config = make_config(
        preset="scenes",
        overrides={"text.vocabulary": vocabulary},
        settings=[*tiny.QUICK[1::2], f"decoder.kind={kind}", "decoder.heads=4",
                  "train.epochs=12", "train.batch_size=3", "train.learning_rate=5e-3",
                  "train.warmup_steps=10", "decoder.dropout=0.1", "decoder.hidden_width=48"],
    )  # fmt: skip
    out = tmp_path_factory.mktemp("base") / "base"
    train(data, config, out, machine=HERE)
    return out


@pytest.fixture(scope="module")
def spoken(data, tmp_path_factory) -> Path:
    """The run of an LSTM of words, for what is the same of every kind."""
    out = tmp_path_factory.mktemp("spoken") / "base"
    config = make_config(
        preset="scenes",
        settings=[*tiny.QUICK[1::2], "train.epochs=20", "train.batch_size=3",
                  "train.learning_rate=5e-3", "train.warmup_steps=10"],
    )  # fmt: skip
    train(data, config, out, machine=HERE)
    return out


def settings(init: Path | str, *more: str) -> Config:
    return make_config(
        overrides={"captioner.init": str(init), "train.objective": "scst"},
        settings=["train.epochs=2", "train.batch_size=3", "train.precision=float32",
                  "train.learning_rate=3e-3", "train.warmup_steps=0", "validation.beam=2",
                  *more],
    )  # fmt: skip


def test_the_reward_rises(base, data, tmp_path):
    config = settings(base, "train.epochs=26", "train.learning_rate=2e-3")
    outcome = train(data, config, tmp_path / "run", machine=HERE)
    epochs = read_log(tmp_path / "run" / "log" / "epochs.csv")
    rewards = [row["reward"] for row in epochs]
    assert np.mean(rewards[-5:]) > 1.25 * np.mean(rewards[:3])
    assert {"spread", "surprise", "repeated", "cut_off", "words_used"} <= epochs[0].keys()
    assert all(0 <= row["cut_off"] <= 1 <= row["words_used"] for row in epochs)
    assert outcome.progress.best >= max(row["CIDEr"] for row in epochs)
    steps = read_log(tmp_path / "run" / "log" / "steps.csv")
    assert len(steps) == 26 * 4
    assert np.mean([row["reward"] for row in steps[:4]]) == pytest.approx(rewards[0])
    # Captions drawn and read again have the same probability: what cannot be drawn is in neither.
    assert steps[0]["loss"] == pytest.approx(steps[0]["surprise"], rel=1e-4)
    # It captions, and says what it was trained from.
    found = regard.load(tmp_path / "run", device="cpu").caption(data.photos[0].path)
    assert found.text
    described = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["settings"]
    before = json.loads((base / "model" / "config.json").read_text())["settings"]
    assert described["decoder"] == before["decoder"] | {"dropout": 0.0}
    assert described["text"]["vocabulary"] == before["text"]["vocabulary"]
    assert described["captioner"]["init"] == str(base)
    # Runs of cross-entropy have none of this.
    assert not read_log(base / "log" / "epochs.csv")[0].keys() & {"reward", "cut_off"}
    assert "samples" not in before["train"]
    assert "captioner" not in before


def test_a_captioner_that_only_gets_worse_is_kept_as_it_was(spoken, data, tmp_path, monkeypatch):
    judged = iter([0.3, 0.2])  # as it was begun with, and after its epoch

    def judge(*arguments: Any, **options: Any) -> dict[str, float]:
        return validate(*arguments, **options) | {"CIDEr": next(judged)}

    monkeypatch.setattr("regard.training.run.validate", judge)
    config = settings(spoken, "train.epochs=1")
    outcome = train(data, config, tmp_path / "run", machine=HERE)
    [epoch] = read_log(tmp_path / "run" / "log" / "epochs.csv")
    assert (outcome.progress.best_epoch, outcome.progress.best) == (-1, 0.3)
    assert epoch["CIDEr"] == 0.2
    learnt = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["learner"]
    kept = load_file(spoken / "model" / "model.safetensors")["decoder.output.weight"]
    assert not torch.equal(learnt["decoder.output.weight"], kept)
    before, after = (
        load_file(run / "model" / "model.safetensors") for run in (spoken, tmp_path / "run")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


# --- drawing ----------------------------------------------------------------------------------


class Fixed:
    """Says the same distribution at every place; nothing to remember."""

    device = torch.device("cpu")

    def __init__(self, logits: torch.Tensor, rows: int) -> None:
        self.logits, self.rows = logits, rows

    def select(self, indices: torch.Tensor) -> Fixed:
        return Fixed(self.logits, len(indices))

    def step(self, tokens: torch.Tensor, state: Fixed) -> Step:
        assert len(tokens) == state.rows
        logits = self.logits.expand(len(tokens), -1)
        return Step(logits, torch.ones(len(tokens), 1), state)


RULES = Rules(start=SPOKEN.start, end=SPOKEN.end, forbidden=SPOKEN.forbidden)


def test_words_are_drawn_as_often_as_they_are_probable():
    logits = torch.randn(len(SPOKEN), generator=torch.Generator().manual_seed(0))
    logits[list(SPOKEN.forbidden)] = 5  # more probable than anything, and never said
    state = Fixed(logits, 1)
    uniform = torch.rand(1, 20_000, 4, generator=torch.Generator().manual_seed(1))
    drawn = draw(state.step, state, rules=RULES, uniform=uniform)
    ids = drawn.ids[0]
    assert not torch.isin(ids, torch.tensor(SPOKEN.forbidden)).any()
    for place in (0, 1):
        open = logits.clone()
        open[[*SPOKEN.forbidden, *([SPOKEN.end] if place == 0 else [])]] = -torch.inf
        expected = open.softmax(-1)
        there = ids[:, place][ids[:, place] >= 0]
        shares = torch.bincount(there, minlength=len(SPOKEN)) / len(there)
        torch.testing.assert_close(shares, expected, atol=0.015, rtol=0)
        said = ids[:, place] >= 0
        torch.testing.assert_close(
            drawn.log_probabilities[0, said, place], expected.log()[ids[said, place]]
        )
    ended = (ids == SPOKEN.end).int()
    after = ended.cumsum(1) - ended > 0
    assert ((ids == -1) == after).all()
    assert (drawn.log_probabilities[0][after] == 0).all()


def test_the_highest_number_draws_a_word_that_can_be_drawn():
    logits = torch.tensor([[0.0] * (len(SPOKEN) - 1) + [-torch.inf]])
    state = Fixed(logits, 1)
    highest = torch.full((1, 2, 3), 1 - 2**-24)
    assert highest.max() < 1
    assert (draw(state.step, state, rules=RULES, uniform=highest).ids == len(SPOKEN) - 2).all()
    totals = torch.rand(100_000, generator=torch.Generator().manual_seed(0)) + 0.5
    assert (totals * highest[0, 0, 0] < totals).all()


class Teaching:
    """A tiny decoder with all that self-critical training needs of it."""

    photos, samples = 3, 4

    def __init__(self, kind: str, **more: float) -> None:
        torch.manual_seed(0)
        config = make_config(
            settings=[f"decoder.kind={kind}", "decoder.hidden_width=8", "decoder.heads=2",
                      "decoder.embedding_width=6", "decoder.attention_width=5"],
        )  # fmt: skip
        decoder = build_decoder(config.decoder, vocabulary_size=len(SPOKEN), feature_width=7)
        with torch.no_grad():
            for p in decoder.parameters():
                p.normal_(std=0.7)
        self.decoder: Decoder = decoder
        self.learner = Learner(
            encoder=None, decoder=decoder, pad=SPOKEN.pad, label_smoothing=0.0,
            end=SPOKEN.end, forbidden=SPOKEN.forbidden,
        )  # fmt: skip
        self.references: list[list[list[str]]] = [
            [["a", "dog", "runs"], ["dog"]], [["far", "far"]], [["a", "dog"], ["a", "horse"]],
        ]  # fmt: skip
        self.teach = SelfCritical(
            self.learner, SPOKEN, Reward(self.references, {"cider": 1.0}), samples=self.samples,
            longest=6, cross_entropy=more.get("cross_entropy", 0.0), precision="float32", seed=3,
        )  # fmt: skip
        self.regions = torch.randn(self.photos, 5, 7)

    def batch(self, *indices: int) -> Batch:
        groups = [[SPOKEN.encode(c) for c in self.references[i]] for i in indices]
        captions = torch.full((len(groups), 2, 5), SPOKEN.pad)
        for b, group in enumerate(groups):
            for k, ids in enumerate(group):
                whole = [SPOKEN.start, *ids, SPOKEN.end]
                captions[b, k, : len(whole)] = torch.tensor(whole)
        targets = sum(len(ids) + 1 for group in groups for ids in group)
        return Batch(self.regions[list(indices)], captions, targets, indices, len(indices))

    def gradient(self, batch: Batch, step: int = 0) -> dict[str, torch.Tensor]:
        lesson = self.teach(batch, step)
        self.learner.zero_grad()
        total, nll = self.learner(batch.photos, lesson.captions, weights=lesson.weights, drawn=True)
        assert lesson.words > 0
        assert nll > 0
        (total / lesson.divisor).backward()
        return {n: p.grad.clone() for n, p in self.decoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_a_photos_captions_do_not_depend_on_the_others(kind):
    teaching = Teaching(kind)
    together = teaching.teach.draw(teaching.batch(0, 1, 2), 5)[0]
    alone = teaching.teach.draw(teaching.batch(2), 5)[0]
    assert torch.equal(together[2, :, : alone.shape[2]], alone[0])
    other = teaching.teach.draw(teaching.batch(2), 6)[0]
    assert other.shape != alone.shape or not torch.equal(other, alone)  # another iteration
    # Photos that look the same still have captions of their own.
    teaching.regions[:] = teaching.regions[0]
    same = teaching.teach.draw(teaching.batch(0, 1, 2), 5)[0]
    assert not torch.equal(same[0], same[1])
    assert not torch.equal(same[1], same[2])


# --- the gradient -----------------------------------------------------------------------------


def step_by_step(teaching: Teaching, batch: Batch) -> torch.Tensor:
    """The loss by its definition: a caption, a word, a softmax at a time."""
    ids = teaching.teach.draw(batch, 0)[0]
    words, ended = teaching.teach.spell(ids)
    tokens = [[[*c, "<END>"] if e else list(c) for c, e in zip(g, es, strict=True)]
              for g, es in zip(words, ended, strict=True)]  # fmt: skip
    references = [[[*c, "<END>"] for c in group] for group in teaching.references]
    frequencies = DocumentFrequencies.of(references)
    loss = torch.zeros(())
    for b, index in enumerate(batch.indices):
        rewards = cider(tokens[b], [references[index]] * len(tokens[b]), frequencies).per_photo
        for k, reward in enumerate(rewards):
            others = [r for j, r in enumerate(rewards) if j != k]
            said = [i for i in ids[b, k].tolist() if i >= 0]
            for t, word in enumerate(said):
                read = torch.tensor([[[SPOKEN.start, *said[:t]]]])
                scores = teaching.decoder(batch.photos[b : b + 1], read)[0, 0, -1]
                scores[[*SPOKEN.forbidden, *([SPOKEN.end] if t == 0 else [])]] = -torch.inf
                loss = loss - (reward - np.mean(others)) * scores.log_softmax(-1)[word]
    return loss / (len(batch.indices) * teaching.samples)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_is_reinforce_with_the_others_as_baseline(kind):
    teaching = Teaching(kind)
    batch = teaching.batch(2, 0, 1)
    found = teaching.gradient(batch)
    teaching.learner.zero_grad()
    step_by_step(teaching, batch).backward()
    assert sum(float(g.abs().sum()) for g in found.values()) > 0.1
    for name, parameter in teaching.decoder.named_parameters():
        if name in found:
            torch.testing.assert_close(
                found[name], parameter.grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
            )


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_is_added_with_its_weight(kind):
    """That of people's captions, a word of which the captioner does not know."""
    mixed, plain = Teaching(kind, cross_entropy=0.3), Teaching(kind)
    batch = mixed.batch(0, 1, 2)
    found, without = mixed.gradient(batch), plain.gradient(batch)
    unknown = batch.captions == SPOKEN.unk
    assert unknown.sum() == 1
    plain.learner.zero_grad()
    scores = plain.decoder(batch.photos, batch.captions[..., :-1])  # (B, K, T, V)
    targets = batch.captions[..., 1:].flatten()
    open = torch.zeros(len(SPOKEN))
    open[list(SPOKEN.forbidden)] = -torch.inf
    closed = (scores + open).masked_fill(unknown[..., 1:, None], 0)
    closed[..., 0, SPOKEN.end] = -torch.inf
    scores = torch.where(unknown[..., 1:, None], scores, closed).flatten(0, 2)
    loss = torch.nn.functional.cross_entropy(scores, targets, ignore_index=SPOKEN.pad)
    (0.3 * loss).backward()
    for name, parameter in plain.decoder.named_parameters():
        if name in found:
            expected = without[name] + parameter.grad
            torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4)


def test_the_baseline_is_the_mean_of_the_others():
    rewards = np.random.default_rng(0).random((6, 5))
    found = advantages(rewards)
    np.testing.assert_allclose(found.sum(1), 0, atol=1e-12)
    for b, k in np.ndindex(6, 5):
        assert found[b, k] == pytest.approx(rewards[b, k] - np.delete(rewards[b], k).mean())


def test_a_process_without_a_photo_adds_nothing():
    teaching = Teaching("lstm")
    nothing = torch.full((1, 1, 2), SPOKEN.pad)
    batch = Batch(teaching.regions[:1], nothing, 9, (), 2)
    lesson = teaching.teach(batch, 0)
    total, _ = teaching.learner(batch.photos, lesson.captions, weights=lesson.weights, drawn=True)
    total.backward()
    assert lesson.divisor == 2 * teaching.samples
    assert all(not p.grad.any() for p in teaching.decoder.parameters() if p.grad is not None)
    assert lesson.measures.keys() == teaching.teach(teaching.batch(0), 0).measures.keys()


# --- the reward -------------------------------------------------------------------------------

SAID = [[["a", "dog", "runs"], ["a", "dog"]], [["far", "far"], ["far"]]]
ENDED = np.array([[True, True], [True, False]])
KNOWN = [[["a", "dog", "runs"], ["dog", "runs"]], [["far", "far"]], [["a", "cat"]]]


class Looks:
    """A CLIP that finds long texts to fit."""

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        assert all(text.startswith(PROMPT) for text in texts)
        angles = np.array([len(text) / 40 for text in texts])
        return np.stack([np.sin(angles), np.cos(angles)], 1).astype(np.float32)


def test_the_reward_counts_the_end():
    """A caption that was broken off where another ended gets less, by CIDEr and by BLEU."""
    for name in ("cider", "bleu4"):
        reward = Reward([[["a", "man", "in", "a", "hat"]], [["a", "dog"]]], {name: 1.0})
        captions = [[["a", "man", "in", "a", "hat"], ["a", "man", "in", "a", "hat"]]]
        ended, broken = reward([0], captions, np.array([[True, False]]))[0]
        assert ended > broken > 0
        assert ended == pytest.approx({"cider": 10, "bleu4": 1}[name])


def test_rewards_are_mixed_by_their_weights():
    seen = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)

    def of(**weights: float) -> np.ndarray:
        return Reward(KNOWN, weights, clip=Looks(), seen=seen)([0, 1], SAID, ENDED)

    mixed = of(cider=1, bleu4=0.5, clipscore=2)
    np.testing.assert_allclose(mixed, of(cider=1) + 0.5 * of(bleu4=1) + 2 * of(clipscore=1))
    flat = [["a", "dog", "runs", "<END>"], ["a", "dog", "<END>"], ["far", "far", "<END>"], ["far"]]
    wanted = [[[*c, "<END>"] for c in KNOWN[p]] for p in (0, 0, 1, 1)]
    np.testing.assert_allclose(of(bleu4=1).ravel(), bleu(flat, wanted)[3].per_photo)
    angle = len(PROMPT + "a dog runs") / 40
    assert of(clipscore=1)[0, 0] == pytest.approx(2.5 * np.sin(angle), rel=1e-5)


def test_a_real_clip_judges(spoken, data, tmp_path, clip_folder):
    config = settings(
        spoken, "train.epochs=1", "train.reward=cider=1,clipscore=0.5",
        f"train.reward_clip={clip_folder}", "validation.max_photos=2",
    )  # fmt: skip
    train(data, config, tmp_path / "run", machine=HERE)
    described = json.loads((tmp_path / "run" / "settings.json").read_text())
    assert described["settings"]["train"]["reward"] == "cider=1,clipscore=0.5"
    assert len(described["reward_clip"]) == 32
    assert described["init"]["weights"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("transformers", reason="transformers is not installed")
    import test_clip

    return test_clip.save_clip(tmp_path_factory.mktemp("clip"))


# --- killed, resumed, shared ------------------------------------------------------------------

COMMAND = [
    "--set", "train.epochs=4", "--set", "train.batch_size=3", "--set", "train.precision=float32",
    "--set", "decoder.dropout=0.2", "--set", "train.cross_entropy=0.1",
]  # fmt: skip


def test_a_killed_run_goes_on_bit_for_bit(spoken, data, tmp_path):
    arguments = ["train", data.root, "--scst", "--init", spoken, *COMMAND]
    whole, out = tmp_path / "whole", tmp_path / "killed"
    tiny.inside(*arguments, "--out", whole, cwd=tmp_path)
    arguments += ["--out", out, "--set", "train.save_every=1"]
    victim = subprocess.Popen(
        tiny.command(*arguments), cwd=tmp_path, env=tiny.environment(tmp_path),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    steps = out / "log" / "steps.csv"
    deadline = time.monotonic() + 120
    while not (steps.exists() and len(steps.read_text().splitlines()) > 6):
        assert victim.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    assert not torch.load(out / "resume.pt", weights_only=True)["progress"]["finished"]
    tiny.regard(*arguments, "--resume", cwd=tmp_path)
    same_run(whole, out)
    drop = lambda rows: [{k: v for k, v in row.items() if k != "seconds"} for row in rows]  # noqa: E731
    first, second = (read_log(run / "log" / "epochs.csv") for run in (whole, out))
    assert drop(first) == drop(second)
    assert read_log(whole / "log" / "steps.csv") == read_log(out / "log" / "steps.csv")


def test_two_processes_learn_what_one_does(spoken, data, tmp_path):
    """The same captions are drawn, wherever: the same rewards, and weights within rounding."""
    arguments = [
        "train", data.root, "--scst", "--init", spoken, "--device", "cpu",
        "--set", "train.epochs=2", "--set", "train.batch_size=5",
        "--set", "train.precision=float32",
    ]  # fmt: skip
    one, two = tmp_path / "one", tmp_path / "two"
    tiny.inside(*arguments, "--out", one, cwd=tmp_path)
    tiny.regard(*arguments, "--out", two, "--devices", 2, cwd=tmp_path)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=2e-3)
    for name in ("reward", "spread", "surprise", "loss"):
        values = [[row[name] for row in read_log(run / "log" / "steps.csv")] for run in (one, two)]
        assert values[0] == pytest.approx(values[1], rel=1e-3)


def test_weights_are_not_rounded_by_mixed_precision(spoken, data, tmp_path):
    """Lightning casts tensors that a module is given: as bf16 they once were read as float32."""
    config = settings(spoken, "train.precision=bf16", "train.max_steps=1")
    train(data, config, tmp_path / "bf16", machine=HERE)
    config = settings(spoken, "train.max_steps=1")
    train(data, config, tmp_path / "float32", machine=HERE)
    rounded, exact = (
        read_log(tmp_path / name / "log" / "steps.csv")[0]["gradient_norm"]
        for name in ("bf16", "float32")
    )
    assert rounded == pytest.approx(exact, rel=0.2)


# --- what a captioner that is begun with brings -----------------------------------------------


def test_cross_entropy_goes_on_from_a_captioner_too(spoken, data, tmp_path):
    before = read_log(spoken / "log" / "epochs.csv")
    config = make_config(
        overrides={"captioner.init": str(spoken)},
        settings=["train.epochs=1", "train.learning_rate=1e-5", "train.precision=float32"],
    )
    train(data, config, tmp_path / "run", machine=HERE)
    (row,) = read_log(tmp_path / "run" / "log" / "epochs.csv")
    best = max(before, key=lambda r: (r["CIDEr"], -r["val_loss"]))
    assert row["val_loss"] == pytest.approx(best["val_loss"], abs=0.01)
    assert "reward" not in row


def test_a_trained_encoder_goes_with_it(data, tmp_path):
    """Its weights are in the captioner's folder alone, and are again in the new one's."""
    weights = resnet_file(tmp_path / "resnet18.safetensors", 0)
    config = make_config(
        overrides={"encoder.id": str(weights), "encoder.fine_tune_stages": 1},
        settings=[*tiny.QUICK[3::2], "encoder.image_size=64", "train.max_steps=2",
                  "train.encoder_learning_rate=1e-2", "validation.max_photos=1"],
    )  # fmt: skip
    train(data, config, tmp_path / "base", machine=HERE)
    weights.unlink()
    more = ("train.max_steps=1", "validation.max_photos=1")
    train(data, settings(tmp_path / "base", *more), tmp_path / "run", machine=HERE)
    first, second = (
        load_file(tmp_path / run / "model" / "model.safetensors") for run in ("base", "run")
    )
    seen = [name for name in first if name.startswith("encoder.")]
    assert len(seen) > 50
    assert all(torch.equal(first[name], second[name]) for name in seen)


# --- what cannot be done ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["captioner.init=null"], "give one of regard's own, a run or a model folder, with --init"),
        (["captioner.id=a/b"], "--scst cannot stand beside --from a/b"),
        (["captioner.id=a/b", "train.objective=cross-entropy"], "--init cannot stand beside"),
        (["train.grouping=caption"], "grouping is caption; self-critical training draws captions"),
        (["train.label_smoothing=0.1"], "label_smoothing is 0.1, which is for cross-entropy"),
        (["train.reward=cider"], "'cider' is no reward with its weight; expected some of cider"),
        (["train.reward=rouge=1"], "'rouge=1' is no reward with its weight"),
        (["train.reward=cider=0"], "'cider=0' is no reward with its weight"),
        (["train.reward=cider=1,cider=2"], "'cider=2' is no reward with its weight"),
        (["train.reward=clipscore=1"], "the reward clipscore and its CLIP belong together"),
        (["train.reward_clip=a/b"], "the reward clipscore and its CLIP belong together"),
        (["train.samples=1"], "train.samples = 1: input should be greater than or equal to 2"),
        (["train.word_epochs=2"], "are for a captioner that begins anew"),
        (["text.embeddings=glove.txt"], "are for a captioner that begins anew"),
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused(more, said):
    with pytest.raises(ConfigError) as error:
        settings("base", *more)
    assert said in str(error.value)
    assert str(error.value).count("\n  ") == 1  # one problem, one line


def test_what_is_no_captioner_to_begin_with_is_refused(spoken, data, tmp_path):
    out = tmp_path / "run"
    (tmp_path / "empty").mkdir()
    for init, said in (
        (tmp_path / "nowhere", "There is no model at"),
        (tmp_path / "empty", "is no model folder"),
    ):
        with pytest.raises(ModelError) as error:
            train(data, settings(init), out, machine=HERE)
        assert f"--init {init}: " in str(error.value)
        assert said in str(error.value)
    for setting, has in (
        ("text.vocabulary=words:5", "text.vocabulary is 'words:5', 'words:1' there"),
        ("decoder.kind=transformer", "decoder.kind is 'transformer', 'lstm' there"),
        ("encoder.image_size=224", "encoder.image_size is 224, 112 there"),
    ):
        with pytest.raises(ConfigError) as refused:
            train(data, settings(spoken, setting), out, machine=HERE)
        assert has in str(refused.value)
        assert "\n" not in str(refused.value)
    assert not out.exists()
    said = tiny.inside("train", data.root, "--scst", "--out", "no", cwd=tmp_path, code=2)
    assert "with --init" in said.stderr


def test_the_same_as_the_captioners_own_is_no_contradiction(spoken, data, tmp_path):
    config = settings(spoken, "text.vocabulary=words:1", "decoder.kind=lstm", "train.max_steps=1")
    assert train(data, config, tmp_path / "run", machine=HERE).progress.step == 1


def test_the_preset_is_taken_for_it_alone():
    assert settings("x").train.reward == "cider=1"
    config = make_config(overrides={"captioner.init": "x", "train.objective": "scst"})
    assert (config.train.grouping, config.decoder.dropout) == ("photo", 0.0)
    assert make_config(overrides={"captioner.init": "x"}).train.objective == "cross-entropy"
