"""Self-critical training: the reward, the baseline, the gradient, the draws, the command."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from regard.config import Config, ConfigError, going_on, make_config
from regard.metrics.cider import DocumentFrequencies, cider
from regard.models.decoder import Decoder
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.text.vocabulary import Vocabulary
from regard.training.log import read_log
from regard.training.scst import END, Reward, ScstLearner, leave_one_out
from test_training import same_run

WORDS = Vocabulary("a red green blue circle square dog runs".split())
REFERENCES = [
    [["a", "red", "circle"], ["a", "circle"]],
    [["a", "green", "square"], ["the", "green", "square"]],
    [["a", "dog", "runs"], ["a", "blue", "dog"]],
]


@pytest.fixture(params=["lstm", "transformer"])
def decoder(request) -> Decoder:
    torch.manual_seed(0)
    if request.param == "lstm":
        made: Decoder = LstmDecoder(
            vocabulary_size=len(WORDS), feature_width=6, embedding_width=5, hidden_width=8,
            attention_width=4, dropout=0.0,
        )  # fmt: skip
    else:
        made = TransformerDecoder(
            vocabulary_size=len(WORDS), feature_width=6, embedding_width=8, hidden_width=8,
            layers=2, heads=2, feed_forward_width=9, dropout=0.0,
        )  # fmt: skip
    return made


def learner(decoder: Decoder, **settings: float) -> ScstLearner:
    usual = {"samples": 4, "max_length": 6, "known_share": 0.0}
    return ScstLearner(
        encoder=None, decoder=decoder, vocabulary=WORDS, reward=Reward(REFERENCES),
        label_smoothing=0.0, **(usual | settings),
    )  # fmt: skip


def known() -> Tensor:
    rows = [[WORDS.start, *WORDS.encode(group[0]), WORDS.end] for group in REFERENCES]
    longest = max(map(len, rows))
    return torch.tensor([[row + [WORDS.pad] * (longest - len(row))] for row in rows])


def test_the_reward_is_cider_with_the_end_as_a_word():
    reward = Reward(REFERENCES)
    captions = [["a", "red", "circle", END], ["a", "red"], ["a", "dog", "runs", END], ["dog"]]
    photos = [0, 0, 2, 1]
    ended = [[[*caption, "END"] for caption in group] for group in REFERENCES]
    expected = cider(
        [["END" if w == END else w for w in caption] for caption in captions],
        [ended[photo] for photo in photos],
        DocumentFrequencies.of(ended),
    ).per_photo
    np.testing.assert_allclose(reward(captions, photos), expected, atol=1e-12)


def test_a_caption_that_ends_is_worth_more_than_one_that_is_cut_off():
    reward = Reward(REFERENCES)
    whole, cut = reward([["a", "red", "circle", END], ["a", "red", "circle"]], [0, 0])
    assert whole > cut


def test_the_baseline_is_the_mean_of_the_others():
    rewards = torch.rand(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    advantages = leave_one_out(rewards)
    for b in range(5):
        for k in range(4):
            others = [float(rewards[b, j]) for j in range(4) if j != k]
            assert float(advantages[b, k]) == pytest.approx(float(rewards[b, k]) - np.mean(others))
    torch.testing.assert_close(
        advantages.sum(dim=1), torch.zeros(5, dtype=torch.float64), atol=1e-12, rtol=0
    )


def test_captions_are_drawn_from_the_captioners_own_distribution(decoder):
    """The share of draws that begin with a word is its probability, and none is forbidden."""
    regions = torch.randn(1, 5, 6)
    drawn = learner(decoder, samples=3000).draw(regions)[0]  # (K, T + 1)
    hidden = decoder.eval().read(regions, torch.tensor([[[WORDS.start]]])).hidden
    scores = decoder.logits(hidden)[0, 0, 0].detach()
    scores[list(WORDS.forbidden)] = -torch.inf
    scores[WORDS.end] = -torch.inf  # no end before a word
    shares = torch.bincount(drawn[:, 1], minlength=len(WORDS)) / len(drawn)
    torch.testing.assert_close(shares, scores.softmax(dim=-1), atol=0.04, rtol=0)
    said = drawn[:, 1:]
    assert not torch.isin(said[said != WORDS.pad], torch.tensor(WORDS.forbidden)).any()
    for row in said[:200].tolist():
        ends = [i for i, word in enumerate(row) if word == WORDS.end]
        assert len(ends) <= 1
        after = row[ends[0] + 1 :] if ends else row[6:]  # 6 words, then an end or nothing
        assert all(word == WORDS.pad for word in after)
        assert WORDS.pad not in row[: ends[0] if ends else 6]


def test_the_gradient_is_that_of_the_formula(decoder):
    """Against REINFORCE written out: word by word, one caption at a time."""
    taught = learner(decoder)
    regions = torch.randn(3, 5, 6)
    torch.manual_seed(3)
    taught.train()
    loss, minus_reward = taught(regions, known(), 0.0, [0, 1, 2])
    loss.backward()
    found = {n: p.grad.clone() for n, p in decoder.named_parameters() if p.grad is not None}
    torch.manual_seed(3)
    drawn = taught.draw(regions)
    decoder.zero_grad()
    captions, photos = [], []
    for b in range(3):
        for k in range(4):
            ids = [i for i in drawn[b, k, 1:].tolist() if i != WORDS.pad]
            captions.append([END if i == WORDS.end else WORDS.spell([i])[0].word for i in ids])
            photos.append(b)
    rewards = Reward(REFERENCES)(captions, photos).reshape(3, 4)
    words = sum(map(len, captions))
    total = torch.zeros(())
    for b in range(3):
        for k in range(4):
            advantage = rewards[b, k] - np.delete(rewards[b], k).mean()
            ids = [i for i in drawn[b, k].tolist() if i != WORDS.pad]
            for t in range(1, len(ids)):
                before = torch.tensor([[ids[:t]]])
                hidden = decoder.read(regions[b : b + 1], before).hidden[0, 0, -1]
                scores = decoder.logits(hidden).index_fill(
                    0, torch.tensor(WORDS.forbidden), -torch.inf
                )
                total = total - float(advantage) * scores.log_softmax(dim=-1)[ids[t]] / words
    count = int((known()[..., 1:] != WORDS.pad).sum())
    (total * count).backward()
    assert loss.item() == pytest.approx((total * count).item(), rel=1e-4, abs=1e-6)
    assert minus_reward.item() == pytest.approx(-rewards.mean() * count, rel=1e-5)
    expected = {n: p.grad for n, p in decoder.named_parameters() if p.grad is not None}
    assert found.keys() == expected.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=2e-5, rtol=1e-3)


def test_it_raises_the_reward(decoder):
    taught = learner(decoder, samples=8)
    regions = torch.randn(3, 5, 6)
    optimizer = torch.optim.Adam(decoder.parameters(), 1e-2)
    torch.manual_seed(4)
    rewards = []
    for _ in range(120):
        taught.train()
        loss, minus_reward = taught(regions, known(), 0.0, [0, 1, 2])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(-minus_reward.item())
    assert np.mean(rewards[-20:]) > 3 * np.mean(rewards[:20])


def test_the_shares_of_both_losses_add_up(decoder):
    regions = torch.randn(3, 5, 6)
    which = [0, 1, 2]

    def loss(share: float) -> float:
        torch.manual_seed(5)
        return learner(decoder, known_share=share).train()(regions, known(), 0.0, which)[0].item()

    plain = super(ScstLearner, learner(decoder)).forward(regions, known())[0].item()
    assert loss(0.25) == pytest.approx(0.75 * loss(0.0) + 0.25 * plain, rel=1e-4)


def test_judged_by_known_captions(decoder):
    regions = torch.randn(3, 5, 6)
    taught = learner(decoder).eval()
    plain = super(ScstLearner, taught).forward(regions, known())
    assert torch.equal(taught(regions, known(), 0.0, [0, 1, 2])[1], plain[1])


def settings(*more: str) -> Config:
    return make_config(preset="scst", overrides={"init": "run"}, settings=["train.epochs=2", *more])


def test_the_captioner_begun_with_decides_what_it_is():
    begun = make_config(preset="transformer", settings=["text.vocabulary=bpe:500"])
    config = going_on(settings("decoder.dropout=0", "encoder.fine_tune_stages=2"), begun)
    assert config.decoder.kind == "transformer"
    assert config.decoder.dropout == 0
    assert config.text.vocabulary == "bpe:500"
    assert config.encoder.fine_tune_stages == 2
    assert going_on(settings(), begun).decoder.dropout == begun.decoder.dropout
    with pytest.raises(ConfigError, match=r"decoder.kind is 'lstm' here and 'transformer' there"):
        going_on(settings("decoder.kind=lstm"), begun)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["train.grouping=caption"], "train.grouping is caption; set it to photo"),
        (["captioner.id=blip"], "--init or --from"),
        (["train.samples=1"], "train.samples"),
    ],
)
def test_what_does_not_go_together_is_refused(more, message):
    with pytest.raises(ConfigError, match=message):
        settings(*more)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.draw_tiny(tmp_path_factory.mktemp("data") / "tiny")


SCST = [
    "--scst", "--init", "begun", "--set", "train.epochs=4", "--set", "train.batch_size=6",
    "--set", "train.precision=float32", "--set", "train.learning_rate=1e-3",
]  # fmt: skip


@pytest.fixture(scope="module")
def finished(data) -> Path:
    tiny.regard(
        "train", data, "--out", "begun", "--preset", "scenes", *tiny.QUICK,
        "--set", "train.epochs=3", cwd=data.parent,
    )  # fmt: skip
    tiny.regard("train", data, "--out", "whole", *SCST, cwd=data.parent)
    return data.parent / "whole"


def test_the_command_trains_what_it_began_with(data, finished):
    epochs = read_log(finished / "log" / "epochs.csv")
    assert len(epochs) == 4
    assert {"repeated", "cut_off", "words_used"} <= epochs[0].keys()
    assert all(row["train_loss"] <= 0 for row in epochs)  # minus a reward
    said = json.loads((finished / "settings.json").read_text())
    begun = json.loads((data.parent / "begun" / "model" / "config.json").read_text())
    assert said["init"] == begun["weights"]
    written = json.loads((finished / "model" / "config.json").read_text())
    assert written["settings"]["decoder"]["kind"] == "lstm"
    assert written["encoder"]["weights_hash"] == begun["encoder"]["weights_hash"]  # frozen
    caption = tiny.regard("caption", "tiny/photos/00.png", "--model", "whole", cwd=data.parent)
    assert caption.stdout.strip()


def test_a_killed_run_goes_on_bit_for_bit(data, finished):
    out = data.parent / "killed"
    arguments = ["train", data, "--out", out, *SCST, "--set", "train.save_every=1"]
    victim = subprocess.Popen(
        tiny.command(*arguments), cwd=data.parent, env=tiny.environment(data.parent),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    steps = out / "log" / "steps.csv"
    while not (steps.exists() and len(steps.read_text().splitlines()) > 3):
        assert victim.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    tiny.regard(*arguments, "--resume", cwd=data.parent)
    same_run(finished, out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--scst"], "name one with --init"),
        (["--scst", "--init", "nowhere"], "There is no model at nowhere"),
        (["--scst", "--init", "begun", "--decoder", "transformer"], "decoder.kind is"),
        (["--scst", "--init", "begun", "--from", "blip"], "--init or --from"),
    ],
)
def test_wrong_inputs_give_one_clear_line(data, finished, arguments, message):
    done = tiny.regard("train", data, "--out", "wrong", *arguments, cwd=data.parent, code=2)
    assert message in done.stderr
    assert not (data.parent / "wrong").exists()
