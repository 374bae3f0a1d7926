"""Training through the real command: killed and resumed, in one process and in two."""

from __future__ import annotations

import csv
import itertools
import json
import math
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tiny
from regard.config import TrainConfig
from regard.training.log import RunLog, read_log
from regard.training.schedule import rate
from test_checkpoint import resnet_file


def columns(file: Path, *names: str) -> list[tuple[str, ...]]:
    with file.open() as stream:
        return [tuple(row[n] for n in names) for row in csv.DictReader(stream)]


def same_run(a: Path, b: Path) -> None:
    """Weights, losses and scores of two runs are equal to the last bit."""
    first, second = (load_file(run / "model" / "model.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
    names = ("iteration", "epoch", "loss", "learning_rate", "gradient_norm")
    assert columns(a / "log" / "steps.csv", *names) == columns(b / "log" / "steps.csv", *names)
    scores = ("epoch", "iteration", "train_loss", "val_loss", "CIDEr")
    assert columns(a / "log" / "epochs.csv", *scores) == columns(b / "log" / "epochs.csv", *scores)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return tiny.draw_tiny(tmp_path_factory.mktemp("data") / "tiny")


TRAIN = [
    "--preset",
    "scenes",
    *tiny.QUICK,
    "--set",
    "train.epochs=6",
    "--set",
    "decoder.dropout=0.3",
    "--set",
    "train.average=0.9",
    "--set",
    "train.views=3",
    "--set",
    "train.scheduled_sampling=0.5",
    "--set",
    "train.attention_penalty=0.1",
]


@pytest.fixture(scope="module")
def finished(data) -> Path:
    tiny.regard("train", data, "--out", "whole", *TRAIN, cwd=data.parent)
    return data.parent / "whole"


def test_a_run_leaves_its_logs_its_model_and_its_settings(finished):
    losses = read_log(finished / "log" / "steps.csv")
    assert [row["iteration"] for row in losses] == list(range(12))  # 12 photos in batches of 8
    epochs = read_log(finished / "log" / "epochs.csv")
    assert len(epochs) == 6
    assert epochs[-1]["train_loss"] < epochs[0]["train_loss"]
    assert list((finished / "log" / "tensorboard").iterdir())
    described = json.loads((finished / "model" / "config.json").read_text())
    assert described["format"] == 1
    assert described["scores"]["CIDEr"] == max(row["CIDEr"] for row in epochs)
    card = (finished / "model" / "README.md").read_text()
    assert "research and education only" in card
    vocabulary_size = described["settings"]["decoder"]["embedding_width"]
    assert vocabulary_size == 12
    assert not list(finished.rglob("*.new"))


def test_the_averaged_weights_are_the_ones_that_are_written(data):
    out = data.parent / "averaged"
    tiny.inside(
        "train", data, "--out", out, *TRAIN, "--set", "train.epochs=1", cwd=data.parent
    )  # fmt: skip
    state = torch.load(out / "resume.pt", weights_only=True)
    written = load_file(out / "model" / "model.safetensors")
    name = "decoder.output.weight"
    assert torch.equal(written[name], state["average"][name])
    assert not torch.allclose(written[name], state["learner"][name])


def test_the_same_command_gives_the_same_run(data, finished):
    tiny.regard("train", data, "--out", "again", *TRAIN, cwd=data.parent)
    same_run(finished, data.parent / "again")


def test_a_killed_run_goes_on_bit_for_bit(data, finished):
    """SIGKILL in the middle of an epoch, with lines logged beyond the saved state."""
    out = data.parent / "killed"
    arguments = ["train", data, "--out", out, *TRAIN, "--set", "train.save_every=1"]
    victim = subprocess.Popen(
        tiny.command(*arguments), cwd=data.parent, env=tiny.environment(data.parent),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    steps = out / "log" / "steps.csv"
    deadline = time.monotonic() + 120
    while not (steps.exists() and len(steps.read_text().splitlines()) > 5):
        assert victim.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    victim.send_signal(signal.SIGKILL)
    victim.wait()
    saved = torch.load(out / "resume.pt", weights_only=True)["progress"]
    assert not saved["finished"]
    with steps.open("a") as stream:  # what a kill leaves: lines beyond the state, the last one torn
        stream.write(f"{saved['step'] + 7},0,1.0,1.0,1.0\n{saved['step'] + 8},0,1.")
    tiny.regard(*arguments, "--resume", cwd=data.parent)
    same_run(finished, out)


def test_ctrl_c_ends_cleanly_and_loses_nothing(data, finished):
    out = data.parent / "stopped"
    arguments = ["train", data, "--out", out, *TRAIN]
    run = subprocess.Popen(
        tiny.command(*arguments), cwd=data.parent, env=tiny.environment(data.parent), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    steps = out / "log" / "steps.csv"
    while not steps.exists():
        assert run.poll() is None
        time.sleep(0.002)
    run.send_signal(signal.SIGINT)
    stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert "Go on with the same command and --resume" in stdout
    assert "Traceback" not in stderr
    tiny.inside(*arguments, "--resume", cwd=data.parent)
    same_run(finished, out)


def test_a_finished_run_stays_as_it_is(data, finished):
    before = {f: f.stat().st_mtime_ns for f in (finished / "model").iterdir()}
    tiny.inside("train", data, "--out", finished, *TRAIN, "--resume", cwd=data.parent)
    assert before == {f: f.stat().st_mtime_ns for f in (finished / "model").iterdir()}


@pytest.mark.parametrize("grouping", ["photo", "caption"])
def test_two_processes_learn_what_one_does(data, grouping):
    """The same global batches, without dropout: the same weights within rounding.

    With a frozen encoder: the batch norms of the small one see a process's part of a batch.
    """
    weights = resnet_file(data.parent / "resnet18.safetensors", 0)
    arguments = [
        "train", data, "--encoder", weights, *tiny.QUICK, "--device", "cpu",
        "--set", "train.epochs=2", "--set", "decoder.dropout=0",
        "--set", f"train.grouping={grouping}",
        "--set", "train.batch_size=5",
    ]  # fmt: skip
    one, two = data.parent / f"one-{grouping}", data.parent / f"two-{grouping}"
    tiny.inside(*arguments, "--out", one, cwd=data.parent)
    tiny.regard(*arguments, "--out", two, "--devices", 2, cwd=data.parent)
    first, second = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=2e-3, rtol=2e-3)
    losses = [[row["loss"] for row in read_log(run / "log" / "steps.csv")] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_run_is_never_overwritten_or_mixed_up(data, finished):
    again = tiny.inside("train", data, "--out", finished, *TRAIN, cwd=data.parent, code=2)
    assert "holds a run already. Go on with it by adding --resume" in again.stderr
    other = tiny.inside(
        "train", data, "--out", finished, *TRAIN, "--set", "seed=3", "--resume",
        cwd=data.parent, code=2,
    )  # fmt: skip
    assert "settings.seed: 0 then, 3 now" in other.stderr
    foreign = data.parent / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("precious")
    kept = tiny.inside("train", data, "--out", foreign, *TRAIN, cwd=data.parent, code=2)
    assert "exists and is no run" in kept.stderr
    assert [f.name for f in foreign.iterdir()] == ["thesis.txt"]


def test_a_damaged_state_is_named(data, finished):
    state = finished / "resume.pt"
    whole = state.read_bytes()
    state.write_bytes(whole[: len(whole) // 2])
    try:
        said = tiny.inside(
            "train", data, "--out", finished, *TRAIN, "--resume", cwd=data.parent, code=2
        )
    finally:
        state.write_bytes(whole)
    assert "resume.pt cannot be read" in said.stderr


def test_a_loss_that_is_not_finite_stops_with_an_explanation(data):
    said = tiny.inside(
        "train", data, "--out", "nan", *TRAIN, "--set", "train.learning_rate=1e30",
        "--set", "train.clip=0", "--set", "train.schedule=constant",
        "--set", "train.warmup_steps=0",
        cwd=data.parent, code=2,
    )  # fmt: skip
    assert "the loss is nan" in said.stderr or "norm of its gradient" in said.stderr
    assert "smaller rate (--set train.learning_rate=...)" in said.stderr


def test_the_step_schedule_halves_every_ten_epochs():
    config = TrainConfig()
    rates = [rate(config, step=s, steps_per_epoch=3, steps=90) for s in range(90)]
    assert rates[:30] == [1.0] * 30
    assert rates[30:60] == [0.5] * 30
    assert rates[60:] == [0.25] * 30


def test_the_cosine_schedule_rises_and_falls_to_zero():
    config = TrainConfig(schedule="cosine", warmup_steps=10)
    rates = [rate(config, step=s, steps_per_epoch=5, steps=100) for s in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 1e-2


def test_the_log_drops_what_came_after_the_saved_state(tmp_path):
    log = RunLog(tmp_path, step=0, epoch=0)
    for i in range(5):
        log.step(
            {
                "iteration": i,
                "epoch": 0,
                "loss": math.pi * i,
                "learning_rate": 1,
                "gradient_norm": 1,
            }
        )
    log.epoch({"epoch": 0, "CIDEr": 0.5})
    log.close()
    RunLog(tmp_path, step=3, epoch=0).close()
    assert [row["loss"] for row in read_log(tmp_path / "steps.csv")] == [
        math.pi * i for i in range(3)
    ]
    assert read_log(tmp_path / "epochs.csv") == []


def test_a_line_of_the_log_that_is_still_being_written_is_left_out(tmp_path):
    file = tmp_path / "steps.csv"
    file.write_text("iteration,loss\n0,2.5\n1,2.25\n2,1.", encoding="utf-8")
    assert [row["loss"] for row in read_log(file)] == [2.5, 2.25]
