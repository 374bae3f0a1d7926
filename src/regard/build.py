"""Settings to modules: the one place where names meet classes."""

from __future__ import annotations

import torch

from regard.config import Config, DecoderConfig, EncoderConfig
from regard.errors import ConfigError
from regard.models.encoders import Encoder, load_encoder
from regard.models.lstm import LstmDecoder
from regard.text.vectors import WordVectors
from regard.text.vocabulary import Vocabulary

EMBEDDING_WIDTH = 300
"""E when neither the settings nor a file of vectors say: the width of the Google News vectors."""


def build_encoder(config: EncoderConfig) -> Encoder:
    """The encoder of some settings, with its weights; frozen unless it is trained too."""
    encoder = load_encoder(
        config.id,
        revision=config.revision,
        image_size=config.image_size,
        resize=config.resize,
        grid=config.grid,
    )
    if config.fine_tune_stages:
        encoder.unfreeze(config.fine_tune_stages)
    return encoder


def build_decoder(
    config: DecoderConfig, *, vocabulary_size: int, feature_width: int
) -> LstmDecoder:
    """A decoder with random weights."""
    return LstmDecoder(
        vocabulary_size=vocabulary_size,
        feature_width=feature_width,
        embedding_width=config.embedding_width or EMBEDDING_WIDTH,
        hidden_width=config.hidden_width,
        attention_width=config.attention_width,
        start_state=config.start_state,
        gate=config.gate,
        dropout=config.dropout,
    )


def with_embedding_width(config: Config, vectors: WordVectors | None) -> Config:
    """The settings with E decided: it follows the file of vectors.

    Raises:
        ConfigError: the settings ask for another width than the file has.
    """
    asked = config.decoder.embedding_width
    width = EMBEDDING_WIDTH if vectors is None else vectors.width
    if asked is not None and vectors is not None and asked != width:
        raise ConfigError(
            f"decoder.embedding_width is {asked}, but the vectors in {config.text.embeddings} are "
            f"{width} wide. Leave decoder.embedding_width out, or set it to {width}."
        )
    decoder = config.decoder.model_copy(update={"embedding_width": asked or width})
    return config.model_copy(update={"decoder": decoder})


def start_from_vectors(decoder: LstmDecoder, vocabulary: Vocabulary, vectors: WordVectors) -> int:
    """Set the words that have a vector to it; the others stay random. Returns how many were set."""
    weight = decoder.embedding.weight
    found = 0
    with torch.no_grad():
        for i in range(len(vocabulary)):
            vector = vectors.vectors.get(vocabulary.word(i))
            if vector is not None:
                weight[i] = torch.from_numpy(vector).to(weight)
                found += 1
    return found
