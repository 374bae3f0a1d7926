"""Captioners of transformers, called in one way: how each kind sees a photo, speaks and is taught.

What differs between BLIP, GIT, BLIP-2, Florence-2 and the vision-encoder-decoders is written down
here once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regard.errors import ModelError
from regard.models.backbones import FAMILIES


@dataclass(frozen=True)
class Taught:
    """How the captioners of one kind are trained further."""

    tower: str
    """The part that sees, by its path in the network."""
    blocks: str | None
    """The module list of its blocks, from the pixels up; none: as its family has it."""
    read: Callable[[Any, Tensor, Tensor], Tensor]
    """Network, photos ``(B, 3, H, W)`` and the ids of K captions each, ``(K B, T)``, those of all
    photos before the next of each, to the scores of the ids that follow, ``(K B, T, V)``. Captions
    are padded at their ends: no word sees what comes after it, so nothing needs a mask."""


@dataclass(frozen=True)
class Kind:
    """What is to be known of the captioners of one ``model_type``."""

    model: str
    """The class in transformers."""
    speak: Callable[..., tuple[Any, Tensor | None]]
    """Network, photos and settings to what ``generate`` returns and, where words attend to the
    photo, what they attend to: ``(B, tokens, D)``. With a ``prompt``, its ids ``(P,)`` too."""
    attend: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    """Network, ids ``(R, T)`` and what they attend to, ``(R, tokens, D)``, to the attention of the
    last layer ``(R, heads, T, tokens)``; none where words do not attend to the photo alone."""
    prompt: str | None = None
    """What is asked of it beside the photo."""
    taught: Taught | None = None
    """How it is trained; none: not here."""


def _blip(model: Any, pixels: Tensor, settings: dict[str, Any]) -> tuple[Any, Tensor]:
    # As its own generate(), which would not let us have what the photo became.
    words = model.config.text_config
    seen = model.vision_model(pixel_values=pixels).last_hidden_state  # (B, tokens, D)
    start = torch.full((len(pixels), 1), words.bos_token_id, device=pixels.device)
    said = model.text_decoder.generate(
        input_ids=start,
        eos_token_id=words.sep_token_id,
        encoder_hidden_states=seen,
        encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device),
        **{**settings, "pad_token_id": words.pad_token_id},
    )
    return said, seen


def _blip_attention(model: Any, ids: Tensor, seen: Tensor) -> Tensor:
    read = model.text_decoder(input_ids=ids, encoder_hidden_states=seen, output_attentions=True)
    attention: Tensor = read.cross_attentions[-1]
    return attention


def _blip_scores(model: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    seen = model.vision_model(pixel_values=pixels).last_hidden_state  # (B, tokens, D)
    seen = seen.repeat(len(ids) // len(pixels), 1, 1)  # (K B, tokens, D)
    scores: Tensor = model.text_decoder(input_ids=ids, encoder_hidden_states=seen).logits
    return scores


def _pair(model: Any, pixels: Tensor, settings: dict[str, Any]) -> tuple[Any, Tensor]:
    encoded = model.encoder(pixel_values=pixels)
    seen = encoded.last_hidden_state  # taken first: generate() repeats it for each beam, in place
    return model.generate(encoder_outputs=encoded, **settings), seen


def _pair_attention(model: Any, ids: Tensor, seen: Tensor) -> Tensor:
    read = model.decoder(
        input_ids=ids, encoder_hidden_states=_projected(model, seen), output_attentions=True
    )
    attention: Tensor = read.cross_attentions[-1]
    return attention


def _pair_scores(model: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    seen = _projected(model, model.encoder(pixel_values=pixels).last_hidden_state)
    seen = seen.repeat(len(ids) // len(pixels), 1, 1)  # (K B, tokens, D)
    scores: Tensor = model.decoder(input_ids=ids, encoder_hidden_states=seen).logits
    return scores


def _projected(model: Any, seen: Tensor) -> Tensor:
    """What the photo became, as wide as the decoder."""
    projected: Tensor = model.enc_to_dec_proj(seen) if hasattr(model, "enc_to_dec_proj") else seen
    return projected


def _whole(model: Any, pixels: Tensor, settings: dict[str, Any]) -> tuple[Any, None]:
    return model.generate(pixel_values=pixels, **settings), None


def _git_scores(model: Any, pixels: Tensor, ids: Tensor) -> Tensor:
    # It repeats what the photos became as often as there are more captions, in this order.
    scores: Tensor = model(pixel_values=pixels, input_ids=ids).logits
    return scores[:, -ids.shape[1] :]  # the photo's own tokens come first


def _florence(
    model: Any, pixels: Tensor, settings: dict[str, Any], *, prompt: Tensor
) -> tuple[Any, Tensor]:
    # As its own generate(), where each token of the photo stands for one that the prompt begins
    # with.
    photo = model.get_image_features(pixels).pooler_output  # (B, 1 + L, D)
    asked = model.get_input_embeddings()(prompt.to(pixels.device))  # (P, D)
    both = torch.cat([photo, asked.expand(len(photo), -1, -1)], dim=1)  # (B, 1 + L + P, D)
    encoded = model.get_encoder()(inputs_embeds=both)
    seen = encoded.last_hidden_state
    return model.generate(encoder_outputs=encoded, **settings), seen


def _florence_attention(model: Any, ids: Tensor, seen: Tensor) -> Tensor:
    read = model.model.language_model.decoder(
        input_ids=ids, encoder_hidden_states=seen, output_attentions=True
    )
    attention: Tensor = read.cross_attentions[-1]
    return attention


KINDS: dict[str, Kind] = {
    "blip": Kind(
        "BlipForConditionalGeneration", _blip, _blip_attention,
        taught=Taught("vision_model", "encoder.layers", _blip_scores),
    ),
    "blip-2": Kind("Blip2ForConditionalGeneration", _whole),
    "florence2": Kind(
        "Florence2ForConditionalGeneration", _florence, _florence_attention,
        prompt="What does the image describe?",  # what its task <CAPTION> stands for
    ),
    "git": Kind(
        "GitForCausalLM", _whole,
        taught=Taught("git.image_encoder", "vision_model.encoder.layers", _git_scores),
    ),
    "vision-encoder-decoder": Kind(
        "VisionEncoderDecoderModel", _pair, _pair_attention,
        taught=Taught("encoder", None, _pair_scores),
    ),
}  # fmt: skip
"""By ``model_type`` of the config."""


def start_of(model: Any) -> int:
    """The id that a caption is begun with.

    Raises:
        ModelError: its files do not say.
    """
    if model.config.model_type == "blip":
        return int(model.config.text_config.bos_token_id)
    for name in ("decoder_start_token_id", "bos_token_id"):
        start = getattr(model.generation_config, name, None)
        if start is not None:
            return int(start)
    raise ModelError(
        f"The config of a {model.config.model_type} names no decoder_start_token_id or "
        "bos_token_id, which begins a caption. Add it to its generation_config.json."
    )


def ends_of(model: Any) -> set[int]:
    """The ids that end a caption.

    Raises:
        ModelError: its files do not say.
    """
    text = model.config.get_text_config(decoder=True)
    if model.config.model_type == "blip":
        return {int(text.sep_token_id)}
    for place in (model.generation_config, text):
        ends = getattr(place, "eos_token_id", None)
        if ends is not None:
            return {int(end) for end in (ends if isinstance(ends, list) else [ends])}
    raise ModelError(
        f"The config of a {model.config.model_type} names no eos_token_id, which ends a caption. "
        "Add it to its generation_config.json."
    )


def marks_of(model: Any) -> int:
    """How many ids it writes before the first word, whatever it sees: BART and its like, one."""
    speaker = model.text_decoder if model.config.model_type == "blip" else model
    return int(speaker.generation_config.forced_bos_token_id is not None)


def vision_of(config: Any) -> Any:
    """The config of the part that sees."""
    return config.encoder if hasattr(config, "encoder") else config.vision_config


def regions_of(vision: Any, side: int) -> tuple[int, tuple[int, int] | None]:
    """Where the regions are among the tokens that words attend to.

    Args:
        vision: the config of the part that sees.
        side: of a prepared photo, in pixels.

    Returns:
        How many tokens come before the first region; rows and columns, none where the part that
        sees is not known.
    """
    if vision.model_type == "blip_vision_model":
        leading, stride = 1, int(vision.patch_size)
    elif vision.model_type == "florence_vision":
        leading, stride = 1, 1  # the mean comes first
        for step in vision.patch_stride:
            stride *= int(step)
    elif (family := FAMILIES.get(vision.model_type)) is not None:
        leading, stride = family.leading(vision), family.stride(vision)
    else:
        return 0, None
    return leading, (side // stride, side // stride)


def tower_of(model: Any, taught: Taught) -> tuple[nn.Module, Sequence[nn.Module]]:
    """The part that sees, and its blocks from the pixels up; none where they are not known."""
    tower: nn.Module = model.get_submodule(taught.tower)
    family = FAMILIES.get(vision_of(model.config).model_type)
    place = taught.blocks or (family.stages if family is not None else None)
    blocks: Any = tower.get_submodule(place) if place is not None else []
    return tower, list(blocks)
