"""The settings of a captioner and its training: small frozen records, one sentence a field.

The sentences are the help text. Settings are put together in one order, later ones winning: a
preset, a configuration file, then single settings (``--set a.b=c``). All problems are reported
together, before any work.
"""

from __future__ import annotations

import difflib
import math
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from regard.errors import ConfigError

LEAST_PIECES = 257
"""Every byte, and the mark that begins a word: pieces that a vocabulary of pieces cannot lack."""


REWARDS = ("cider", "bleu4", "clipscore")
"""What drawn captions can be rewarded for."""


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class CaptionerConfig(_Record):
    """The captioner that is trained further, where one is."""

    id: str | None = Field(
        None,
        description="Hub id or local folder of a finished captioner of transformers to train "
        "further, with its own encoder, decoder and words; none trains one of regard's own.",
    )
    init: str | None = Field(
        None,
        description="Run, model folder or hub id of a captioner of regard's own to begin with, "
        "with its encoder, decoder and words; none begins anew.",
    )
    revision: str | None = Field(None, description="Commit or tag of a hub id.")


class EncoderConfig(_Record):
    """The part that sees."""

    id: str = Field(
        "timm/resnet50.tv_in1k",
        description="Hub id, local folder or weight file of the encoder; `small` is a few "
        "convolutions "
        "trained together with the decoder.",
    )
    revision: str | None = Field(None, description="Commit or tag of a hub id.")
    image_size: int | None = Field(
        None,
        ge=32,
        le=2048,
        description="Side of the prepared photo in pixels; none is what the encoder expects.",
    )
    resize: Literal["squash", "crop"] = Field(
        "squash", description="How a photo becomes square: the whole of it, or its centre."
    )
    grid: int | None = Field(
        None,
        ge=1,
        le=124,
        description="Rows and columns of regions, averaged from the encoder's own; none keeps "
        "those.",
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="Precision that a frozen encoder computes regions in; auto takes bf16 where "
        "the machine is fast at it.",
    )
    fine_tune_stages: int = Field(
        0,
        ge=0,
        description="Last stages (of a ViT and of a finished captioner: blocks) of a pre-trained "
        "encoder to train as well; 0 is frozen.",
    )

    @property
    def place(self) -> str | None:
        """Where its weights are, if that was said; none leaves it to what a captioner knows."""
        return self.id if "id" in self.model_fields_set else None


class TextConfig(_Record):
    """The words."""

    vocabulary: str = Field(
        "words:1",
        description="words:N: words seen at least N times in training, the others become <UNK>; "
        "bpe:N: N pieces of words, which make any word.",
    )
    max_length: int = Field(
        40,
        ge=1,
        le=200,
        description="Longest training caption in words (or pieces); longer ones are cut.",
    )
    embeddings: str | None = Field(
        None,
        description="File of word vectors (word2vec binary or text, GloVe, gzip of them) that the "
        "words start from.",
    )

    @field_validator("vocabulary")
    @classmethod
    def _is_a_vocabulary(cls, value: str) -> str:
        kind, _, number = value.partition(":")
        least = {"words": 1, "bpe": LEAST_PIECES}.get(kind)
        if least is None or not number.isdecimal() or int(number) < least:
            raise ValueError(
                f"expected words:N with N at least 1, as in words:5, or bpe:N with N at least "
                f"{LEAST_PIECES}, as in bpe:4000"
            )
        return value

    @model_validator(mode="after")
    def _vectors_are_of_words(self) -> Self:
        if self.embeddings is not None and self.vocabulary.startswith("bpe:"):
            raise ValueError(
                f"{self.embeddings} has vectors of words, and {self.vocabulary} makes pieces of "
                "them; take words:5, or no embeddings"
            )
        return self


