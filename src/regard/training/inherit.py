"""A captioner of our own that training begins with: what it brings, and what cannot be set."""

from __future__ import annotations

from typing import Any

from regard.build import build_decoder
from regard.checkpoint import Model, read_model
from regard.config import Config
from regard.errors import ConfigError, ModelError
from regard.models.decoder import Decoder

OWN_TO_A_TRAINING = {"id", "revision", "fine_tune_stages", "dropout"}
"""Of encoder and decoder, what another training may have otherwise."""


def read_initial(config: Config) -> tuple[Config, Model]:
    """The captioner that the settings name, and the settings with all that it brings.

    ``encoder.id``, where it is set, is another place of the same weights.

    Raises:
        ModelError: it cannot be had.
        ConfigError: the settings contradict it.
    """
    init = str(config.captioner.init)
    place = config.encoder.place
    try:
        model = read_model(init, encoder=place, revision=config.captioner.revision)
    except ModelError as error:
        raise ModelError(f"--init {init}: {error}") from error
    wrong = [
        f"{section}.{name} is {asked!r}, {has!r} there"
        for section in ("encoder", "text", "decoder")
        for name, asked, has in _asked(config, model.config, section)
        if asked != has
    ]
    if wrong:
        raise ConfigError(
            f"The captioner of --init {init} is another one: {'; '.join(wrong)}. Leave these "
            "settings out: it brings its own."
        )
    seen: dict[str, Any] = {"fine_tune_stages": config.encoder.fine_tune_stages}
    if place is not None:
        seen |= {"id": place, "revision": config.encoder.revision}
    spoken = {
        name: getattr(config.decoder, name)
        for name in config.decoder.model_fields_set & OWN_TO_A_TRAINING
    }
    inherited = config.model_copy(
        update={
            "encoder": model.config.encoder.model_copy(update=seen),
            "text": config.text.model_copy(update={"vocabulary": model.config.text.vocabulary}),
            "decoder": model.config.decoder.model_copy(update=spoken),
        }
    )
    if inherited.encoder.fine_tune_stages:
        model.encoder.unfreeze(inherited.encoder.fine_tune_stages)
    return inherited, model


def decoder_to_train(config: Config, model: Model) -> Decoder:
    """Its decoder as it is trained: with the dropout of these settings."""
    decoder = build_decoder(
        config.decoder, vocabulary_size=len(model.vocabulary), feature_width=model.encoder.width
    )
    decoder.load_state_dict(model.decoder.state_dict())
    return decoder


def _asked(config: Config, has: Config, section: str) -> list[tuple[str, Any, Any]]:
    """Settings of a section that were asked for: name, value, and the captioner's own."""
    asked, own = getattr(config, section), getattr(has, section)
    names = asked.model_fields_set - OWN_TO_A_TRAINING - {"max_length"}
    return [(name, getattr(asked, name), getattr(own, name)) for name in sorted(names)]
