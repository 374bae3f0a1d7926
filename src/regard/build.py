"""Settings to modules: the one place where names meet classes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from regard.config import Config, DecoderConfig, EncoderConfig, TextConfig
from regard.errors import ConfigError, ModelError
from regard.files import write_json
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Decoder
from regard.models.encoders import Encoder, load_encoder
from regard.models.lstm import LstmDecoder
from regard.models.transformer import TransformerDecoder
from regard.text.subwords import Subwords
from regard.text.vectors import WordVectors
from regard.text.vocabulary import Lexicon, Vocabulary

EMBEDDING_WIDTH = 300
"""E of an LSTM when neither the settings nor a file of vectors say: as the Google News vectors."""

FREQUENCIES = "frequencies.json"
"""What the document frequencies of the training split are called in a model folder."""

FREQUENCIES_FORMAT = 1

VOCABULARIES = (Vocabulary.file_name, Subwords.file_name)
"""What the words may be called in a model folder; it has one of them."""

BESIDE = (*VOCABULARIES, FREQUENCIES, "README.md")
"""What may stand in a folder of a captioner, exported or not, beside what makes it one."""

_DECODERS: dict[str, Callable[..., Decoder]] = {
    "lstm": LstmDecoder,
    "transformer": TransformerDecoder,
}
"""By ``decoder.kind``; the settings of a kind are named as the arguments of its class."""


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of some settings, with its weights; frozen unless it is trained too."""
    encoder = load_encoder(
        config.id,
        revision=config.revision,
        image_size=config.image_size,
        resize=config.resize,
        grid=config.grid,
        precision=config.precision,
    )
    if config.fine_tune_stages:
        encoder.unfreeze(config.fine_tune_stages)
    return encoder


def build_decoder(
    config: DecoderConfig, *, vocabulary_size: int, feature_width: int, fresh: bool = True
) -> Decoder:
    """A decoder with random weights.

    Args:
        config: its settings.
        vocabulary_size: V.
        feature_width: D.
        fresh: without, what takes long to draw is left out, for others to take its place.
    """
    settings = config.of_kind() | {
        "embedding_width": config.embedding_width or _usual_width(config)
    }
    kind = settings.pop("kind")
    build = _DECODERS[kind]
    if kind == "lstm":
        settings["fresh"] = fresh
    return build(vocabulary_size=vocabulary_size, feature_width=feature_width, **settings)


def build_vocabulary(config: TextConfig, captions: Iterable[Sequence[str]]) -> Lexicon:
    """What the ids of some captions, as words, will mean.

    Raises:
        MissingExtraError: pieces are wanted, and the package for them is not installed.
    """
    kind, _, number = config.vocabulary.partition(":")
    if kind == "bpe":
        return Subwords.from_captions(captions, size=int(number))
    return Vocabulary.from_captions(captions, min_count=int(number))


def read_vocabulary(folder: Path, setting: str) -> Lexicon:
    """That of a model folder whose ``text.vocabulary`` is ``setting``.

    Raises:
        ModelError: it is not there, or damaged.
        MissingExtraError: it is of pieces, and the package for them is not installed.
    """
    kind: type[Subwords | Vocabulary] = Subwords if setting.startswith("bpe:") else Vocabulary
    return kind.load(folder / kind.file_name)


def write_frequencies(folder: Path, frequencies: DocumentFrequencies) -> None:
    """Write them for :func:`read_frequencies`."""
    runs = {" ".join(ngram): count for ngram, count in frequencies.counts.items()}
    write_json(
        folder / FREQUENCIES,
        {"format": FREQUENCIES_FORMAT, "photos": frequencies.photos, "runs": runs},
    )


def read_frequencies(folder: Path | None) -> DocumentFrequencies:
    """Those of a model folder or of an exported captioner's.

    Raises:
        ConfigError: there are none.
        ModelError: they are damaged, or of another format.
    """
    if folder is None or not (folder / FREQUENCIES).is_file():
        raise ConfigError(
            f"A consensus needs to know how common phrases are, and {folder or 'this captioner'} "
            f"has no {FREQUENCIES}. Train it with this version of regard, or leave --consensus out."
        )
    file = folder / FREQUENCIES
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if (found := content["format"]) != FREQUENCIES_FORMAT:
            raise ModelError(
                f"{file} has format {found!r}; format {FREQUENCIES_FORMAT} is read here. Take the "
                "file of a model folder that this version of regard wrote."
            )
        counts = {tuple(run.split(" ")): int(n) for run, n in content["runs"].items()}
        return DocumentFrequencies(int(content["photos"]), counts)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ModelError(
            f"How common phrases are cannot be read from {file}: {error}. Copy it again."
        ) from error


def with_embedding_width(config: Config, vectors: WordVectors | None) -> Config:
    """The settings with E decided: it follows the file of vectors.

    Raises:
        ConfigError: the settings ask for another width than the file has.
    """
    asked = config.decoder.embedding_width
    width = _usual_width(config.decoder) if vectors is None else vectors.width
    if asked is not None and vectors is not None and asked != width:
        raise ConfigError(
            f"decoder.embedding_width is {asked}, but the vectors in {config.text.embeddings} are "
            f"{width} wide. Leave decoder.embedding_width out, or set it to {width}."
        )
    decoder = config.decoder.model_copy(update={"embedding_width": asked or width})
    return config.model_copy(update={"decoder": decoder})


def _usual_width(config: DecoderConfig) -> int:
    return config.hidden_width if config.kind == "transformer" else EMBEDDING_WIDTH


def start_from_vectors(decoder: Decoder, vocabulary: Lexicon, vectors: WordVectors) -> int:
    """Set the words that have a vector to it; the others stay random. Returns how many were set."""
    weight = decoder.embedding.weight
    found = 0
    with torch.no_grad():
        for i in range(len(vocabulary)):
            vector = vectors.vectors.get(vocabulary.spell([i])[0].word)
            if vector is not None:
                weight[i] = torch.from_numpy(vector).to(weight)
                found += 1
    return found
