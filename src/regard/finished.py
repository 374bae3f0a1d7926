"""Captioners that others finished: BLIP, GIT, BLIP-2, ViT-GPT2, used as they are.

The network, its words and its preparation of photos are transformers' own; what comes out is what
ours give: words with their log-probabilities, and where the network attends from its words to the
photo, each word's gaze. Words are made of pieces: a word's log-probability is the sum over its
pieces, its map their mean.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from regard.describe import Caption, Decoding
from regard.errors import ModelError
from regard.images import Placement, Preparation
from regard.models.backbones import FAMILIES
from regard.models.devices import find_device
from regard.models.hub import WEIGHTS, check_weights, commit_of, fetch, is_hub_id
from regard.models.library import SAFELY, load_network, quiet, reading, transformers
from regard.models.processors import PROCESSORS, read_json, read_processor

_WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_FILES = ("config.json", "generation_config.json", *PROCESSORS, *_WORDS, WEIGHTS)
_OPTIONAL = ("generation_config.json", *PROCESSORS, *_WORDS[1:])
_SUBJECT = "The captioner"


@dataclass(frozen=True)
class Kind:
    """What is to be known of the captioners of one ``model_type``."""

    model: str
    """The class in transformers."""
    speak: Callable[[Any, Tensor, dict[str, Any]], tuple[Any, Tensor | None]]
    """Network, photos and settings to what ``generate`` returns and, where words attend to the
    photo, what they attend to: ``(B, tokens, D)``."""
    attend: Callable[[Any, Tensor, Tensor], Tensor] | None = None
    """Network, ids ``(R, T)`` and what they attend to, ``(R, tokens, D)``, to the attention of the
    last layer ``(R, heads, T, tokens)``; none where words do not attend to the photo alone."""


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


def _pair(model: Any, pixels: Tensor, settings: dict[str, Any]) -> tuple[Any, Tensor]:
    encoded = model.encoder(pixel_values=pixels)
    seen = encoded.last_hidden_state  # taken first: generate() repeats it for each beam, in place
    return model.generate(encoder_outputs=encoded, **settings), seen


def _pair_attention(model: Any, ids: Tensor, seen: Tensor) -> Tensor:
    if hasattr(model, "enc_to_dec_proj"):
        seen = model.enc_to_dec_proj(seen)
    read = model.decoder(input_ids=ids, encoder_hidden_states=seen, output_attentions=True)
    attention: Tensor = read.cross_attentions[-1]
    return attention


def _whole(model: Any, pixels: Tensor, settings: dict[str, Any]) -> tuple[Any, None]:
    return model.generate(pixel_values=pixels, **settings), None


KINDS: dict[str, Kind] = {
    "blip": Kind("BlipForConditionalGeneration", _blip, _blip_attention),
    "blip-2": Kind("Blip2ForConditionalGeneration", _whole),
    "git": Kind("GitForCausalLM", _whole),
    "vision-encoder-decoder": Kind("VisionEncoderDecoderModel", _pair, _pair_attention),
}
"""By ``model_type`` of the config."""


def find_finished(source: str | Path, *, revision: str | None = None) -> Path | None:
    """The folder with the config of a finished captioner; none if the source is none.

    Args:
        source: a folder in transformers' layout, or a hub id.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelError: it is a model of transformers that cannot caption, or the hub is out of reach.
    """
    folder = Path(source).expanduser()
    if not folder.exists() and is_hub_id(str(source)):
        folder = fetch(
            str(source), ("config.json",), revision=revision, subject="Model", option="--model"
        )
    if not (folder / "config.json").is_file():
        return None
    described = read_json(folder / "config.json")
    kind = described.get("model_type")
    if kind is None or "format" in described:
        return None
    if kind not in KINDS:
        raise ModelError(
            f"{source} is a model of the kind {kind!r}, which writes no captions here. Captioners "
            f"of others that can be used: {', '.join(KINDS)}. (An encoder is given to `regard "
            "train --encoder`.)"
        )
    return folder


def load_finished(
    source: str | Path, *, revision: str | None = None, device: str = "auto"
) -> Finished:
    """Load a finished captioner.

    Args:
        source: what :func:`find_finished` finds.
        revision: branch, tag or commit of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ModelError: it is not complete, or its parts do not fit together.
        MissingExtraError: transformers is not installed.
        ConfigError: there is no such device here.
    """
    where = find_device(device)
    folder = Path(source).expanduser()
    if not folder.exists():
        folder = fetch(
            str(source), _FILES, optional=_OPTIONAL, revision=revision, subject="Model",
            option="--model",
        )  # fmt: skip
    check_weights(folder)
    missing = [
        " or ".join(names)
        for names in (PROCESSORS, ("tokenizer.json",))
        if not any((folder / name).is_file() for name in names)
    ]
    if missing:
        raise ModelError(
            f"{_SUBJECT} {folder} has no {', no '.join(missing)}. Copy the file from the place "
            "that the weights are from, or save the processor and the tokenizer there again."
        )
    kind = KINDS[read_json(folder / "config.json")["model_type"]]
    library = transformers(f"the captioner {source}")
    model = load_network(
        getattr(library, kind.model), folder, subject=_SUBJECT,
        **({} if kind.attend is None else {"attn_implementation": "eager"}),
    )  # fmt: skip
    tokenizer = reading(
        lambda: library.AutoTokenizer.from_pretrained(folder, **SAFELY), folder, subject=_SUBJECT
    )
    pixels = reading(
        # By Pillow even where torchvision is installed: its resizing gives other pixels.
        lambda: library.AutoImageProcessor.from_pretrained(folder, backend="pil", **SAFELY),
        folder, subject=_SUBJECT,
    )  # fmt: skip
    found = Finished(
        name=str(source), folder=folder, kind=kind, model=model, tokenizer=tokenizer,
        pixels=pixels, device=where,
    )  # fmt: skip
    found.check()
    return found


class Finished:
    """A finished captioner with a device to run on; threads may share one.

    Attributes:
        name: what leads back to it: its hub id, or its folder.
        folder: where it is on this machine.
        grid: H and W of its maps; none where it has no gaze.

    Args:
        name: see above.
        folder: see above.
        kind: what is to be known of it.
        model: transformers' network.
        tokenizer: its words.
        pixels: its image processor.
        device: where it computes.
    """

    def __init__(
        self,
        *,
        name: str,
        folder: Path,
        kind: Kind,
        model: Any,
        tokenizer: Any,
        pixels: Any,
        device: torch.device,
    ) -> None:
        self.name, self.folder = name, folder
        self._kind, self._model, self._device = kind, model.to(device), device
        self._tokenizer, self._pixels = tokenizer, pixels
        self._drawing = Lock()  # torch's draws have one state for all threads
        self._ends = _ends(model)
        vision = _vision(model.config)
        self._leading, self.grid = 0, None if kind.attend is None else _grid(vision)
        if self.grid is not None:
            family = FAMILIES.get(vision.model_type)
            self._leading = 1 if family is None else family.leading(vision)
        prepared = read_processor(folder)
        assert prepared is not None  # that the file is there was checked before
        side = prepared.size or int(vision.image_size)
        self._side, self._trained_side = side, getattr(vision, "image_size", side)
        self._preparation = Preparation(
            size=(side, side),
            resize="crop" if prepared.crops else "squash",
            crop_fraction=prepared.crop_fraction if prepared.crops else 1.0,
        )

    @property
    def kind(self) -> str:
        """Transformers' ``model_type``."""
        return str(self._model.config.model_type)

    @property
    def no_gaze(self) -> str:
        """Why it has no maps, in one line."""
        return (
            f"{self.name} is a {self.kind}, whose words do not attend to the photo apart from "
            "other words: there is no gaze to draw. Leave --gaze out, or take a BLIP, a "
            "vision-encoder-decoder or a captioner of regard's own."
        )

    def check(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            ModelError: the tokenizer has other words than the network, or the processor makes
                photos of another size than it takes.
        """
        words = int(self._model.config.get_text_config(decoder=True).vocab_size)
        known = len(self._tokenizer)
        strange = self.kind != "blip-2" and not self._ends & set(self._tokenizer.all_special_ids)
        if known > words or known < 0.9 * words or strange:
            raise ModelError(
                f"The tokenizer in {self.folder} does not belong to its network: it has {known} "
                f"words"
                + (f", none of which ends a caption (id {min(self._ends)})" if strange else "")
                + f"; the network has {words}. Copy tokenizer.json from the place that the weights "
                "are from."
            )
        if self._side != self._trained_side:
            raise ModelError(
                f"The processor in {self.folder} makes photos of {self._side} pixels; the network "
                f"takes {self._trained_side}. Copy {PROCESSORS[0]} from the place that the weights "
                "are from."
            )

    def describe_self(self) -> dict[str, Any]:
        """For the record of an evaluation: name, kind, revision where known, hash of the weights.

        The hash reads all weights once.
        """
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob("*.safetensors")):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        return {
            "id": self.name,
            "kind": self.kind,
            "revision": commit_of(self.folder),
            "weights": digest.hexdigest(),
        }

    def placement(self, size: tuple[int, int]) -> Placement:
        """Left, top, right, bottom of what it saw, in pixels of a photo of this width, height."""
        return self._preparation.placement(*size)

    def describe(self, photos: Sequence[Image.Image], decoding: Decoding) -> list[list[Caption]]:
        """Caption upright RGB photos.

        Args:
            photos: any number.
            decoding: how captions are chosen; ``max_length`` counts pieces and the end. What it
                does not say, such as a ban of repeats, is as the model's makers set it.

        Returns:
            For each photo its captions, best first, at least one.
        """
        each = decoding.count if decoding.sampling else decoding.beam
        # One by one when drawing, so that a photo's captions do not change with its neighbours. In
        # a beam every word's scores are kept to the end: 48 rows of 50,000 words are 10 MB a step.
        at_once = 1 if decoding.sampling else max(1, 48 // each)
        found: list[list[Caption]] = []
        with torch.inference_mode(), quiet():
            for first in range(0, len(photos), at_once):
                batch = self._pixels(
                    images=list(photos[first : first + at_once]), return_tensors="pt"
                )
                found += self._caption(batch["pixel_values"].to(self._device), decoding, each)
        return found

    def _caption(self, pixels: Tensor, decoding: Decoding, each: int) -> list[list[Caption]]:
        settings: dict[str, Any] = {
            "max_new_tokens": decoding.max_length,
            "min_new_tokens": 1,  # no end before a word
            "num_return_sequences": each,
            "pad_token_id": self._pad,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        if decoding.sampling:
            settings |= {
                "do_sample": True, "num_beams": 1, "temperature": decoding.temperature,
                "top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0,
            }  # fmt: skip
            devices = [self._device] if self._device.type == "cuda" else []
            with self._drawing, torch.random.fork_rng(devices):
                torch.manual_seed(decoding.seed)
                said, seen = self._kind.speak(self._model, pixels, settings)
        else:
            settings |= {"do_sample": False, "num_beams": decoding.beam}
            if decoding.beam > 1:
                settings["length_penalty"] = decoding.length_penalty
            said, seen = self._kind.speak(self._model, pixels, settings)
        ids, pieces = _chosen(said)  # (R, S), (R, S)
        maps = self._maps(said.sequences, ids.shape[1], seen, each)  # (R, S, H, W)
        scores = getattr(said, "sequences_scores", None)
        captions = [
            self._in_words(
                ids[r].tolist(), pieces[r].tolist(), maps[r],
                None if scores is None else float(scores[r]), decoding.length_penalty,
            )
            for r in range(len(ids))
        ]  # fmt: skip
        groups = [captions[i : i + each] for i in range(0, len(captions), each)]
        if decoding.sampling:
            groups = [sorted(group, key=lambda c: -c.score) for group in groups]
        return groups

    @property
    def _pad(self) -> int:
        """What fills a caption that has ended before others."""
        pad = self._tokenizer.pad_token_id
        return int(min(self._ends) if pad is None else pad)

    def _maps(
        self, sequences: Tensor, steps: int, seen: Tensor | None, each: int
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Where it looked for each piece, ``(R, S, H, W)``, each map with the sum 1.

        The mean over the heads of the last layer, without what fell on class tokens.
        """
        if self.grid is None or seen is None or self._kind.attend is None:
            return np.zeros((len(sequences), steps, 0, 0), np.float32)
        # The word at a place is said from the place before it.
        read = sequences[:, :-1]  # (R, T)
        attention = self._kind.attend(self._model, read, seen.repeat_interleave(each, dim=0))
        regions = attention.mean(dim=1)[:, -steps:, self._leading :].float()  # (R, S, L)
        regions = regions / regions.sum(dim=-1, keepdim=True)
        return regions.unflatten(-1, self.grid).cpu().numpy()  # type: ignore[no-any-return,no-untyped-call]

    def _in_words(
        self,
        ids: list[int],
        pieces: list[float],
        maps: np.ndarray[Any, np.dtype[np.float32]],
        score: float | None,
        length_penalty: float,
    ) -> Caption:
        """A caption of the ids up to its end, with what belongs to each of its words."""
        length = next((i for i, token in enumerate(ids) if token in self._ends), len(ids))
        cut = length == len(ids)
        said = ids[:length]
        text = self._text(said)
        words = tuple(text.split())
        log_probabilities = np.zeros(len(words))
        sums = np.zeros((len(words), *maps.shape[1:]), np.float32)
        counts = np.zeros(len(words), np.float32)
        before = 0
        for i in range(length if words else 0):
            # A piece goes on with the last word, or begins one; a rare one holds several.
            after = min(len(self._text(said[: i + 1]).split()), len(words))
            touched = slice(before if after > before else max(after - 1, 0), max(after, 1))
            log_probabilities[touched.stop - 1] += pieces[i]
            sums[touched] += maps[i]
            counts[touched] += 1
            before = after
        whole = pieces[: length + (not cut)]
        if score is None:
            score = sum(whole) / max(1, len(whole)) ** length_penalty
        return Caption(
            text=text,
            words=words,
            log_probabilities=tuple(log_probabilities.tolist()),
            maps=sums / counts.reshape(-1, 1, 1),
            score=score,
            cut=cut,
        )

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _chosen(said: Any) -> tuple[Tensor, Tensor]:
    """The ids that were said, ``(R, S)``, and the log-probability of each, in all its words."""
    beams = getattr(said, "beam_indices", None)
    if beams is None:
        steps = len(said.logits)
        beams = torch.arange(len(said.sequences), device=said.sequences.device)
        beams = beams.unsqueeze(1).expand(-1, steps)
    else:
        steps = int((beams >= 0).sum(dim=1).max())
        beams = beams[:, :steps].clamp_min(0)  # what follows an end is not looked at
    ids = said.sequences[:, -steps:]  # (R, S)
    log_probabilities = torch.stack(
        [said.logits[s].float().log_softmax(dim=-1)[beams[:, s], ids[:, s]] for s in range(steps)],
        dim=1,
    )  # (R, S)
    return ids, log_probabilities


def _ends(model: Any) -> set[int]:
    """The ids that end a caption."""
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


def _vision(config: Any) -> Any:
    return config.encoder if hasattr(config, "encoder") else config.vision_config


def _grid(vision: Any) -> tuple[int, int] | None:
    """Rows and columns of what the words attend to; none where the encoder is not known."""
    if vision.model_type == "blip_vision_model":
        stride = int(vision.patch_size)
    elif (family := FAMILIES.get(vision.model_type)) is not None:
        stride = family.stride(vision)
    else:
        return None
    side = int(vision.image_size) // stride
    return side, side