class DecoderConfig(_Record):
    """The part that speaks. What one kind alone has is no matter to the other."""

    kind: Literal["lstm", "transformer"] = Field(
        "lstm", description="An LSTM that looks before each word, or a Transformer."
    )
    embedding_width: int | None = Field(
        None,
        ge=1,
        description="E, width of a word's vector; follows the embeddings file, or is 300 (N for "
        "a Transformer).",
    )
    hidden_width: int = Field(512, ge=1, description="N, width of the hidden state.")
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of word and hidden values dropped in training."
    )
    word_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the words said that are hidden from the decoder in training.",
    )
    region_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of a photo's regions that are left out in training, others each time.",
    )
    attention_width: int = Field(512, ge=1, description="LSTM: A, width of the attention space.")
    start_state: Literal["mean", "zeros"] = Field(
        "mean",
        description="LSTM: state before the first word: a layer on the mean region, or zeros.",
    )
    gate: bool = Field(
        False, description="LSTM: whether a gate scales the context before it enters."
    )
    layers: int = Field(2, ge=1, le=48, description="Transformer: layers.")
    region_layers: int = Field(
        0,
        ge=0,
        le=48,
        description="Transformer: layers that let the regions ask each other first.",
    )
    heads: int = Field(8, ge=1, description="Transformer: heads of each attention; they share N.")
    feed_forward_width: int = Field(
        1024, ge=1, description="Transformer: width between two attentions."
    )
    positions: Literal["sinusoidal", "learned"] = Field(
        "sinusoidal", description="Transformer: what tells a word its place."
    )
    tied: bool = Field(
        True, description="Transformer: whether the words' vectors also score the next word."
    )

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> Self:
        if self.kind == "transformer" and self.hidden_width % math.lcm(2, self.heads):
            raise ValueError(
                f"hidden_width is {self.hidden_width}; a Transformer with {self.heads} heads needs "
                f"a multiple of {math.lcm(2, self.heads)}"
            )
        return self

    def of_kind(self) -> dict[str, Any]:
        """The settings that this kind of decoder has, by name."""
        own = {
            "lstm": {"attention_width", "start_state", "gate"},
            "transformer": {
                "layers",
                "region_layers",
                "heads",
                "feed_forward_width",
                "positions",
                "tied",
            },
        }
        others = set().union(*own.values()) - own[self.kind]
        return self.model_dump(exclude=others)


