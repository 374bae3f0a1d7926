"""The loop: iterations, epochs, saved states, and an end that loses nothing.

Lightning's Fabric supplies the devices, the mixed precision and the processes; the loop itself is
written out, because a run that was killed must go on at the very iteration at which it stopped,
bit for bit. Two habits make that simple. The batches of an epoch are a function of the seed and
the epoch, and the random numbers of an iteration (dropout) are a function of the seed and the
iteration: neither has a state to save.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from regard.config import TrainConfig
from regard.data.batches import PhotoSource, Plan, read_ahead
from regard.errors import RegardError
from regard.training.average import Average
from regard.training.lesson import Lesson, Teach
from regard.training.log import RunLog
from regard.training.schedule import rate

if TYPE_CHECKING:
    from lightning.fabric import Fabric


class TrainingError(RegardError):
    """A training that cannot go on."""


@dataclass
class Progress:
    """How far a run is. Plain numbers: this is saved and read back."""

    epoch: int = 0
    """Epochs that are done."""
    batch: int = 0
    """Iterations done of the next one."""
    step: int = 0
    """Iterations done in all."""
    loss_sum: float = 0.0
    """Sum of ``-log p(word)`` over the epoch's words so far; drawn captions' own, where they are
    what it learns from."""
    words: int = 0
    """Words said in the epoch so far."""
    sums: dict[str, list[float]] = field(default_factory=dict)
    """Of what else is measured in an iteration: by name its sum over the epoch so far, and of how
    many that is one."""
    seconds: float = 0.0
    """Time spent on the epoch's iterations so far."""
    best: float = -math.inf
    """Best CIDEr of an epoch."""
    best_loss: float = math.inf
    """Validation loss of that epoch, which decides between equal ones."""
    best_epoch: int = -1
    """The epoch that had it."""
    finished: bool = False
    """Whether the run has reached its end."""


@dataclass(frozen=True)
class Watch:
    """Who is told what happens; each does nothing unless it is given."""

    start: Callable[[dict[str, float]], None] = field(default=lambda _: None)
    """The scores of a captioner that training begins with, as it is."""
    iteration: Callable[[Progress, float, float], None] = field(default=lambda *_: None)
    """After each iteration: progress, loss, captions/s."""
    epoch: Callable[[dict[str, float]], None] = field(default=lambda _: None)
    """After each epoch: its row of ``epochs.csv``."""


