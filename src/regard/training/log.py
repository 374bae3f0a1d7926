"""What a run leaves to read: two CSV files and TensorBoard's events.

=============  ===================================================================================
``steps.csv``  a line an iteration: iteration, epoch, loss (nats a word), learning rate, gradient
``epochs.csv`` a line an epoch: mean losses, scores, seconds, captions/s
=============  ===================================================================================

A training that learns from a reward has more columns in both: ``reward``, the mean of the drawn
captions', which is the mean of their baselines too; ``spread``, the standard deviation of a photo's
rewards; ``surprise``, the mean of ``-log p`` of a drawn word when it was drawn (nats), whose
expectation is the entropy. In ``epochs.csv`` also how the validation captions stand up to the
faults that a reward is known to teach: ``repeated``, the share that says a phrase twice,
``cut_off``, the share that ends in the middle of one, and ``words_used``, how many different words
they have.

A run that goes on after a kill drops the lines written after its saved state, so that each
iteration stands there once.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any


class RunLog:
    """The files of a run, open for lines to be added.

    Args:
        folder: made if it is not there.
        step: iterations that are done; later lines are dropped.
        epoch: epochs that are done; later lines are dropped.
    """

    def __init__(self, folder: Path, *, step: int, epoch: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._steps_file = folder / "steps.csv"
        self._epochs_file = folder / "epochs.csv"
        _keep(self._steps_file, "iteration", step)
        _keep(self._epochs_file, "epoch", epoch)
        self._steps: IO[str] = self._steps_file.open("a", encoding="utf-8", newline="")
        self._writer: csv.DictWriter[str] | None = None
        from torch.utils.tensorboard import SummaryWriter

        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step)

    def step(self, row: Mapping[str, Any]) -> None:
        """A line an iteration, all with the same fields."""
        if self._writer is None:
            self._writer = csv.DictWriter(self._steps, list(row))
            if self._steps.tell() == 0:
                self._writer.writeheader()
        self._writer.writerow(row)
        for name in row.keys() - {"iteration", "epoch", "gradient_norm"}:
            self._board.add_scalar(f"iteration/{name}", row[name], row["iteration"])

    def epoch(self, row: Mapping[str, Any]) -> None:
        """A line an epoch; the first decides the fields."""
        self.flush()
        new = not self._epochs_file.exists() or self._epochs_file.stat().st_size == 0
        with self._epochs_file.open("a", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, list(row))
            if new:
                writer.writeheader()
            writer.writerow(row)
        for name, value in row.items():
            if name != "epoch":
                self._board.add_scalar(f"epoch/{name}", value, row["epoch"])

    def flush(self) -> None:
        """Everything to the disk."""
        self._steps.flush()
        self._board.flush()

    def close(self) -> None:
        """The end of the run, or of this part of it."""
        self._steps.close()
        self._board.close()


def read_log(file: Path) -> list[dict[str, float]]:
    """The lines of a CSV file of a run, as numbers; a line still being written is left out."""
    if not file.exists():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        whole = [line for line in stream if line.endswith("\n")]
    return [
        {k: float(v) for k, v in row.items() if k is not None and v not in (None, "")}
        for row in csv.DictReader(whole)
    ]


def _keep(file: Path, field: str, below: int) -> None:
    """Keep the whole lines whose number is below ``below``."""
    if not file.exists():
        return
    with file.open(encoding="utf-8", newline="") as stream:
        lines = stream.read().splitlines(keepends=True)
    kept = lines[:1]
    position = lines[0].strip().split(",").index(field) if lines else 0
    for line in lines[1:]:
        cells = line.strip().split(",")
        if line.endswith("\n") and len(cells) > position and int(float(cells[position])) < below:
            kept.append(line)
        else:
            break
    beside = file.with_name(file.name + ".new")
    with beside.open("w", encoding="utf-8", newline="") as stream:
        stream.writelines(kept)
    beside.replace(file)
