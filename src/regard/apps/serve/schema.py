"""What is asked of the API and what it answers, as types that its OpenAPI document shows."""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from regard.apps.alt_text import alt_text
from regard.captioner import PhotoCaption
from regard.describe import Caption, Decoding

_USUAL = Decoding()
_PHRASE = Field(min_length=1, max_length=80)


class Settings(BaseModel):
    """How captions are chosen: the fields of :class:`regard.describe.Decoding`."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, description="Name of a model; none is the first.")
    beam: int = Field(_USUAL.beam, ge=1, le=20, description="Width of the beam; 1 is greedy.")
    groups: int = Field(
        _USUAL.groups, ge=1, le=20,
        description="Groups of the beam that say different things; divides it.",
    )  # fmt: skip
    diversity: float = Field(
        _USUAL.diversity, ge=0, le=100,
        description="How much less probable (nats) a group finds what earlier ones said.",
    )  # fmt: skip
    min_length: int = Field(
        _USUAL.min_length, ge=1, le=100, description="Fewest words of a caption."
    )
    max_length: int = Field(_USUAL.max_length, ge=1, le=100, description="Most words of a caption.")
    length_penalty: float = Field(
        _USUAL.length_penalty, ge=0, le=5,
        description="Exponent of the length that log-probabilities are divided by.",
    )  # fmt: skip
    no_repeat: int | None = Field(
        None, ge=1, le=100, description="No so many words in a row are said twice."
    )
    forbid: list[Annotated[str, _PHRASE]] = Field(
        [], max_length=50, description="Words and phrases that no caption has."
    )
    prefix: str = Field("", max_length=200, description="What every caption begins with.")
    sampling: bool = Field(False, description="Draw the words at random instead of beam search.")
    temperature: float = Field(
        _USUAL.temperature, gt=0, le=100, description="Of the draws: below 1 sharper."
    )
    top_k: int | None = Field(
        None, ge=1, le=1_000_000, description="Draw from this many most probable words."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Draw from words with this much probability."
    )
    seed: int = Field(_USUAL.seed, ge=0, lt=2**40, description="Seed of the draws.")
    consensus: int = Field(
        _USUAL.consensus, ge=0, le=200,
        description="Drawn captions that the candidates are compared with; 0 orders by score.",
    )  # fmt: skip
    count: int = Field(_USUAL.count, ge=1, le=20, description="Captions of the photo.")
    gaze: bool = Field(True, description="Whether each word comes with its map.")

    def decoding(self) -> Decoding:
        """As the library has it.

        Raises:
            ConfigError: they contradict each other.
        """
        values = {field.name: getattr(self, field.name) for field in fields(Decoding)}
        return Decoding(**values | {"forbid": tuple(self.forbid)})


class Word(BaseModel):
    """A word and where it looked."""

    word: str
    log_probability: float = Field(description="Natural logarithm of its probability.")
    gaze: list[list[float]] | None = Field(
        description="Attention over the grid, rows from the top; sums to 1. Null where the model "
        "has none, or it was not asked for."
    )


class Text(BaseModel):
    """One caption."""

    text: str
    alt_text: str = Field(description="As a sentence of at most 125 characters.")
    score: float = Field(description="What the captions are ordered by, without a consensus.")
    agreement: float | None = Field(
        description="With a consensus what they are ordered by: mean CIDEr-D with the drawn ones."
    )
    cut: bool = Field(description="Whether it was ended because it had the greatest length.")
    words: list[Word]


class Captions(BaseModel):
    """What was said of a photo."""

    model: str
    width: int = Field(description="Of the upright photo, in pixels.")
    height: int
    seen: tuple[float, float, float, float] = Field(
        description="Left, top, right, bottom of what the model saw, in pixels of the photo."
    )
    captions: list[Text] = Field(min_length=1, description="The best first.")
    machine_made: Literal[True] = True
    reviewed: Literal[False] = False


class Problem(BaseModel):
    """What was wrong with a request."""

    code: str = Field(description="For programs: too_large, not_a_photo, busy ...")
    message: str = Field(description="For people: what is wrong, and what to do.")


class Failed(BaseModel):
    """The answer where there are no captions."""

    error: Problem


class Model(BaseModel):
    """A model that can be asked."""

    name: str
    gaze: bool = Field(description="Whether its words have maps.")


class Health(BaseModel):
    """How the server is."""

    status: Literal["ok"]
    version: str
    models: list[Model]


def captions(model: str, found: PhotoCaption, *, count: int, gaze: bool) -> Captions:
    """The answer for a photo."""
    return Captions(
        model=model,
        width=found.size[0],
        height=found.size[1],
        seen=found.placement,
        captions=[_text(one, gaze) for one in (found.best, *found.others)[:count]],
    )


def _text(caption: Caption, gaze: bool) -> Text:
    maps: list[Any] = [None] * len(caption.words)
    if gaze and caption.maps.size:
        maps = caption.maps.astype(float).round(5).tolist()
    return Text(
        text=caption.text,
        alt_text=alt_text(caption.text),
        score=round(caption.score, 6),
        agreement=None if caption.agreement is None else round(caption.agreement, 6),
        cut=caption.cut,
        words=[
            Word(word=word, log_probability=round(p, 6), gaze=seen)
            for word, p, seen in zip(caption.words, caption.log_probabilities, maps, strict=True)
        ],
    )
