"""A training from a data set to a run: what is read, built, trained and left behind.

A run is a folder:

=================  =======================================================================
``settings.json``  every setting, the data set and what it held
``machine.json``   the machine and the versions it was last trained with
``log/``           ``steps.csv``, ``epochs.csv``, TensorBoard's events
``encoder.pt``     the encoder that learnt words before the first epoch
``model/``         the model folder of the best epoch
``resume.pt``      the state from which ``--resume`` goes on
=================  =======================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from regard.build import (
    build_decoder,
    build_encoder,
    build_vocabulary,
    start_from_vectors,
    with_embedding_width,
)
from regard.checkpoint import write_model
from regard.config import Config, recorded
from regard.data.batches import CachedRegions, Captions, PhotoSource, Plan, PreparedPhotos
from regard.data.dataset import Dataset, Photo
from regard.data.features import build_features
from regard.describe import Decoding
from regard.errors import ConfigError, MissingExtraError
from regard.files import write_json
from regard.machine import describe_machine, keep_freed_memory
from regard.models.decoder import Decoder
from regard.models.devices import fast_precision, find_device
from regard.models.encoders import Encoder
from regard.text.tokenise import tokenise
from regard.text.vectors import read_vectors
from regard.text.vocabulary import Lexicon
from regard.training.learner import Learner
from regard.training.loop import Progress, Watch, read_state, run_loop, write_state
from regard.training.validate import validate
from regard.training.words import learn_words

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
    """Train a captioner.

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
    keep_freed_memory()
    fabric = _fabric(config, machine)
    photos, judged = _splits(dataset, config)
    tokens = [[tokenise(c) for c in p.captions] for p in photos]
    vocabulary = build_vocabulary(config.text, (c for group in tokens for c in group))
    vectors = None
    if config.text.embeddings is not None:
        vectors = read_vectors(Path(config.text.embeddings), vocabulary.words)
        listener.message(
            f"Word vectors: {len(vectors.vectors)} of {len(vocabulary)} words "
            f"({vectors.coverage(vocabulary.words):.1%}) have one."
        )
    config = with_embedding_width(config, vectors)
    described = _described(config, dataset)
    _check_place(out, described, resume=resume)

    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder)
    decoder = build_decoder(
        config.decoder, vocabulary_size=len(vocabulary), feature_width=encoder.width
    )
    if vectors is not None:
        start_from_vectors(decoder, vocabulary, vectors)
    if fabric.is_global_zero:
        if not (out / "settings.json").exists():
            write_json(out / "settings.json", described)
        _note_machine(out, fabric)
    fabric.barrier()
    captions = _encoded(tokens, vocabulary, config.text.max_length)
    if config.train.word_epochs and not encoder.frozen:
        _learn_words(
            out / "encoder.pt", encoder, photos, captions, vocabulary, config, fabric, listener
        )
    sources = _sources(encoder, photos, judged, fabric, cache, listener)
    learner = Learner(
        encoder=None if encoder.frozen else encoder,
        decoder=decoder,
        pad=vocabulary.pad,
        label_smoothing=config.train.label_smoothing,
    )
    plan = Plan(
        captions,
        grouping=config.train.grouping,
        batch_size=config.train.batch_size,
        captions_per_photo=config.train.captions_per_photo,
        bucket=config.train.bucket,
        seed=config.seed,
        rank=fabric.global_rank,
        world=fabric.world_size,
    )
    references = [[tokenise(c) for c in p.captions] for p in judged]
    known = _encoded(references, vocabulary, config.text.max_length)
    decoding = Decoding(beam=config.validation.beam)
    state = out / "resume.pt"
    steps = min(config.train.epochs * len(plan), config.train.max_steps or 10**12)
    listener.begin(0, len(plan), steps)
    progress = run_loop(
        fabric=fabric,
        learner=learner,
        optimizer=_optimizer(config, encoder, decoder),
        plan=plan,
        source=sources[0],
        config=config.train,
        seed=config.seed,
        validate=lambda: validate(
            learner, vocabulary, sources[1], known, references,
            grid=encoder.grid, decoding=decoding, precision=config.train.precision, fabric=fabric,
        ),
        keep_best=lambda row: write_model(
            out / "model",
            config=config,
            vocabulary=vocabulary,
            encoder=encoder,
            decoder=decoder,
            scores={
                "split": f"{config.validation.split} ({len(judged)} photos)",
                "beam": f"{config.validation.beam}",
                "epoch": f"{int(row['epoch'])}",
                "CIDEr": row["CIDEr"],
                "BLEU-4": row["BLEU-4"],
            },
            data=f"{dataset.name} ({dataset.layout}), {len(photos)} photos",
        ),
        state_file=state,
        log_folder=out / "log",
        watch=listener.watch,
    )  # fmt: skip
    model = out / "model"
    return Outcome(out, progress, model if model.exists() else None)