class TrainConfig(_Record):
    """How it learns."""

    epochs: int = Field(20, ge=1, description="Passes over the training captions.")
    word_epochs: int = Field(
        0,
        ge=0,
        description="Epochs before the first in which an encoder without pre-trained weights "
        "learns which words a photo's captions hold; it is frozen then. 0 trains it with the "
        "decoder.",
    )
    max_steps: int | None = Field(
        None, ge=1, description="Stop after this many iterations, if sooner."
    )
    freeze: Literal["vision", "none"] = Field(
        "vision",
        description="What a finished captioner keeps as it is: the part that sees, but for the "
        "blocks of encoder.fine_tune_stages, or nothing.",
    )
    grouping: Literal["caption", "photo"] = Field(
        "caption",
        description="What a batch counts: single captions, or photos with all their captions.",
    )
    batch_size: int = Field(
        32, ge=1, description="Captions (or photos) in a batch, over all processes."
    )
    captions_per_photo: int = Field(
        5, ge=1, description="Most captions of one photo in a batch when grouping by photo."
    )
    bucket: bool = Field(False, description="Whether batches hold captions of similar length.")
    optimizer: Literal["adam", "adamw"] = Field(
        "adam", description="Adam, or Adam with decoupled decay."
    )
    learning_rate: float = Field(
        1e-3, gt=0, description="Learning rate of the decoder at its highest."
    )
    encoder_learning_rate: float = Field(
        1e-5, gt=0, description="Learning rate of what is unfrozen of a pre-trained encoder."
    )
    weight_decay: float = Field(0.0, ge=0, description="Weight decay (of matrices, not of biases).")
    schedule: Literal["step", "cosine", "constant"] = Field(
        "step", description="How the learning rate falls: in steps, as a cosine to zero, or not."
    )
    step_epochs: int = Field(10, ge=1, description="Epochs between two falls of the step schedule.")
    step_factor: float = Field(
        0.5, gt=0, le=1, description="Factor of each fall of the step schedule."
    )
    warmup_steps: int = Field(
        0, ge=0, description="Iterations over which the rate rises from zero."
    )
    views: int = Field(
        1,
        ge=1,
        le=12,
        description="Views of each photo, one drawn an epoch: the photo, its mirror image, crops.",
    )
    average: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of the averaged weights that an iteration keeps; they are what is "
        "judged and written. 0: the weights as they are.",
    )
    scheduled_sampling: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the words read that the captioner draws itself; it rises from 0 to "
        "this over the run.",
    )
    attention_penalty: float = Field(
        0.0,
        ge=0,
        description="Weight of the penalty on regions that a caption's words together look at "
        "more or less than once.",
    )
    agreement: float = Field(
        0.0,
        ge=0,
        le=10,
        description="A photo's captions weigh in the loss as this power of how much the others "
        "agree with each (mean CIDEr-D). 0: they weigh the same.",
    )
    label_smoothing: float = Field(
        0.0, ge=0, lt=1, description="Share of the target spread evenly over the vocabulary."
    )
    teachers: tuple[str, ...] = Field(
        (),
        description="Captioners of regard's own (runs, model folders, hub ids) with the same "
        "words; what they expect together at each word of people's captions is learnt beside it.",
    )
    teaching: float = Field(
        0.6,
        gt=0,
        le=1,
        description="Share of the target that is what train.teachers expect; the rest is the word "
        "that people said.",
    )
    objective: Literal["cross-entropy", "scst"] = Field(
        "cross-entropy",
        description="What is learnt: people's captions word by word, or to say what is rewarded "
        "(self-critical sequence training, of a captioner to begin with).",
    )
    samples: int = Field(
        5, ge=2, le=100, description="scst: captions drawn of each photo; each has the mean reward "
        "of the others as its baseline.",
    )  # fmt: skip
    reward: str = Field(
        "cider=1",
        description="scst: what is rewarded, with weights: cider (0 to 10), bleu4 (0 to 1), "
        "clipscore (0 to 2.5), as in cider=1,bleu4=0.5.",
    )
    reward_clip: str | None = Field(
        None, description="scst: hub id or folder of the CLIP of the reward clipscore."
    )
    cross_entropy: float = Field(
        0.0,
        ge=0,
        description="scst: weight of the cross-entropy of people's captions beside the reward.",
    )
    clip: float = Field(5.0, ge=0, description="Largest norm of the gradient; 0 never clips.")
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="Precision of products; auto takes bf16 where the machine is fast at it.",
    )
    save_every: int = Field(
        500, ge=1, description="Iterations between two saved states to resume from."
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Epochs without a better CIDEr after which training stops; none: never.",
    )

    @field_validator("reward")
    @classmethod
    def _is_a_reward(cls, value: str) -> str:
        _weights(value)
        return value

    @model_validator(mode="after")
    def _can_be_rewarded(self) -> Self:
        if self.objective != "scst":
            return self
        if self.grouping != "photo":
            raise ValueError(
                f"grouping is {self.grouping}; self-critical training draws captions of photos, it "
                "needs photo (--preset scst has it)"
            )
        if self.label_smoothing:
            raise ValueError(
                f"label_smoothing is {self.label_smoothing}, which is for cross-entropy; set it to "
                "0 (--preset scst does)"
            )
        for name in ("scheduled_sampling", "attention_penalty", "teachers"):
            if getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, which is for people's captions; leave it out"
                )
        if ("clipscore" in self.rewards) != (self.reward_clip is not None):
            raise ValueError(
                f"reward is {self.reward} and reward_clip {self.reward_clip}: the reward clipscore "
                "and its CLIP belong together; set both, or neither"
            )
        return self

    @property
    def rewards(self) -> dict[str, float]:
        """The weights of what is rewarded, by name."""
        return _weights(self.reward)


