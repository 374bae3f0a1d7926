"""A training from a data set to a run: what is read, built, trained and left behind.

A run is a folder:

========================  =================================================================
``settings.json``         every setting, the data set and what it held
``machine.json``          the machine and the versions it was last trained with
``log/``                  ``steps.csv``, ``epochs.csv``, TensorBoard's events
``teachers.safetensors``  what teachers expect at each word of the captions
``encoder.pt``            the encoder that learnt words before the first epoch
``model/``                the model folder of the best epoch
``resume.pt``             the state from which ``--resume`` goes on
========================  =================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn import Parameter

from regard.config import Config, TrainConfig, recorded
from regard.data.batches import Plan
from regard.data.dataset import Dataset, Photo
from regard.errors import ConfigError, MissingExtraError
from regard.files import write_json
from regard.machine import describe_machine, keep_freed_memory
from regard.models.devices import fast_precision, find_device
from regard.text.tokenise import tokenise
from regard.training.finetune import finished_trainee
from regard.training.loop import Progress, Watch, run_loop
from regard.training.own import own_trainee
from regard.training.validate import validate

if TYPE_CHECKING:
    from lightning.fabric import Fabric


@dataclass(frozen=True)
class Machine:
    """Where a training runs."""

    device: str = "auto"
    """``auto``, ``cpu``, ``cuda`` or ``mps``."""
    devices: int = 1
    """Processes on each machine."""
    nodes: int = 1
    """Machines."""


@dataclass(frozen=True)
class Listener:
    """Who is told what happens during a training; each does nothing unless it is given."""

    message: Callable[[str], None] = lambda _: None
    """One line."""
    features: Callable[[int, int], None] = lambda *_: None
    """Photos encoded, photos in all."""
    begin: Callable[[int, int, int], None] = lambda *_: None
    """Before the first iteration: iterations done, iterations of an epoch, iterations in all."""
    watch: Watch = field(default_factory=Watch)
    """During the loop."""


@dataclass(frozen=True)
class Outcome:
    """What a training left."""

    run: Path
    progress: Progress
    model: Path | None
    """The model folder, once an epoch is done."""


def train(
    dataset: Dataset,
    config: Config,
    out: Path,
    *,
    resume: bool = False,
    machine: Machine | None = None,
    cache: Path | None = None,
    listener: Listener | None = None,
) -> Outcome:
    """Train a captioner: one of our own, or one that others finished further.

    Args:
        dataset: photos and captions; its ``train`` split is learnt, ``validation.split`` judges.
        config: the settings.
        out: the run; new or empty unless ``resume``.
        resume: go on from the saved state.
        machine: where it runs.
        cache: root of the feature cache; none is the default one.
        listener: who is told.

    Raises:
        ConfigError: the run exists, or was begun with other settings or data.
        DataError, ModelError, PhotoError, CacheError, TrainingError: as their names say.
    """
    machine, listener = machine or Machine(), listener or Listener()
    words, stages = config.train.word_epochs, config.encoder.fine_tune_stages
    if words and stages:
        raise ConfigError(
            f"train.word_epochs is {words}, which freezes an encoder that begins without weights; "
            f"encoder.fine_tune_stages is {stages}, which trains one that has them. Set one of "
            "them to 0."
        )
    _check_place(out, resume=resume)
    keep_freed_memory()
    fabric = _fabric(config, machine)
    photos, judged = _splits(dataset, config)

    def begin(settled: Config, more: Mapping[str, Any]) -> None:
        described = _described(settled, dataset) | dict(more)
        _check_same(out, described)
        if fabric.is_global_zero:
            if not (out / "settings.json").exists():
                write_json(out / "settings.json", described)
            _note_machine(out, fabric)
        fabric.barrier()

    if config.captioner.id is not None:
        trainee = finished_trainee(config, photos, judged, begin=begin)
    else:
        trainee = own_trainee(
            config, photos, judged, out=out, fabric=fabric, begin=begin, cache=cache,
            message=listener.message, features=listener.features,
        )  # fmt: skip
    plan = Plan(
        trainee.captions,
        grouping=config.train.grouping,
        batch_size=config.train.batch_size,
        captions_per_photo=config.train.captions_per_photo,
        bucket=config.train.bucket,
        views=config.train.views,
        seed=config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    references = [[tokenise(c) for c in p.captions] for p in judged]
    steps = min(config.train.epochs * len(plan), config.train.max_steps or 10**12)
    listener.begin(0, len(plan), steps)
    model = out / "model"
    progress = run_loop(
        fabric=fabric,
        learner=trainee.learner,
        optimizer=_optimizer(config.train, trainee.rates),
        plan=plan,
        source=trainee.source,
        teach=trainee.teach,
        config=config.train,
        seed=config.seed,
        validate=lambda: validate(trainee, references, fabric=fabric),
        begun=config.captioner.init is not None,
        keep_best=lambda row: trainee.keep(
            model,
            {
                "split": f"{config.validation.split} ({len(judged)} photos)",
                "beam": f"{config.validation.beam}",
                "epoch": f"{int(row['epoch'])}"
                if row["epoch"] >= 0
                else "none, as it was begun with",
                "CIDEr": row["CIDEr"],
                "BLEU-4": row["BLEU-4"],
            },
            f"{dataset.name} ({dataset.layout}), {len(photos)} photos",
        ),
        state_file=out / "resume.pt",
        log_folder=out / "log",
        watch=listener.watch,
    )
    return Outcome(out, progress, model if model.exists() else None)


def _fabric(config: Config, machine: Machine) -> Fabric:
    """A launched Fabric: the devices and the precision."""
    try:
        from lightning.fabric import Fabric
    except ImportError:
        raise MissingExtraError("Training", "train") from None

    device = find_device(machine.device)
    precision = config.train.precision
    if precision == "auto":
        precision = fast_precision(device)
    processes = machine.devices * machine.nodes
    if device.type == "cpu" and machine.devices > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // machine.devices))
    for name in ("lightning.fabric", "lightning.pytorch"):  # what they announce is shown by us
        logging.getLogger(name).setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=device.type,
            devices=machine.devices,
            num_nodes=machine.nodes,
            strategy="ddp" if processes > 1 else "auto",
            precision="bf16-mixed" if precision == "bf16" else "32-true",
        )
        fabric.launch()
    return fabric


def _splits(dataset: Dataset, config: Config) -> tuple[Sequence[Photo], Sequence[Photo]]:
    """The photos that are learnt and those that judge."""
    photos = [p for p in dataset.split("train") if p.captions]
    judged = sorted(dataset.split(config.validation.split), key=lambda p: p.id)
    return photos, [p for p in judged if p.captions][: config.validation.max_photos]


def _optimizer(
    config: TrainConfig, rates: Sequence[tuple[Sequence[Parameter], float]]
) -> torch.optim.Optimizer:
    """Adam over matrices (with decay) and the rest (without), each with its highest rate."""
    groups: list[dict[str, Any]] = []
    for parameters, highest in rates:
        trained = [p for p in parameters if p.requires_grad]
        for some, decay in (
            ([p for p in trained if p.ndim > 1], config.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            if some:
                groups.append({"params": some, "lr": highest, "weight_decay": decay})
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, fused=True)


def _described(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "settings": config.in_use(),
        "data": {
            "path": str(dataset.root),
            "layout": dataset.layout,
            "splits": dataset.split_source,
            "photos": len(dataset.photos),
            "hash": _data_hash(dataset),
        },
    }


def _check_place(out: Path, *, resume: bool) -> None:
    """Refuse a place that holds something else, before any work is done."""
    if not (out / "settings.json").exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                f"{out} exists and is no run. Take a new folder for --out, or delete this one."
            )
    elif not resume:
        raise ConfigError(
            f"{out} holds a run already. Go on with it by adding --resume, or take another --out."
        )


def _check_same(out: Path, described: dict[str, Any]) -> None:
    """Refuse to mix two runs."""
    file = out / "settings.json"
    if not file.exists():
        return
    begun = json.loads(file.read_text(encoding="utf-8"))
    begun["settings"] = recorded(begun["settings"], source=f"the settings in {file}").in_use()
    differences = list(_differences(begun, described))
    if differences:
        raise ConfigError(
            f"The run in {out} was begun with other settings or data:\n  "
            + "\n  ".join(differences)
            + "\nResume with the same command as at first, or take another --out."
        )


def _note_machine(out: Path, fabric: Fabric) -> None:
    found = describe_machine()
    found["machine"] |= {
        "device": str(fabric.device),
        "processes": fabric.world_size,
        "threads": torch.get_num_threads(),
    }
    write_json(out / "machine.json", found)


def _differences(before: Any, now: Any, name: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in _differences(before.get(key), now.get(key), f"{name}.{key}".strip("."))
        ]
    return [] if before == now else [f"{name}: {before!r} then, {now!r} now"]


def _data_hash(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    for photo in dataset.photos:
        digest.update(repr((photo.id, photo.split, photo.captions)).encode())
    return digest.hexdigest()
