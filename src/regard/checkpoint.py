"""The model folder: everything a captioner needs to be used again, and nothing that can run code.

========================  ==========================================================================
``config.json``           format version, settings, encoder, measured scores, hash of the weights
``vocabulary.json``       the words in the order of their ids; or, of pieces of words,
``tokenizer.json``        how words are made of them
``frequencies.json``      how many photos of the training split have which phrase
``model.safetensors``     the decoder's weights, and the encoder's where they were trained
``README.md``             the model card
========================  ==========================================================================

A frozen encoder is not copied: the folder says which one it needs, from where, and the hash of its
weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

import regard
from regard.build import (
    BESIDE,
    VOCABULARIES,
    build_decoder,
    build_encoder,
    read_frequencies,
    read_vocabulary,
    write_frequencies,
)
from regard.card import CARE, score_table
from regard.config import Config, recorded
from regard.errors import ConfigError, ModelError
from regard.files import hash_file, replaced_folder
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Decoder
from regard.models.encoders import Encoder, encoder_from_description
from regard.models.hub import WEIGHTS, fetch, is_hub_id
from regard.text.vocabulary import Lexicon

FORMAT = 1
"""Version of the folder's format; a folder of a newer one is refused."""

_DECODERS = {
    "lstm": "A frozen or jointly trained encoder, additive attention, and an LSTM that writes a "
    'caption word by\nword (Xu et al., "Show, attend and tell", 2015).',
    "transformer": "A frozen or jointly trained encoder, and a Transformer that attends to its own "
    'words and to the\nregions (Vaswani et al., "Attention is all you need", 2017).',
}

IN_THE_BOX = Path(__file__).parent / "box" / regard.DEFAULT_MODEL
"""The folder of the captioner that comes with the package."""

_FILES = ("config.json", WEIGHTS)


@dataclass(frozen=True)
class Model:
    """A captioner, ready to be used."""

    config: Config
    vocabulary: Lexicon
    encoder: Encoder
    decoder: Decoder
    weights_hash: str
    """SHA-256 of ``model.safetensors``."""
    scores: Mapping[str, Any]
    """What the folder says was measured."""
    folder: Path | None = None
    """Where it was read from; none if it was made here."""

    def speaker(self) -> Decoder:
        """The decoder in the form that is used, on the device where it is now."""
        return self.decoder.fast(self.config.train.precision)

    def frequencies(self) -> DocumentFrequencies:
        """How many photos of the training split have which phrase, from the folder.

        Raises:
            ConfigError: the folder does not say.
            ModelError: what it says is damaged.
        """
        return read_frequencies(self.folder)


def write_model(
    folder: Path,
    *,
    config: Config,
    vocabulary: Lexicon,
    encoder: Encoder,
    decoder: Decoder,
    scores: Mapping[str, Any],
    data: str,
    frequencies: DocumentFrequencies,
) -> None:
    """Write a model folder: the whole of it beside its place, then renamed.

    Args:
        folder: replaced if it is there.
        config: the settings of the run.
        vocabulary: of the decoder.
        encoder: copied only if it was trained.
        decoder: any mode, any device.
        scores: what was measured, by name, with the split and the settings it was measured with.
        data: the name of the data set, for the card.
        frequencies: how many photos of the training split have which phrase.
    """
    tensors = {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
    if encoder.stored:
        tensors |= {f"encoder.{k}": v for k, v in encoder.state_dict().items()}
    with replaced_folder(folder) as beside:
        weights = beside / WEIGHTS
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, str(weights))
        described = {
            "format": FORMAT,
            "regard": regard.__version__,
            "kind": config.decoder.kind,
            "weights": hash_file(weights),
            "settings": config.in_use(),
            "encoder": encoder.describe(),
            "trained_encoder": encoder.stored,
            "feature_width": encoder.width,
            "scores": dict(scores),
            "data": data,
        }
        vocabulary.save(beside / vocabulary.file_name)
        write_frequencies(beside, frequencies)
        card = _card(described, config, len(vocabulary))
        (beside / "README.md").write_text(card, encoding="utf-8")
        text = json.dumps(described, indent=1) + "\n"
        (beside / "config.json").write_text(text, encoding="utf-8")