def _weights(text: str) -> dict[str, float]:
    """``cider=1,bleu4=0.5`` by name.

    Raises:
        ValueError: it is not of this form.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            weight = float(number)
        except ValueError:
            weight = math.nan
        if name not in REWARDS or name in found or not 0 < weight < math.inf:
            raise ValueError(
                f"{part.strip()!r} is no reward with its weight; expected some of "
                f"{', '.join(REWARDS)}, each once with a weight above 0, as in cider=1,bleu4=0.5"
            )
        found[name] = weight
    return found


class ValidationConfig(_Record):
    """How each epoch is judged, and how the finished captioner speaks unless told otherwise."""

    split: Literal["val", "test", "train"] = Field(
        "val", description="Split whose photos are captioned."
    )
    max_photos: int | None = Field(
        None, ge=1, description="At most this many photos of it, the first by id."
    )
    beam: int = Field(1, ge=1, le=50, description="Beam width of the captions after each epoch.")


class Config(_Record):
    """All settings of a run."""

    seed: int = Field(0, ge=0, description="Seed of every random choice.")
    captioner: CaptionerConfig = CaptionerConfig()
    encoder: EncoderConfig = EncoderConfig()
    text: TextConfig = TextConfig()
    decoder: DecoderConfig = DecoderConfig()
    train: TrainConfig = TrainConfig()
    validation: ValidationConfig = ValidationConfig()

    @model_validator(mode="after")
    def _of_one_captioner(self) -> Self:
        init, rewarded = self.captioner.init, self.train.objective == "scst"
        if self.captioner.id is not None and (init is not None or rewarded):
            beside = "--scst" if rewarded else "--init"
            raise ValueError(
                f"{beside} cannot stand beside --from {self.captioner.id}: it is for captioners of "
                "regard's own; leave out the one or the other"
            )
        if rewarded and init is None:
            raise ValueError(
                "--scst trains a captioner further that can speak already; give one of regard's "
                "own, a run or a model folder, with --init"
            )
        if init is not None and (self.text.embeddings or self.train.word_epochs):
            raise ValueError(
                f"text.embeddings and train.word_epochs are for a captioner that begins anew; "
                f"{init} has learnt its words: leave them out, or --init"
            )
        if self.captioner.id is None:
            if self.train.freeze != "vision":
                raise ValueError(
                    f"train.freeze is {self.train.freeze}, which is for a finished captioner "
                    "(--from); of an encoder, encoder.fine_tune_stages are trained"
                )
            return self
        usual = Config.model_construct()
        others = [
            f"{section}.{name}"
            for section, names in _OF_OUR_OWN.items()
            for name in names
            if getattr(getattr(self, section), name) != getattr(getattr(usual, section), name)
        ]
        if others:
            raise ValueError(
                f"{', '.join(others)} cannot be set for {self.captioner.id}: it has an encoder, a "
                "decoder and words of its own; leave them out (--preset finetune does), or --from"
            )
        if self.train.freeze == "none" and self.encoder.fine_tune_stages:
            raise ValueError(
                f"train.freeze is none, which trains all of {self.captioner.id}, and "
                f"encoder.fine_tune_stages is {self.encoder.fine_tune_stages}, which trains its "
                "last blocks alone; set one of them"
            )
        return self

    def in_use(self) -> dict[str, Any]:
        """The settings that count for the captioner that is trained, by section."""
        finished, begun = self.captioner.id is not None, self.captioner.init is not None
        others = [
            _OF_OUR_OWN if finished else {"captioner": {"id"}, "train": {"freeze"}},
            {} if begun else {"captioner": {"init"}},
            {} if begun or finished else {"captioner": {"revision"}},
            {} if self.train.objective == "scst" else {"train": _OF_SCST},
            {} if self.train.teachers else {"train": {"teachers", "teaching"}},
        ]
        exclude: dict[str, set[str]] = {}
        for sections in others:
            for section, names in sections.items():
                exclude[section] = exclude.get(section, set()) | names
        values = self.model_dump(exclude=exclude)
        return {name: value for name, value in values.items() if value != {}}


_OF_SCST = {"samples", "reward", "reward_clip", "cross_entropy"}
"""What is set of a training for self-critical training alone."""

_OF_OUR_OWN = {
    "encoder": set(EncoderConfig.model_fields) - {"fine_tune_stages"},
    "decoder": set(DecoderConfig.model_fields),
    "text": {"vocabulary", "embeddings"},
    "train": {
        "word_epochs",
        "scheduled_sampling",
        "attention_penalty",
        "agreement",
        "teachers",
        "teaching",
    },
}
"""What is set for a captioner of our own alone."""

PRESETS: dict[str, tuple[str, dict[str, Any]]] = {
    "report": (
        "The report's protocol: every word, batches of 32 captions, Adam 0.001 halved every 10 "
        "epochs, cross-entropy, clipping at 5.",
        {},
    ),
    "fast": (
        "The best captions for the time on two cores: photos with all their captions, smoothing, "
        "decay, dropout, a cosine schedule.",
        {
            "text": {"vocabulary": "words:5"},
            "decoder": {"dropout": 0.5},
            "train": {
                "epochs": 12,
                "grouping": "photo",
                "bucket": True,
                "optimizer": "adamw",
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_steps": 100,
                "label_smoothing": 0.1,
            },
        },
    ),
    "transformer": (
        "Like fast, with a Transformer that learns all words of a caption at once: its own rate, "
        "warm-up and dropout.",
        {
            "text": {"vocabulary": "words:5"},
            "decoder": {"kind": "transformer", "dropout": 0.4},
            "train": {
                "epochs": 12,
                "grouping": "photo",
                "bucket": True,
                "optimizer": "adamw",
                "learning_rate": 5e-4,
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_steps": 400,
                "label_smoothing": 0.1,
                "clip": 1.0,
            },
        },
    ),
    "finetune": (
        "For a finished captioner (--from), and taken for it unless another is named: photos with "
        "all their captions, a small rate, smoothing, decay, a cosine schedule.",
        {
            "train": {
                "epochs": 5,
                "grouping": "photo",
                "batch_size": 8,
                "optimizer": "adamw",
                "learning_rate": 1e-5,
                "weight_decay": 0.05,
                "schedule": "cosine",
                "warmup_steps": 100,
                "label_smoothing": 0.1,
                "clip": 1.0,
            },
        },
    ),
    "scst": (
        "For --scst, and taken for it unless another is named: five captions drawn of each photo, "
        "CIDEr as the reward, a small rate, no dropout, validation with a beam.",
        {
            "decoder": {"dropout": 0.0},
            "train": {
                "epochs": 10,
                "grouping": "photo",
                "optimizer": "adamw",
                "learning_rate": 2e-4,
                "schedule": "cosine",
                "warmup_steps": 20,
            },
            "validation": {"beam": 3},
        },
    ),
    "scenes": (
        "For drawn scenes, in a few minutes: the small encoder, which learns the words first, and "
        "a Transformer of one layer.",
        {
            "encoder": {"id": "small", "image_size": 112},
            # With one layer and one head a word knows of the photo what it looks at itself: what
            # earlier words saw does not reach it. So the gaze is on what is said.
            "decoder": {
                "kind": "transformer",
                "layers": 1,
                "heads": 1,
                "hidden_width": 128,
                "feed_forward_width": 256,
                "dropout": 0.1,
            },
            "train": {
                "word_epochs": 12,
                "epochs": 16,
                "grouping": "photo",
                "batch_size": 16,
                "optimizer": "adamw",
                "weight_decay": 0.01,
                "learning_rate": 2e-3,
                "schedule": "cosine",
                "warmup_steps": 50,
            },
            "validation": {"max_photos": 200},
        },
    ),
}


def make_config(
    *,
    preset: str | None = None,
    file: Path | None = None,
    settings: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Put settings together.

    Args:
        preset: a key of :data:`PRESETS`; none is ``report``, or ``finetune`` where the settings
            name a finished captioner, or ``scst`` where that is the objective.
        file: a YAML file with any of the settings.
        settings: texts such as ``train.epochs=2``; the value is read as YAML.
        overrides: values by dotted name, applied after the file and before ``settings``.

    Raises:
        ConfigError: naming every unknown key (with the nearest known one) and every bad value.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(
            f"There is no preset {preset!r}{_nearest(preset, PRESETS)}. "
            f"Presets: {', '.join(sorted(PRESETS))}."
        )
    import yaml  # a twentieth of a second, which captioning has no need of

    values: dict[str, Any] = {}
    if file is not None:
        _merge(values, _read_yaml(file))
    for name, value in (overrides or {}).items():
        _put(values, name, value)
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                f"--set {setting!r} is not of the form name=value. "
                "Write for example --set train.epochs=2."
            )
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not YAML ({error}).") from error
        _put(values, name.strip(), _number(value))
    captioner = values.get("captioner")
    finished = isinstance(captioner, dict) and captioner.get("id") is not None
    train = values.get("train")
    rewarded = isinstance(train, dict) and train.get("objective") == "scst"
    usual = "scst" if rewarded else "finetune" if finished else "report"
    begun: dict[str, Any] = {}
    _merge(begun, PRESETS[preset or usual][1])
    _merge(begun, values)
    return validated(begun)


def validated(values: Mapping[str, Any], *, source: str = "the settings") -> Config:
    """A :class:`Config` of plain values.

    Raises:
        ConfigError: one line for each problem.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        names = [name for name, _ in describe_fields()]
        lines = []
        for problem in error.errors():
            name = ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                lines.append(f"unknown setting {name!r}{_nearest_setting(name, names)}")
            elif problem["type"] == "value_error" and isinstance(problem["input"], dict):
                place = f"{name}: " if name else ""  # of several settings
                lines.append(f"{place}{problem['ctx']['error']}")
            elif problem["type"] == "value_error":
                lines.append(f"{name} = {problem['input']!r}: {problem['ctx']['error']}")
            else:
                lines.append(f"{name} = {problem['input']!r}: {_lower(problem['msg'])}")
        raise ConfigError(
            f"There are problems with {source}:\n  "
            + "\n  ".join(lines)
            + "\n`regard train --help` lists every setting."
        ) from error


