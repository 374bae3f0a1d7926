"""Captioners exported to ONNX: a folder that is used with onnxruntime, here or anywhere.

========================  ==========================================================================
``config.json``           format version, encoder with its preparation, ids, state, hashes
``vocabulary.json``       the words in the order of their ids; or, of pieces of words,
``tokenizer.json``        how words are made of them
``frequencies.json``      how many photos of the training split have which phrase, for a consensus
``encoder.onnx``          prepared photos ``(B, 3, height, width)`` to regions ``(B, L, D)``
``decoder_start.onnx``    regions to the state before the first word
``decoder_step.onnx``     tokens ``(B, K)`` and a state to scores, attention and the next state
``README.md``             the model card, with a program that needs numpy and onnxruntime alone
========================  ==========================================================================

A state is plain tensors. Those of ``state.rows`` are ``(B, K, ...)``, K captions of each photo: the
start gives them with a K of 1, and a step gives the next of each as ``next_NAME``. Those of
``state.photos`` are ``(B, ...)``; a step reads them and they stay as they are. Dimensions that are
names (B, K and, where the state grows with the caption, T) may differ at every call.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import regard
from regard.build import BESIDE, read_frequencies, read_vocabulary
from regard.errors import ConfigError, MissingExtraError, ModelError
from regard.files import hash_file
from regard.images import Preparation
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Parts, Rows, Speaker, Step
from regard.models.hub import fetch, is_hub_id
from regard.models.processors import read_json
from regard.text.vocabulary import Lexicon

FORMAT = 1
"""Version of the folder's format; a folder of a newer one is refused."""

ENCODER, START, STEP = "encoder.onnx", "decoder_start.onnx", "decoder_step.onnx"
NEXT = "next_"
"""Before the name of what a step gives in place of one of its inputs."""

# What one file of ONNX cannot hold stands beside it.
_LARGE = tuple(f"{name}.data" for name in (ENCODER, START, STEP))
_OPTIONAL = (*BESIDE, *_LARGE)
_FILES = ("config.json", *_OPTIONAL, START, STEP, ENCODER)


@dataclass(frozen=True)
class Exported:
    """An exported captioner, ready to be used; threads may share it."""

    folder: Path
    """Where it was read from."""
    encoder: Network
    decoder: ExportedDecoder
    vocabulary: Lexicon
    preparation: Preparation
    grid: tuple[int, int]
    """H and W of its maps."""

    def encode(self, photos: Tensor) -> Tensor:
        """Prepared photos ``(B, 3, height, width)`` to regions ``(B, L, D)``."""
        return self.encoder({"photos": photos})["regions"]

    def frequencies(self) -> DocumentFrequencies:
        """How many photos of the training split have which phrase, from the folder.

        Raises:
            ConfigError: the folder does not say.
            ModelError: what it says is damaged.
        """
        return read_frequencies(self.folder)