def run_loop(
    *,
    fabric: Fabric,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    source: PhotoSource,
    teach: Teach,
    config: TrainConfig,
    seed: int,
    validate: Callable[[], dict[str, float]],
    begun: bool,
    keep_best: Callable[[dict[str, float]], None],
    state_file: Path,
    log_folder: Path,
    watch: Watch,
) -> Progress:
    """Train until the end, from the beginning or from the saved state.

    Args:
        fabric: launched.
        learner: photos and captions to sums, as :class:`regard.training.learner.Learner`; on its
            device, not yet wrapped.
        optimizer: of the learner's parameters; each group's ``lr`` is its highest rate.
        plan: the batches of this process.
        source: the photos.
        teach: what the captions of each batch are.
        config: how it learns.
        seed: of the iterations' random numbers.
        validate: scores after an epoch, among them ``CIDEr``; the same in every process.
        begun: whether the captioner can speak already: then it is judged as it is, and an epoch is
            better only if it is better than that.
        keep_best: called in the first process with the row of the best epoch so far; epoch -1 is
            the captioner as it was begun with.
        state_file: where the state to resume from is; read if it is there.
        log_folder: where the logs are.
        watch: who is told.

    Returns:
        The progress at the end; ``finished`` is false if a person ended the run.

    Raises:
        TrainingError: the loss is not a finite number.
    """
    wrapped, fabric_optimizer = fabric.setup(learner, optimizer)
    device = fabric.device
    highest = [group["lr"] for group in optimizer.param_groups]
    average = Average(_trained(learner), config.average) if config.average else None
    progress = _restore(state_file, learner, optimizer, average, device)
    with _asked_to_stop() as asked:
        log = (
            RunLog(log_folder, step=progress.step, epoch=progress.epoch)
            if fabric.is_global_zero
            else None
        )
        steps_per_epoch = len(plan)
        steps = min(config.epochs * steps_per_epoch, config.max_steps or math.inf)

        def save() -> None:
            if log is not None:
                log.flush()
                _save(state_file, learner, optimizer, average, progress)

        def keep_if_best(row: dict[str, float]) -> None:
            judged = row["CIDEr"], -row["val_loss"]
            if judged > (progress.best, -progress.best_loss):
                progress.best, progress.best_loss = row["CIDEr"], row["val_loss"]
                progress.best_epoch = int(row["epoch"])
                if fabric.is_global_zero:
                    keep_best(row)

        def judge() -> None:
            scores = validate()
            row = {
                "epoch": progress.epoch,
                "iteration": progress.step,
                "train_loss": progress.loss_sum / max(1, progress.words),
                **{name: total / max(1, of) for name, (total, of) in progress.sums.items()},
                **scores,
                "seconds": progress.seconds,
            }
            keep_if_best(row)
            if log is not None:
                log.epoch(row)
            watch.epoch(row)

        def end_epoch() -> None:
            with contextlib.nullcontext() if average is None else average.in_use():
                judge()
            progress.epoch += 1
            progress.batch = progress.words = 0
            progress.loss_sum = progress.seconds = 0.0
            progress.sums = {}
            patient = (
                config.patience is None
                or progress.epoch - 1 - progress.best_epoch < config.patience
            )
            progress.finished = (
                progress.step >= steps or progress.epoch >= config.epochs or not patient
            )
            save()

        if begun and not progress.step:
            row = {"epoch": -1, **validate()}
            keep_if_best(row)
            watch.start(row)
        while not progress.finished:
            learner.train()
            batches = plan.batches(source, epoch=progress.epoch, first=progress.batch)
            began = time.perf_counter()
            for batch in read_ahead(batches):
                factor = rate(
                    config,
                    step=progress.step,
                    steps_per_epoch=steps_per_epoch,
                    steps=int(steps),
                )
                for group, peak in zip(optimizer.param_groups, highest, strict=True):
                    group["lr"] = peak * factor
                torch.manual_seed(_mixed(seed, progress.step, fabric.global_rank))
                batch = batch.on(device)
                lesson = teach(batch, progress.step)
                more: dict[str, Any] = {
                    "weights": lesson.weights,
                    "expected": lesson.expected,
                    "drawn": lesson.drawn or None,
                }
                counted = {name: given for name, given in more.items() if given is not None}
                share = progress.step / steps
                total, nll = wrapped(batch.photos, lesson.captions, done=share, **counted)
                # DDP averages the gradients of its processes; the loss is a mean over all of them.
                fabric.backward(total * (fabric.world_size / lesson.divisor))
                words, measures = _over_processes(fabric, lesson)
                loss = float(_sum_over_processes(fabric, nll)) / words
                norm = clip_gradients(learner, config.clip)
                if not (math.isfinite(loss) and math.isfinite(norm)):
                    if log is not None:
                        log.close()
                    raise TrainingError(
                        _explain(progress, loss, norm, factor * highest[0], state_file)
                    )
                fabric_optimizer.step()
                fabric_optimizer.zero_grad(set_to_none=True)
                if average is not None:
                    average.update(progress.step)
                if log is not None:
                    log.step(
                        {
                            "iteration": progress.step,
                            "epoch": progress.epoch,
                            "loss": loss,
                            "learning_rate": factor * highest[0],
                            "gradient_norm": norm,
                            **{name: total / max(1, of) for name, (total, of) in measures.items()},
                        }
                    )
                ended = time.perf_counter()
                elapsed, began = ended - began, ended  # with the reading of the batch
                progress.step += 1
                progress.batch += 1
                progress.loss_sum += loss * words
                progress.words += words
                for name, pair in measures.items():
                    sums = progress.sums.get(name, (0.0, 0.0))
                    progress.sums[name] = [a + b for a, b in zip(sums, pair, strict=True)]
                progress.seconds += elapsed
                read = lesson.captions.shape[0] * lesson.captions.shape[1] * fabric.world_size
                watch.iteration(progress, loss, read / elapsed)
                stop = _any_process(fabric, asked.is_set())
                if stop or progress.step % config.save_every == 0:
                    save()
                if stop or progress.step >= steps:
                    break
            if asked.is_set() or (fabric.world_size > 1 and stop):
                break
            end_epoch()
        if log is not None:
            log.close()
    return progress


def clip_gradients(learner: nn.Module, most: float) -> float:
    """Scale the gradient down to the norm ``most`` (0: never); its norm before that."""
    trained = [p for p in learner.parameters() if p.grad is not None]
    norm = _norm([p.grad for p in trained if p.grad is not None])
    before = float(norm)
    if most and before > most:  # else it would be a pass over all gradients that changes nothing
        torch.nn.utils.clip_grads_with_norm_(trained, most, norm)
    return before


