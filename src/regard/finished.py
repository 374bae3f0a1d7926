"""Captioners that others finished: BLIP, GIT, BLIP-2, Florence-2, ViT-GPT2, used as they are.

The network, its words and its preparation of photos are transformers' own; what comes out is what
ours give: words with their log-probabilities, and where the network attends from its words to the
photo, each word's gaze. Words are made of pieces: a word's log-probability is the sum over its
pieces, its map their mean.

One that was trained further here is a folder like those of others, with ``regard.json`` beside the
rest: what it was made from, and how.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from torch.nn import Parameter

import regard
from regard.card import CARE, score_table
from regard.describe import Caption, Decoding
from regard.errors import ConfigError, ModelError
from regard.files import replaced_folder
from regard.images import Placement, Preparation
from regard.models.devices import find_device
from regard.models.hub import WEIGHTS, check_weights, commit_of, fetch, is_hub_id
from regard.models.library import SAFELY, load_network, quiet, reading, transformers
from regard.models.processors import PROCESSORS, read_json, read_processor
from regard.models.speakers import (
    KINDS,
    Kind,
    ends_of,
    marks_of,
    regions_of,
    start_of,
    tower_of,
    vision_of,
)

_WORDS = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
_FILES = ("config.json", "generation_config.json", *PROCESSORS, *_WORDS, WEIGHTS)
_OPTIONAL = ("generation_config.json", *PROCESSORS, *_WORDS[1:])
_SUBJECT = "The captioner"

RECORD = "regard.json"
"""The file of a captioner that was trained further: what it was made from, and how."""


def find_finished(
    source: str | Path, *, revision: str | None = None, option: str = "--model"
) -> Path | None:
    """The folder with the config of a finished captioner; none if the source is none.

    Args:
        source: a folder in transformers' layout, a run that trained one further, or a hub id.
        revision: branch, tag or commit of a hub id.
        option: the option that the source was given by.

    Raises:
        ModelError: it is a model of transformers that cannot caption, or the hub is out of reach.
    """
    folder = _folder(source)
    if not folder.exists() and is_hub_id(str(source)):
        folder = fetch(
            str(source), ("config.json",), revision=revision, subject="Model", option=option
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


def require_taught(folder: Path, *, option: str) -> None:
    """Refuse a kind that is not trained here, before its weights are fetched.

    Args:
        folder: from :func:`find_finished`.
        option: the option that it was given by.

    Raises:
        ModelError: it is of such a kind.
    """
    kind = read_json(folder / "config.json")["model_type"]
    if KINDS[kind].taught is None:
        raise ModelError(
            f"A {kind} can caption here, but not be trained further. Give {option} one of these "
            f"kinds: {', '.join(name for name, kind in KINDS.items() if kind.taught is not None)}."
        )


def load_finished(
    source: str | Path,
    *,
    revision: str | None = None,
    device: str = "auto",
    option: str = "--model",
) -> Finished:
    """Load a finished captioner.

    Args:
        source: what :func:`find_finished` finds.
        revision: branch, tag or commit of a hub id.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        option: the option that the source was given by.

    Raises:
        ModelError: it is not complete, or its parts do not fit together.
        MissingExtraError: transformers is not installed.
        ConfigError: there is no such device here.
    """
    where = find_device(device)
    folder = _folder(source)
    if not folder.exists():
        folder = fetch(
            str(source), _FILES, optional=_OPTIONAL, revision=revision, subject="Model",
            option=option,
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
        name=str(source), folder=folder, kind=kind, model=model.to(where), tokenizer=tokenizer,
        pixels=pixels,
    )  # fmt: skip
    found.check()
    return found


def _folder(source: str | Path) -> Path:
    """The folder of a source on this machine: of a run, that of its model."""
    folder = Path(source).expanduser()
    inside = folder / "model"
    return inside if (inside / "config.json").is_file() else folder


class Finished:
    """A finished captioner; it computes where its network is, and threads may share one.

    Attributes:
        name: what leads back to it: its hub id, or its folder.
        folder: where it is on this machine.
        network: transformers' own.
        grid: H and W of its maps; none where it has no gaze.

    Args:
        name: see above.
        folder: see above.
        kind: what is to be known of it.
        model: transformers' network.
        tokenizer: its words.
        pixels: its image processor.
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
    ) -> None:
        self.name, self.folder = name, folder
        self._kind, self.network = kind, model
        self._tokenizer, self._pixels = tokenizer, pixels
        self._drawing = Lock()  # torch's draws have one state for all threads
        self._ends = ends_of(model)
        vision = vision_of(model.config)
        prepared = read_processor(folder)
        assert prepared is not None  # that the file is there was checked before
        side = prepared.size or int(vision.image_size)
        self._side, self._trained_side = side, getattr(vision, "image_size", side)
        self._leading, self.grid = regions_of(vision, side)
        if kind.attend is None:
            self.grid = None
        self._speak = kind.speak
        if kind.prompt is not None:
            asked = f"{tokenizer.bos_token}{kind.prompt}{tokenizer.eos_token}"
            ids = tokenizer(asked, add_special_tokens=False, return_tensors="pt").input_ids
            self._speak = partial(kind.speak, prompt=ids[0])
        self._marks = marks_of(model)
        self._preparation = Preparation(
            size=(side, side),
            resize="crop" if prepared.crops else "squash",
            crop_fraction=prepared.crop_fraction if prepared.crops else 1.0,
        )

    @property
    def kind(self) -> str:
        """Transformers' ``model_type``."""
        return str(self.network.config.model_type)

    @property
    def start(self) -> int:
        """The id that a caption is begun with.

        Raises:
            ModelError: its files do not say.
        """
        return start_of(self.network)

    @property
    def end(self) -> int:
        """The id that ends a caption."""
        return min(self._ends)

    @property
    def no_gaze(self) -> str:
        """Why it has no maps, in one line."""
        return (
            f"{self.name} is a {self.kind}, whose words do not attend to the photo apart from "
            "other words: there is no gaze to draw. Leave --gaze out, or take a BLIP, a "
            "Florence-2, a vision-encoder-decoder or a captioner of regard's own."
        )

    def check(self) -> None:
        """Refuse parts that do not belong together.

        Raises:
            ModelError: the tokenizer has other words than the network, or the processor makes
                photos of another size than it takes.
        """
        words = int(self.network.config.get_text_config(decoder=True).vocab_size)
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
        """For records: name, kind, revision where known, hash of the weights, what it is from.

        The hash reads all weights once.
        """
        digest = hashlib.sha256()
        for file in sorted(self.folder.glob("*.safetensors")):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        record = self.folder / RECORD
        return {
            "id": self.name,
            "kind": self.kind,
            "revision": commit_of(self.folder),
            "weights": digest.hexdigest(),
            **({"from": read_json(record).get("from")} if record.is_file() else {}),
        }

    def unfreeze(self, *, tower: bool, blocks: int = 0) -> tuple[list[Parameter], list[Parameter]]:
        """Let all but the part that sees be trained, and of that as much as is asked for.

        Args:
            tower: whether all of the part that sees is trained too.
            blocks: how many of its last blocks are, if not all of it.

        Returns:
            What is trained: of the part that sees, and of the rest.

        Raises:
            ModelError: it has fewer blocks, or it is not known which they are.
        """
        assert self._kind.taught is not None  # that it can be trained was checked before
        sees, stages = tower_of(self.network, self._kind.taught)
        if blocks > len(stages):
            known = f"it has {len(stages)}" if stages else "it is not known which they are"
            raise ModelError(
                f"Cannot train the last {blocks} blocks of what sees in {self.name}: {known}. Give "
                "--fine-tune a smaller number, or train all of it with --set train.freeze=none."
            )
        self.network.requires_grad_(True)
        sees.requires_grad_(tower)
        for block in stages[len(stages) - blocks :]:
            block.requires_grad_(True)
        # A pooled photo is what nothing here looks at: processes would wait for its gradient.
        for name, part in sees.named_modules():
            if name.endswith("pooler"):
                part.requires_grad_(False)
        seeing = set(sees.parameters())
        return (
            [p for p in sees.parameters() if p.requires_grad],
            [p for p in self.network.parameters() if p not in seeing],
        )

    def train(self, mode: bool = True) -> None:
        """Set the training mode; what sees keeps still, as frozen or pre-trained encoders do.

        Whole blocks of it would be left out at random, frozen ones too.
        """
        self.network.train(mode)
        if self._kind.taught is not None:
            tower_of(self.network, self._kind.taught)[0].eval()

    def read(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """What it expects after each id of known captions.

        Args:
            pixels: prepared photos ``(B, 3, H, W)``.
            ids: ``(B, K, T)``, from the start on; what follows an end is without effect.

        Returns:
            Scores ``(B, K, T, V)``.
        """
        assert self._kind.taught is not None  # that it can be trained was checked before
        photos, captions, _ = ids.shape
        rows = ids.transpose(0, 1).flatten(0, 1)  # (K B, T)
        scores = self._kind.taught.read(self.network, pixels, rows)  # (K B, T, V)
        return scores.unflatten(0, (captions, photos)).transpose(0, 1)  # type: ignore[no-untyped-call, no-any-return]

    def write(
        self, folder: Path, *, settings: Mapping[str, Any], origin: Mapping[str, Any],
        scores: Mapping[str, Any], data: str,
    ) -> None:  # fmt: skip
        """Write it as a folder that transformers reads, with :data:`RECORD` and a card.

        Args:
            folder: replaced if it is there.
            settings: of the run.
            origin: what the captioner was that it is made from; see :meth:`describe_self`.
            scores: what was measured, by name, with the split and how.
            data: the name of the data set.

        Raises:
            ModelError: it cannot be written.
        """
        described = {
            "regard": regard.__version__,
            "kind": self.kind,
            "from": dict(origin),
            "settings": dict(settings),
            "scores": dict(scores),
            "data": data,
        }
        try:
            with replaced_folder(folder) as beside, quiet():
                self.network.save_pretrained(beside)
                for name in (*PROCESSORS, *_WORDS):  # as they were, so that nothing changes
                    if (self.folder / name).is_file():
                        shutil.copyfile(self.folder / name, beside / name)
                text = json.dumps(described, indent=1, ensure_ascii=False) + "\n"
                (beside / RECORD).write_text(text, encoding="utf-8")
                (beside / "README.md").write_text(_card(described), encoding="utf-8")
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"The captioner cannot be written to {folder}: {error}. Make room, then go on with "
                "--resume."
            ) from error

    def placement(self, size: tuple[int, int]) -> Placement:
        """Left, top, right, bottom of what it saw, in pixels of a photo of this width, height."""
        return self._preparation.placement(*size)

    def describe(self, photos: Sequence[Image.Image], decoding: Decoding) -> list[list[Caption]]:
        """Caption upright RGB photos.

        Args:
            photos: any number.
            decoding: how captions are chosen; ``max_length`` and ``no_repeat`` count pieces, the
                end among them. What it does not say, such as a penalty of repeats, is as the
                model's makers set it. A forbidden word is one as the tokenizer writes it.

        Returns:
            For each photo its captions, best first, at least one.

        Raises:
            ConfigError: a prefix, groups or a consensus, which its program does not have.
        """
        return self.describe_prepared(self.prepare(photos), decoding)

    def prepare(self, photos: Sequence[Image.Image]) -> Tensor:
        """Upright RGB photos as the network wants them, ``(B, 3, H, W)``, float32."""
        with quiet():
            prepared: Tensor = self._pixels(images=list(photos), return_tensors="pt")[
                "pixel_values"
            ]
        return prepared

    def describe_prepared(self, pixels: Tensor, decoding: Decoding) -> list[list[Caption]]:
        """Caption photos as :meth:`prepare` gives them; see :meth:`describe`."""
        lacking = {
            "prefix": decoding.prefix,
            "groups": decoding.groups > 1,
            "consensus": decoding.consensus,
        }
        if option := next((name for name, asked in lacking.items() if asked), None):
            raise ConfigError(
                f"{option} is {getattr(decoding, option)!r}, but captions of a finished captioner "
                "are chosen by its own program, which has no such option. Leave it out, or take a "
                "model of regard's own."
            )
        each = decoding.count if decoding.sampling else decoding.beam
        # One by one when drawing, so that a photo's captions do not change with its neighbours. In
        # a beam every word's scores are kept to the end: 48 rows of 50,000 words are 10 MB a step.
        at_once = 1 if decoding.sampling else max(1, 48 // each)
        found: list[list[Caption]] = []
        with torch.inference_mode(), quiet():
            for batch in pixels.split(at_once):  # type: ignore[no-untyped-call]
                found += self._caption(batch.to(self.network.device), decoding, each)
        return found

    def encode(self, text: str, *, most: int) -> list[int]:
        """The ids of a caption without start and end, at most so many."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids[:most]

    def _spellings(self, phrases: Sequence[str]) -> list[list[int]]:
        """The pieces of phrases: at the beginning of a caption and inside, small and capital."""
        spelled = (
            tuple(self._tokenizer(space + written, add_special_tokens=False).input_ids)
            for phrase in phrases
            for written in (phrase, phrase.lower(), phrase.capitalize(), phrase.title())
            for space in ("", " ")
        )
        unknown = self._tokenizer.unk_token_id
        return [list(ids) for ids in dict.fromkeys(spelled) if ids and unknown not in ids]

    def _caption(self, pixels: Tensor, decoding: Decoding, each: int) -> list[list[Caption]]:
        settings: dict[str, Any] = {
            "max_new_tokens": decoding.max_length + self._marks,
            "min_new_tokens": decoding.min_length + self._marks,  # no end before a word
            "forced_eos_token_id": None,  # a caption that is cut off shall be known for one
            "num_return_sequences": each,
            "pad_token_id": self._pad,
            "return_dict_in_generate": True,
            "output_logits": True,
        }
        if decoding.no_repeat is not None:
            settings["no_repeat_ngram_size"] = decoding.no_repeat
        if spelled := self._spellings(decoding.forbid):
            settings["bad_words_ids"] = spelled
        if decoding.sampling:
            settings |= {
                "do_sample": True, "num_beams": 1, "temperature": decoding.temperature,
                "top_k": decoding.top_k or 0, "top_p": decoding.top_p or 1.0,
            }  # fmt: skip
            devices = [pixels.device] if pixels.device.type == "cuda" else []
            with self._drawing, torch.random.fork_rng(devices):
                torch.manual_seed(decoding.seed)
                said, seen = self._speak(self.network, pixels, settings)
        else:
            settings |= {"do_sample": False, "num_beams": decoding.beam}
            if decoding.beam > 1:
                settings["length_penalty"] = decoding.length_penalty
            said, seen = self._speak(self.network, pixels, settings)
        ids, pieces = _chosen(said)  # (R, S), (R, S)
        ids, pieces = ids[:, self._marks :], pieces[:, self._marks :]
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

        The mean over the heads of the last layer, without what fell on class tokens and on what
        was asked.
        """
        if self.grid is None or seen is None or self._kind.attend is None:
            return np.zeros((len(sequences), steps, 0, 0), np.float32)
        # The word at a place is said from the place before it.
        read = sequences[:, :-1]  # (R, T)
        attention = self._kind.attend(self.network, read, seen.repeat_interleave(each, dim=0))
        rows, columns = self.grid
        own = slice(self._leading, self._leading + rows * columns)
        regions = attention.mean(dim=1)[:, -steps:, own].float()  # (R, S, L)
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


def _card(described: Mapping[str, Any]) -> str:
    origin = described["from"]
    settings = described["settings"]
    trained = "all of it" if settings["train"]["freeze"] == "none" else "all but the part that sees"
    if blocks := settings["encoder"]["fine_tune_stages"]:
        trained += f", of which the last {blocks} blocks"
    revision = f", revision {origin['revision']}" if origin["revision"] else ""
    return f"""---
library_name: transformers
pipeline_tag: image-to-text
tags: [image-captioning, regard]
---

# An image captioner trained further

A {described["kind"]} of transformers, trained further with regard {described["regard"]}.

    regard caption PHOTO --model THIS_FOLDER

| | |
|---|---|
| made from | {origin["id"]}{revision} |
| hash of its weights | `{origin["weights"]}` |
| trained | {trained} |
| data | {described["data"]} |

{score_table(described["scores"])}
## Use

{CARE}"""