def _fabric(config: Config, machine: Machine) -> Fabric:
    """A launched Fabric: the devices and the precision."""
    try:
        from lightning.fabric import Fabric
    except ImportError:
        raise MissingExtraError("training", "train") from None

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


def _encoded(tokens: Sequence[Sequence[Sequence[str]]], vocabulary: Lexicon, most: int) -> Captions:
    return Captions(
        tuple(
            tuple(tuple(vocabulary.encode(c, max_length=most)) for c in group if c)
            for group in tokens
        ),
        pad=vocabulary.pad,
        start=vocabulary.start,
        end=vocabulary.end,
    )


def _learn_words(
    file: Path,
    encoder: Encoder,
    photos: Sequence[Photo],
    captions: Captions,
    vocabulary: Lexicon,
    config: Config,
    fabric: Fabric,
    listener: Listener,
) -> None:
    """Teach the encoder words in the first process, once, and freeze it in all of them."""
    if fabric.is_global_zero and not file.exists():
        words = torch.ones(len(vocabulary), dtype=torch.bool)
        words[[vocabulary.pad, vocabulary.start, vocabulary.end]] = False
        epochs = config.train.word_epochs
        learn_words(
            encoder.to(fabric.device),
            PreparedPhotos(encoder.preparation, [p.path for p in photos]),
            Plan(
                captions,
                grouping="photo",
                batch_size=config.train.batch_size,
                captions_per_photo=max(map(len, captions.by_photo)),
                seed=config.seed,
            ),
            config.train,
            words=words,
            fabric=fabric,
            on_epoch=lambda done, loss: listener.message(
                f"Words: epoch {done} of {epochs}, loss {loss:.2f} a photo."
            ),
        )
        write_state(encoder.backbone.state_dict(), file)
    fabric.barrier()
    encoder.backbone.load_state_dict(read_state(file, fabric.device))
    encoder.freeze()


def _sources(
    encoder: Encoder,
    photos: Sequence[Photo],
    judged: Sequence[Photo],
    fabric: Fabric,
    cache: Path | None,
    listener: Listener,
) -> tuple[PhotoSource, PhotoSource]:
    """Where the photos come from: the feature cache, or the files if the encoder is trained."""
    paths, judged_paths = [p.path for p in photos], [p.path for p in judged]
    if not encoder.frozen:
        return (
            PreparedPhotos(encoder.preparation, paths),
            PreparedPhotos(encoder.preparation, judged_paths),
        )
    store = build_features(
        [*paths, *judged_paths],
        encoder,
        cache,
        on_progress=listener.features if fabric.is_global_zero else None,
        on_message=listener.message,
    )
    fabric.barrier()
    return CachedRegions(store, paths), CachedRegions(store, judged_paths)


def _optimizer(config: Config, encoder: Encoder, decoder: Decoder) -> torch.optim.Optimizer:
    """Adam over matrices (with decay) and the rest (without); the encoder's apart."""
    train = config.train
    small_rate = train.encoder_learning_rate if config.encoder.fine_tune_stages else None
    groups: list[dict[str, Any]] = []
    for module, highest in (
        (decoder, train.learning_rate),
        (encoder, small_rate or train.learning_rate),
    ):
        trained = [p for p in module.parameters() if p.requires_grad]
        for parameters, decay in (
            ([p for p in trained if p.ndim > 1], train.weight_decay),
            ([p for p in trained if p.ndim <= 1], 0.0),
        ):
            if parameters:
                groups.append({"params": parameters, "lr": highest, "weight_decay": decay})
    kind = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
    return kind(groups, fused=True)


def _described(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What makes two runs the same run."""
    return {
        "settings": config.model_dump(),
        "data": {
            "path": str(dataset.root),
            "layout": dataset.layout,
            "splits": dataset.split_source,
            "photos": len(dataset.photos),
            "hash": _data_hash(dataset),
        },
    }


def _check_place(out: Path, described: dict[str, Any], *, resume: bool) -> None:
    """Refuse to mix two runs, before any work is done."""
    file = out / "settings.json"
    if not file.exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ConfigError(
                f"{out} exists and is no run. Take a new folder for --out, or delete this one."
            )
        return
    if not resume:
        raise ConfigError(
            f"{out} holds a run already. Go on with it by adding --resume, or take another --out."
        )
    begun = json.loads(file.read_text(encoding="utf-8"))
    begun["settings"] = recorded(begun["settings"], source=f"the settings in {file}").model_dump()
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