def read_model(
    source: str | Path, *, encoder: str | None = None, revision: str | None = None
) -> Model:
    """Read a model folder, a run, or a hub id, and verify it.

    Args:
        source: a model folder; a run (its best model is taken); a hub id; or ``regard-small``, the
            captioner that comes with the package.
        encoder: another place of the encoder's weights than the folder names; they must be the
            same weights.
        revision: commit or tag of a hub id.

    Raises:
        ModelError: something is missing, damaged, of a newer format, or does not fit together.
    """
    folder = _find(source, revision)
    described = _verified(folder)
    weights_file = folder / WEIGHTS
    config = _settings(described, folder)
    vocabulary = read_vocabulary(folder, config.text.vocabulary)
    seer = _build_encoder(config, described, encoder, folder)
    decoder = build_decoder(
        config.decoder,
        vocabulary_size=len(vocabulary),
        feature_width=int(described["feature_width"]),
        fresh=False,
    )
    try:
        tensors = load_file(str(weights_file))
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{weights_file} cannot be read: {error}. Copy it again.") from error
    _fill(decoder, tensors, "decoder.", weights_file)
    if described["trained_encoder"]:
        _fill(seer, tensors, "encoder.", weights_file)
    return Model(
        config, vocabulary, seer.eval(), decoder.eval().requires_grad_(False), described["weights"],
        described.get("scores", {}), folder,
    )  # fmt: skip


def verified_folder(source: str | Path) -> tuple[Path, dict[str, Any]]:
    """The model folder at a place of this machine and its ``config.json``, its files verified.

    Args:
        source: a model folder, or a run (its best model is taken).

    Raises:
        ModelError: there is none, or it is not complete, damaged or of a newer format.
    """
    folder = _local(source)
    if folder is None:
        raise ModelError(f"There is no model at {source}. Give a run or a model folder.")
    described = _verified(folder)
    read_vocabulary(folder, _settings(described, folder).text.vocabulary)
    return folder, described


def _local(source: str | Path) -> Path | None:
    """The model folder at a place of this machine; none if nothing is there."""
    path = Path(source)
    if str(source) == regard.DEFAULT_MODEL and not path.exists():
        path = IN_THE_BOX
    for folder in (path, path / "model"):
        if (folder / "config.json").is_file():
            return folder
    if path.exists():
        raise ModelError(
            f"{path} is no model folder: it has neither config.json nor model/config.json. A "
            f"model folder holds {', '.join(_FILES)} and {' or '.join(VOCABULARIES)}; a run has "
            "one in RUN/model after its first epoch."
        )
    return None


def _find(source: str | Path, revision: str | None) -> Path:
    """The local folder of a source."""
    if (folder := _local(source)) is not None:
        return folder
    name = str(source)
    if not is_hub_id(name):
        raise ModelError(
            f"There is no model at {name}. Give a run, a model folder, or a hub id such as "
            "user/name."
        )
    return fetch(
        name,
        (_FILES[0], *BESIDE, WEIGHTS),
        optional=BESIDE,
        revision=revision,
        subject="Model",
        option="--model",
    )


def _settings(described: Mapping[str, Any], folder: Path) -> Config:
    try:
        return recorded(described["settings"], source=f"the settings in {folder / 'config.json'}")
    except ConfigError as error:
        raise ModelError(str(error)) from error