def recorded(values: Mapping[str, Any], *, source: str) -> Config:
    """A :class:`Config` of what a file holds, written now or by an earlier version.

    Raises:
        ConfigError: one line for each problem.
    """
    text = values.get("text")
    if isinstance(text, dict) and "min_count" in text:  # from before there were pieces of words
        text = {"vocabulary": f"words:{text['min_count']}", **text}
        del text["min_count"]
        values = {**values, "text": text}
    return validated(values, source=source)


def describe_fields() -> Iterator[tuple[str, str]]:
    """Each setting's dotted name and its sentence with the default, in order."""
    for name, field in Config.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            for inner, f in section.model_fields.items():
                choices = typing.get_args(f.annotation)
                kind = (
                    " [" + "|".join(map(str, choices)) + "]"
                    if typing.get_origin(f.annotation) is Literal
                    else ""
                )
                yield f"{name}.{inner}", f"{f.description}{kind} (default: {_shown(f.default)})"
        else:
            yield name, f"{field.description} (default: {_shown(field.default)})"


def _shown(value: Any) -> str:
    return (
        "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _number(value: Any) -> Any:
    """YAML 1.1 reads ``1e-3`` as a text; people mean the number."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"The configuration file {file} does not exist.") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"The configuration file {file} cannot be read: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(
            f"The configuration file {file} holds {type(values).__name__}, not settings by name. "
            "Write for example:\n  train:\n    epochs: 2"
        )
    return _with_numbers(values)


def _with_numbers(values: dict[Any, Any]) -> dict[str, Any]:
    return {
        str(k): _with_numbers(v) if isinstance(v, dict) else _number(v) for k, v in values.items()
    }


def _merge(into: dict[str, Any], values: Mapping[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value)
        else:
            into[key] = value


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        inner = values.setdefault(part, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{name!r}: {part!r} is a single value, it has no parts.")
        values = inner
    values[last] = value


def _nearest(name: str, known: Mapping[str, Any] | Sequence[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" - did you mean {close[0]!r}?" if close else ""


def _nearest_setting(name: str, names: Sequence[str]) -> str:
    """The nearest full name, or the one full name that ends with what was typed."""
    last = name.rpartition(".")[2]
    ends = [n for n in names if n.rpartition(".")[2] == last]
    return f" - did you mean {ends[0]!r}?" if ends else _nearest(name, names)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
