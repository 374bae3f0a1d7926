"""A captioner as ONNX, so that its captions can be had wherever onnxruntime runs.

The networks are traced by ``torch.export`` with sizes that may differ at every call, and run by
onnxruntime beside torch before the folder takes its name: one that says otherwise is not left
behind.
"""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import regard
from regard.apps.export_card import render_card
from regard.build import write_frequencies
from regard.checkpoint import Model, read_model
from regard.errors import ConfigError, MissingExtraError, ModelError, RegardError
from regard.exported import (
    ENCODER,
    FORMAT,
    NEXT,
    START,
    STEP,
    find_exported,
    load_exported,
)
from regard.files import hash_file
from regard.finished import find_finished
from regard.models.decoder import Decoder, Parts, Rows, Speaker, Step
from regard.models.encoders import Encoder

_WHOLE = 1_500_000_000  # bytes of weights in the file of a network itself; protobuf ends at 2^31
_CLOSE = {"regions": 1e-2, "logits": 1e-3, "attention": 1e-3}
"""How far onnxruntime may be from torch, as a share of the largest value. Regions are rounded to
float16, where the last digit is 1e-3, and encoders have many layers."""


def export_model(
    source: str | Path,
    out: Path,
    *,
    encoder: str | None = None,
    revision: str | None = None,
) -> dict[str, float]:
    """Write a captioner as a folder of ONNX: all of it beside its place, then renamed.

    Args:
        source: a run, a model folder, or a hub id.
        out: a folder that is not there yet, or empty.
        encoder: another place of the encoder's weights than the model names.
        revision: branch, tag or commit of a hub id.

    Returns:
        By output, how far onnxruntime was from torch at most, as a share of the largest value.

    Raises:
        ModelError: the model cannot be had, is not one of regard's own, or cannot be exported.
        MissingExtraError: the packages for ONNX are not installed.
        RegardError: the folder holds something, or cannot be written.
    """
    _check_place(out)
    _check_packages()
    _check_source(source, revision)
    model = read_model(source, encoder=encoder, revision=revision)
    beside = out.with_name(out.name + ".new")
    try:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
        _write(beside, model)
        differences = _compare(beside, model)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    except OSError as error:
        raise RegardError(
            f"{error.filename or out} cannot be written: {error.strerror or error}. Give a place "
            "that can be written to."
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return differences


def _check_place(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise RegardError(
            f"{out} holds something already. Give a folder that is not there yet, or remove it."
        )


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("Exporting to ONNX", "onnx") from error


def _check_source(source: str | Path, revision: str | None) -> None:
    if find_finished(source, revision=revision) is not None:
        raise ModelError(
            f"{source} is a captioner that others finished; those of regard's own can be exported. "
            "Give a run or a model folder of `regard train`."
        )
    if find_exported(source, revision=revision) is not None:
        raise ModelError(f"{source} is exported already. Give the model that it was made from.")


def _write(folder: Path, model: Model) -> None:
    """All files of an exported captioner."""
    encoder, decoder = model.encoder, model.decoder
    height, width = encoder.preparation.size
    photos = torch.rand(2, 3, height, width)
    regions = torch.rand(2, encoder.grid[0] * encoder.grid[1], encoder.width)
    parts, grows = _example(decoder, regions)
    rows, kept = list(parts.rows), list(parts.photos)
    b, k, t = (torch.export.Dim(name, min=1) for name in "BKT")
    each = [{0: b, 1: k} | ({grows[name]: t} if name in grows else {}) for name in rows]
    _save(
        folder / ENCODER, _Encode(encoder), (photos,), ({0: b},), ["photos"], ["regions"],
        subject=f"The encoder {encoder.id} ({encoder.architecture})",
    )  # fmt: skip
    subject = f"The decoder ({model.config.decoder.kind})"
    _save(
        folder / START, _Start(decoder), (regions,), ({0: b},), ["regions"], [*rows, *kept],
        subject=subject,
    )  # fmt: skip
    _save(
        folder / STEP,
        _Step(decoder, rows, kept),
        (
            torch.zeros(2, 3, dtype=torch.long),
            list(parts.rows.values()),
            list(parts.photos.values()),
        ),
        ({0: b, 1: k}, each, [{0: b} for _ in kept]),
        ["tokens", *rows, *kept],
        ["logits", "attention", *(NEXT + name for name in rows)],
        subject=subject,
    )
    vocabulary = model.vocabulary
    vocabulary.save(folder / vocabulary.file_name)
    with suppress(ConfigError):  # a model of before has none
        write_frequencies(folder, model.frequencies())
    described = {
        "exported": FORMAT,
        "regard": regard.__version__,
        "model": model.weights_hash,
        "encoder": encoder.describe(),
        "vocabulary": {
            "setting": model.config.text.vocabulary,
            "file": vocabulary.file_name,
            "size": len(vocabulary),
            "before": len(vocabulary) - len(vocabulary.words),
            "start": vocabulary.start,
            "end": vocabulary.end,
            "forbidden": list(vocabulary.forbidden),
        },
        "state": {
            "rows": {
                name: [
                    "T" if i == grows.get(name) else n
                    for i, n in enumerate(("B", "K", *x.shape[2:]))
                ]
                for name, x in parts.rows.items()
            },
            "photos": {name: ["B", *x.shape[1:]] for name, x in parts.photos.items()},
        },
        "files": {file.name: hash_file(file) for file in sorted(folder.glob("*.onnx*"))},
    }
    card = model.folder / "README.md" if model.folder is not None else None
    text = card.read_text(encoding="utf-8") if card is not None and card.is_file() else ""
    (folder / "README.md").write_text(render_card(described, text), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


class _Encode(nn.Module):
    """Photos to regions, rounded as the feature cache rounds them: captions are those of both."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, photos: Tensor) -> Tensor:
        """(B, 3, height, width) to (B, L, D)."""
        regions: Tensor = self.encoder(photos).half().float()
        return regions


class _Start(nn.Module):
    """Regions to the state, of one row for each photo."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, regions: Tensor) -> tuple[Tensor, ...]:
        """(B, L, D) to the rows, each (B, 1, ...), and what is known of photos, (B, ...)."""
        parts = self.decoder.apart(self.decoder.start(regions))
        return (*(x.unsqueeze(1) for x in parts.rows.values()), *parts.photos.values())


class _Step(nn.Module):
    """A word of each of K captions of each photo."""

    def __init__(self, decoder: Decoder, rows: Sequence[str], photos: Sequence[str]) -> None:
        super().__init__()
        self.decoder = decoder
        self._rows, self._photos = tuple(rows), tuple(photos)

    def forward(
        self, tokens: Tensor, rows: Sequence[Tensor], photos: Sequence[Tensor]
    ) -> tuple[Tensor, ...]:
        """Tokens (B, K), rows (B, K, ...) and photos (B, ...) to scores, attention and rows."""
        count, each = tokens.shape
        parts = Parts(
            {name: x.flatten(0, 1) for name, x in zip(self._rows, rows, strict=True)},
            dict(zip(self._photos, photos, strict=True)),
        )
        order = Rows.in_order(count, each, tokens.device)
        said = self.decoder.step(tokens.flatten(), self.decoder.together(parts, order))
        after = self.decoder.apart(said.state).rows.values()
        return tuple(order.by_photo(x) for x in (said.logits, said.attention, *after))


def _example(decoder: Decoder, regions: Tensor) -> tuple[Parts, dict[str, int]]:
    """A state of 3 captions of 2 photos after 2 words, its rows ``(B, K, ...)``.

    Sizes of 0 and 1 would be taken for sizes that never change.

    Returns:
        The state, and by name which dimension of a row grows with every word.
    """
    order = Rows.in_order(2, 3, regions.device)
    with torch.no_grad():
        tokens = torch.zeros(6, dtype=torch.long)
        first = decoder.step(tokens, decoder.start(regions).select(order.photo))
        second = decoder.step(tokens, first.state)
    before, (rows, photos) = decoder.apart(first.state), decoder.apart(second.state)
    parts = Parts({name: order.by_photo(x) for name, x in rows.items()}, photos)
    grows = {
        name: i + 1  # rows are two dimensions now
        for name, x in rows.items()
        for i, (was, is_) in enumerate(zip(before.rows[name].shape, x.shape, strict=True))
        if was != is_
    }
    return parts, grows


def _save(
    file: Path,
    module: nn.Module,
    example: tuple[Any, ...],
    dynamic: tuple[Any, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    *,
    subject: str,
) -> None:
    """Write a network as ONNX.

    Raises:
        ModelError: the exporter cannot; ``subject`` is what is exported, as the error calls it.
    """
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    try:
        with _quiet(), torch.no_grad():
            traced = torch.export.export(
                module.eval(), example, dynamic_shapes=dynamic,
                # What it cannot prove of every size, such as of a K of 1, is checked at each call.
                prefer_deferred_runtime_asserts_over_guards=True,
            )  # fmt: skip
            program = torch.onnx.export(
                traced, dynamo=True, verbose=False, input_names=inputs, output_names=outputs,
                dynamic_shapes=dynamic,
            )  # fmt: skip
            assert program is not None
            program.save(file, external_data=weights > _WHOLE)
    except OSError:
        raise
    except Exception as error:
        # Tracing runs other people's networks, and what it cannot follow it says in many classes.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError(
            f"{subject} cannot be exported by torch {torch.__version__}: {reason.rstrip('.')}. "
            "Use the model itself, or one with another encoder."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's remarks on packages that are not here and on its own future."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@torch.no_grad()
def _compare(folder: Path, model: Model) -> dict[str, float]:
    """How far onnxruntime is from torch, on photos of noise and a few words, for two batches.

    Raises:
        ModelError: too far.
    """
    exported = load_exported(folder)
    encode = _Encode(model.encoder).eval()
    furthest = dict.fromkeys(_CLOSE, 0.0)

    def note(name: str, found: Tensor, expected: Tensor) -> None:
        far = float((found - expected).abs().max() / expected.abs().max())
        furthest[name] = max(furthest[name], far if far == far else float("inf"))

    generator = torch.Generator().manual_seed(0)
    for photos, each in ((1, 1), (3, 2)):
        seen = torch.randn(photos, 3, *model.encoder.preparation.size, generator=generator)
        regions = encode(seen)
        note("regions", exported.encode(seen), regions)
        tokens = torch.randint(len(model.vocabulary), (3, photos * each), generator=generator)
        ours, theirs = (
            _say(speaker, regions, tokens) for speaker in (exported.decoder, model.decoder)
        )
        for found, expected in zip(ours, theirs, strict=True):
            note("logits", found.logits, expected.logits)
            note("attention", found.attention, expected.attention)
    if wrong := [name for name, far in furthest.items() if far > _CLOSE[name]]:
        raise ModelError(
            "The exported networks say something else than the model: "
            + ", ".join(f"{name} differ by {furthest[name]:.1e}" for name in wrong)
            + " of the largest value. Use the model itself, or other versions of torch and "
            "onnxruntime."
        )
    return furthest


def _say(speaker: Speaker, regions: Tensor, tokens: Tensor) -> Iterator[Step]:
    """Say words ``(T, R)`` of photos ``(B, L, D)``, in R / B rows of each."""
    photos, rows = len(regions), tokens.shape[1]
    state = speaker.start(regions).select(torch.arange(photos).repeat_interleave(rows // photos))
    for word in tokens:
        said = speaker.step(word, state)
        state = said.state
        yield said