def _verified(folder: Path) -> dict[str, Any]:
    """What a model folder says of itself, if its weights are those that it says it of."""
    described = _read_config(folder)
    weights_file = folder / WEIGHTS
    weights_hash = hash_file(weights_file)
    if weights_hash != described["weights"]:
        raise ModelError(
            f"{weights_file} is not the file that {folder / 'config.json'} was written for: its "
            f"SHA-256 is {weights_hash[:12]}..., {str(described['weights'])[:12]}... was "
            "expected. Copy the whole folder again."
        )
    return described


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    try:
        described = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}. Copy it again.") from error
    if isinstance(described, dict) and "format" not in described and "model_type" in described:
        raise ModelError(
            f"{file} is of a {described['model_type']} of transformers, which can be captioned "
            "with and evaluated, but is not taken here. Give a captioner of regard's own."
        )
    if isinstance(described, dict) and "exported" in described:
        raise ModelError(
            f"{folder} is a captioner exported to ONNX, which captions photos and no more. Give "
            "the run or the model folder that it was exported from."
        )
    if not isinstance(described, dict) or "format" not in described:
        raise ModelError(
            f"{file} is not of a captioner written by regard: it has no format version. "
            "Give the folder of a captioner, for example RUN/model."
        )
    if described["format"] != FORMAT:
        raise ModelError(
            f"{file} has format {described['format']}; this regard {regard.__version__} reads "
            f"format {FORMAT}. Install the version of regard that wrote it "
            f"({described.get('regard', 'unknown')}), or a newer one."
        )
    if not (folder / WEIGHTS).is_file():
        raise ModelError(f"The model folder {folder} lacks {WEIGHTS}. Copy the whole folder again.")
    wanted = {"weights", "settings", "encoder", "trained_encoder", "feature_width"}
    lacking = sorted(wanted - set(described))
    if lacking:
        raise ModelError(f"{file} lacks {', '.join(lacking)}. Copy it again.")
    return described


def _build_encoder(
    config: Config, described: Mapping[str, Any], elsewhere: str | None, folder: Path
) -> Encoder:
    if described["trained_encoder"]:
        return encoder_from_description(described["encoder"], frozen=True)
    settings = config.encoder
    if elsewhere is not None:
        settings = settings.model_copy(update={"id": elsewhere, "revision": None})
    try:
        encoder = build_encoder(settings)
    except ModelError as error:
        raise ModelError(
            f"The captioner in {folder} needs the encoder {settings.id}, which could not be had: "
            f"{error} Or say where its weights are with --encoder."
        ) from error
    expected = described["encoder"].get("weights_hash")
    if encoder.weights_hash != expected:
        raise ModelError(
            f"The encoder {settings.id} has other weights (hash {encoder.weights_hash[:12]}...) "
            f"than those that the captioner in {folder} was trained with (hash "
            f"{str(expected)[:12]}...). Give the place of the right ones with --encoder."
        )
    return encoder


def _fill(
    module: torch.nn.Module, tensors: Mapping[str, torch.Tensor], prefix: str, file: Path
) -> None:
    own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    wanted = module.state_dict()
    problems = (
        [f"{prefix}{k} is missing" for k in sorted(wanted.keys() - own.keys())]
        + [f"{prefix}{k} is not known" for k in sorted(own.keys() - wanted.keys())]
        + [
            f"{prefix}{k} is {tuple(own[k].shape)}, {tuple(wanted[k].shape)} was expected"
            for k in sorted(wanted.keys() & own.keys())
            if own[k].shape != wanted[k].shape
        ]
        + [f"{prefix}{k} holds values that are not finite" for k, v in sorted(own.items())
           if v.is_floating_point() and not bool(v.isfinite().all())]
    )  # fmt: skip
    if problems:
        raise ModelError(
            f"{file} does not fit its config.json: {'; '.join(problems)}. Copy the whole folder "
            "again."
        )
    module.load_state_dict(own)


def _card(described: Mapping[str, Any], config: Config, words: int) -> str:
    encoder = described["encoder"]
    held = (
        "in this folder"
        if described["trained_encoder"]
        else f"`{encoder['id']}`, not in this folder"
    )
    return f"""---
library_name: regard
pipeline_tag: image-to-text
tags: [image-captioning, attention]
---

# An image captioner that shows where it looks

{_DECODERS[config.decoder.kind]} Made with regard {described["regard"]}.

    regard caption PHOTO --model THIS_FOLDER --gaze DIR

| | |
|---|---|
| encoder | {encoder["architecture"]}: {held} |
| hash of the encoder's weights | `{encoder["weights_hash"]}` |
| photo preparation | {json.dumps(encoder["preparation"])} |
| data | {described["data"]} |
| vocabulary | {config.text.vocabulary}: {words:,} entries |
| decoder | {json.dumps(config.decoder.of_kind())} |

{score_table(described["scores"])}
## Use

{CARE}"""