def _norm(gradients: Sequence[Tensor]) -> Tensor:
    """Of all of them together; on a CPU torch's dot product uses the threads, its norm does not."""
    if any(g.device.type != "cpu" or not g.is_contiguous() for g in gradients):
        return torch.nn.utils.get_total_norm(gradients)
    return torch.stack([torch.dot(g.view(-1), g.view(-1)) for g in gradients]).sum().sqrt()


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number * 2 + 1) % 2**63
    return mixed


def _sum_over_processes(fabric: Fabric, value: Tensor) -> Tensor:
    if fabric.world_size == 1:
        return value
    total: Tensor = fabric.all_reduce(value, reduce_op="sum")  # type: ignore[assignment]
    return total


def _over_processes(fabric: Fabric, lesson: Lesson) -> tuple[int, dict[str, tuple[float, float]]]:
    """The words and the measures of an iteration in all processes together."""
    if fabric.world_size == 1:
        return lesson.words, dict(lesson.measures)
    numbers = [lesson.words, *(n for pair in lesson.measures.values() for n in pair)]
    found = torch.tensor(numbers, dtype=torch.float64, device=fabric.device)
    words, *sums = _sum_over_processes(fabric, found).tolist()
    pairs = zip(sums[::2], sums[1::2], strict=True)
    return int(words), dict(zip(lesson.measures, pairs, strict=True))


def _any_process(fabric: Fabric, flag: bool) -> bool:
    if fabric.world_size == 1:
        return flag
    return bool(_sum_over_processes(fabric, torch.tensor(float(flag), device=fabric.device)) > 0)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that Ctrl-C and a termination signal set; a second one ends at once."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if asked.is_set():
            raise KeyboardInterrupt
        asked.set()

    before = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_state(state: Any, file: Path) -> None:
    """Save tensors and plain values, whole or not at all.

    Raises:
        TrainingError: there is no room.
    """
    beside = file.with_name(file.name + ".new")
    try:
        with beside.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        beside.replace(file)
    except OSError as error:
        raise TrainingError(
            f"The state of the run cannot be written to {file}: {error}. Make room, then go on "
            "with --resume."
        ) from error


def read_state(file: Path, device: torch.device) -> Any:
    """What :func:`write_state` saved.

    Raises:
        TrainingError: the file is damaged.
    """
    try:
        return torch.load(file, map_location=device, weights_only=True)
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise TrainingError(
            f"The saved state {file} cannot be read ({type(error).__name__}: {error}). Delete it "
            "to begin the run again with --resume, or take another --out."
        ) from error


def _save(
    file: Path,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    progress: Progress,
) -> None:
    state = {
        "learner": _trained(learner),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state(),
        "progress": vars(progress),
    }
    write_state(state, file)


def _restore(
    file: Path,
    learner: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: Average | None,
    device: torch.device,
) -> Progress:
    if not file.exists():
        return Progress()
    state: dict[str, Any] = read_state(file, device)
    missing, unexpected = learner.load_state_dict(state["learner"], strict=False)
    absent = [name for name in missing if name in _trained(learner)]
    if absent or unexpected:
        raise TrainingError(
            f"The saved state {file} is of another model: {sorted(absent + unexpected)}."
        )
    optimizer.load_state_dict(state["optimizer"])
    if average is not None:
        average.restore(state["average"])
    return Progress(**state["progress"])


def _trained(learner: nn.Module) -> dict[str, Tensor]:
    """What training changes: all that is not frozen, statistics too."""
    frozen = {
        name
        for name, parameter in learner.named_parameters(remove_duplicate=False)
        if not parameter.requires_grad
    }
    return {name: value for name, value in learner.state_dict().items() if name not in frozen}


def _explain(progress: Progress, loss: float, norm: float, rate: float, state_file: Path) -> str:
    kept = (
        f"The state before it is in {state_file}, as of the last save"
        if state_file.exists()
        else "No state was saved before it"
    )
    return (
        f"At iteration {progress.step} the loss is {loss} and the norm of its gradient {norm}: "
        f"they must be finite numbers. The learning rate there was {rate:.2e}. {kept}. Begin "
        "again with a smaller rate (--set train.learning_rate=...), with clipping (--set "
        "train.clip=5), or in float32 (--set train.precision=float32); if it happens at iteration "
        "0, the features or the word vectors hold values that are not finite."
    )