def find_exported(source: str | Path, *, revision: str | None = None) -> Path | None:
    """The folder with the config of an exported captioner; none if the source is none.

    Args:
        source: a folder, or a hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: the hub is out of reach.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and is_hub_id(str(source)):
        folder = fetch(
            str(source), ("config.json",), revision=revision, subject="Model", option="--model"
        )
    if not (folder / "config.json").is_file():
        return None
    return folder if "exported" in read_json(folder / "config.json") else None


def load_exported(
    source: str | Path, *, revision: str | None = None, device: str = "auto"
) -> Exported:
    """Load an exported captioner, and verify its files.

    Args:
        source: what :func:`find_exported` finds.
        revision: branch, tag or commit of a hub id.
        device: ``auto`` or ``cpu``: it runs there.

    Raises:
        ModelError: a file is missing or damaged, or the folder is of a newer format.
        MissingExtraError: onnxruntime is not installed.
        ConfigError: another device is asked for.
    """
    if device not in ("auto", "cpu"):
        raise ConfigError(
            f"--device {device} was asked for, but an exported captioner runs on the CPU. Leave "
            "--device out, or use the model that it was exported from."
        )
    folder = Path(source).expanduser()
    if not folder.exists():
        folder = fetch(
            str(source), _FILES, optional=_OPTIONAL, revision=revision, subject="Model",
            option="--model",
        )  # fmt: skip
    described = verified(folder)
    start, step, encoder = (Network(folder / name) for name in (START, STEP, ENCODER))
    state = described["state"]
    return Exported(
        folder=folder,
        encoder=encoder,
        decoder=ExportedDecoder(start, step, rows=state["rows"], photos=state["photos"]),
        vocabulary=read_vocabulary(folder, described["vocabulary"]["setting"]),
        preparation=Preparation.from_dict(described["encoder"]["preparation"]),
        grid=tuple(described["encoder"]["grid"]),
    )


def verified(folder: Path) -> dict[str, Any]:
    """What an exported captioner's ``config.json`` says, if its files are those that it names.

    Raises:
        ModelError: one is missing or damaged, or the folder is of a newer format.
    """
    file = folder / "config.json"
    described = read_json(file)
    if described["exported"] != FORMAT:
        raise ModelError(
            f"{file} has format {described['exported']} of exported captioners; this regard "
            f"{regard.__version__} reads format {FORMAT}. Install the version of regard that wrote "
            f"it ({described.get('regard', 'unknown')}), or a newer one."
        )
    wanted = {"encoder", "vocabulary", "state", "files"}
    if lacking := sorted(wanted - described.keys()):
        raise ModelError(f"{file} lacks {', '.join(lacking)}. Copy it again.")
    for name, expected in described["files"].items():
        if not (folder / name).is_file():
            raise ModelError(
                f"The exported captioner {folder} lacks {name}. Copy the whole folder again."
            )
        if (found := hash_file(folder / name)) != expected:
            raise ModelError(
                f"{folder / name} is not the file that {file} was written for: its SHA-256 is "
                f"{found[:12]}..., {expected[:12]}... was expected. Copy the whole folder again."
            )
    return described


class Network:
    """A file of ONNX with onnxruntime, in as many threads as torch computes with here.

    Args:
        file: a network with tensors for inputs and outputs.

    Raises:
        ModelError: onnxruntime cannot read it.
        MissingExtraError: onnxruntime is not installed.
    """

    def __init__(self, file: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise MissingExtraError("A captioner exported to ONNX", "onnx") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        # Threads that wait by spinning would take the cores from the photos of other threads.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(
                str(file), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors have no common class of its own
            reason = " ".join(str(error).split())
            raise ModelError(
                f"{file} cannot be read by onnxruntime {onnxruntime.__version__}: "
                f"{reason.rstrip('.')}. Install a newer onnxruntime, or export the model again."
            ) from error
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, on the CPU as all inputs."""
        found = self._session.run(None, {name: value.numpy() for name, value in inputs.items()})
        return dict(zip(self._outputs, map(torch.from_numpy, found), strict=True))


@dataclass(frozen=True, slots=True)
class ExportedState:
    """What an exported decoder knows between two words, as :class:`regard.models.decoder.State`."""

    parts: Parts
    """As :class:`Parts`: rows ``(R, ...)``, photos ``(B, ...)``."""
    rows: Rows
    """Which photos the rows describe."""

    @property
    def device(self) -> torch.device:
        """Where the rows are."""
        return self.rows.photo.device

    def select(self, indices: Tensor) -> ExportedState:
        """The state of other rows: ``indices`` is ``(R,)``; repeats are allowed."""
        rows, left = self.rows.select(indices)
        photos = self.parts.photos
        if left is not None:
            photos = {name: x[left] for name, x in photos.items()}
        return ExportedState(
            Parts({name: x[indices] for name, x in self.parts.rows.items()}, photos), rows
        )


class ExportedDecoder(Speaker):
    """A decoder whose start and step are networks of ONNX.

    Args:
        start: regions to a state.
        step: tokens and a state to scores, attention and the next rows of the state.
        rows: names of the state's tensors that differ between captions.
        photos: names of the others.
    """

    def __init__(
        self, start: Network, step: Network, *, rows: Mapping[str, Any], photos: Mapping[str, Any]
    ) -> None:
        self._start, self._step = start, step
        self._rows, self._photos = tuple(rows), tuple(photos)

    def start(self, regions: Tensor) -> ExportedState:
        """The state before the first word, one row for each photo of ``(B, L, D)``."""
        found = self._start({"regions": regions})
        parts = Parts(
            {name: found[name].flatten(0, 1) for name in self._rows},
            {name: found[name] for name in self._photos},
        )
        return ExportedState(parts, Rows.in_order(len(regions), 1, regions.device))

    def step(self, tokens: Tensor, state: ExportedState) -> Step:
        """Say one word, ``(R,)`` ids, in each row of the state."""
        rows, (past, photos) = state.rows, state.parts
        inputs = {"tokens": tokens, **past}
        said = self._step({name: rows.by_photo(x) for name, x in inputs.items()} | photos)
        after = {name: rows.by_row(said[NEXT + name]) for name in self._rows}
        return Step(
            rows.by_row(said["logits"]),
            rows.by_row(said["attention"]),
            ExportedState(Parts(after, photos), rows),
        )
