"""A captioner of our own, made ready to be trained: vocabulary, encoder, decoder, sources.

It begins anew, or with one that was trained before; and learns people's captions, or a reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.build import (
    build_decoder,
    build_encoder,
    build_vocabulary,
    start_from_vectors,
    with_embedding_width,
)
from regard.checkpoint import write_model
from regard.config import Config
from regard.data.batches import CachedRegions, Captions, PhotoSource, Plan, PreparedPhotos
from regard.data.dataset import Photo
from regard.data.features import build_features, build_views
from regard.describe import Decoding, describe
from regard.metrics.agreement import agreement_among
from regard.metrics.cider import DocumentFrequencies
from regard.models.clip import Clip, load_clip
from regard.models.decoder import Decoder
from regard.models.devices import photos_at_once
from regard.models.encoders import Encoder
from regard.text.tokenise import tokenise
from regard.text.vectors import read_vectors
from regard.text.vocabulary import Lexicon
from regard.training.inherit import decoder_to_train, read_initial
from regard.training.learner import Learner
from regard.training.lesson import Teach, known_captions
from regard.training.loop import read_state, write_state
from regard.training.reward import Reward
from regard.training.scst import SelfCritical
from regard.training.teachers import expected_by, read_teachers
from regard.training.trainee import Begin, Say, Trainee
from regard.training.words import learn_words

if TYPE_CHECKING:
    from lightning.fabric import Fabric

COMMON = 5
"""Photos that have a phrase, for a captioner to know how many: 18,000 phrases of Flickr8k."""

CLIP = "--set train.reward_clip=..."


def own_trainee(
    config: Config,
    photos: Sequence[Photo],
    judged: Sequence[Photo],
    *,
    out: Path,
    fabric: Fabric,
    begin: Begin,
    cache: Path | None,
    message: Callable[[str], None],
    features: Callable[[int, int], None],
) -> Trainee:
    """Build what the settings describe.

    Args:
        config: the settings.
        photos: what is learnt.
        judged: what judges.
        out: the run.
        fabric: launched.
        begin: called before any work.
        cache: root of the feature cache; none is the default one.
        message: told one line at a time.
        features: told photos encoded and photos in all.
    """
    tokens = [[tokenise(c) for c in p.captions] for p in photos]
    place = config.encoder.place
    config, vocabulary, encoder, decoder, origin = (
        _begun_with(config) if config.captioner.init is not None else _anew(config, tokens, message)
    )
    clip = None
    if config.train.reward_clip is not None:
        clip = load_clip(config.train.reward_clip, device=str(fabric.device.type), option=CLIP)
        origin = {**origin, "reward_clip": clip.weights_hash}
    teachers = read_teachers(config.train.teachers, vocabulary, place=place)
    if teachers is not None:
        origin = {**origin, "teachers": [member.weights_hash for member in teachers.members]}
    begin(config, origin)
    frequencies = DocumentFrequencies.of(tokens, least=COMMON)
    captions = replace(
        _encoded(tokens, vocabulary, config.text.max_length),
        weights=_weights(tokens, config.train.agreement, frequencies),
    )
    if teachers is not None:
        found = expected_by(
            teachers, captions, [p.path for p in photos],
            file=out / "teachers.safetensors", fabric=fabric, cache=cache,
            message=message, features=features,
        )  # fmt: skip
        captions = replace(captions, expected=found)
    if config.train.word_epochs and not encoder.frozen:
        _learn_words(
            out / "encoder.pt", encoder, photos, captions, vocabulary, config, fabric, message
        )
    source, judging = _sources(
        encoder, photos, judged, config.train.views, fabric, cache, message, features
    )
    learner = Learner(
        encoder=None if encoder.frozen else encoder,
        decoder=decoder,
        pad=vocabulary.pad,
        label_smoothing=config.train.label_smoothing,
        attention_penalty=config.train.attention_penalty,
        scheduled_sampling=config.train.scheduled_sampling,
        teaching=config.train.teaching,
        end=vocabulary.end,
        forbidden=vocabulary.forbidden,
    )
    decoding = Decoding(beam=config.validation.beam)

    def speaker() -> Say:
        fast = decoder.fast(config.train.precision)

        def say(photos: Tensor) -> list[tuple[str, ...]]:
            regions = learner.regions(photos).float()
            found = describe(fast, vocabulary, regions, grid=encoder.grid, decoding=decoding)
            return [captions[0].words for captions in found]

        return say

    teach: Teach = known_captions(vocabulary.pad)
    if config.train.objective == "scst":
        teach = SelfCritical(
            learner,
            vocabulary,
            Reward(
                [[c for c in group if c] for group in tokens],
                config.train.rewards,
                clip=clip,
                seen=None if clip is None else _seen(clip, photos, message),
            ),
            samples=config.train.samples,
            longest=decoding.max_length,
            cross_entropy=config.train.cross_entropy,
            precision=config.train.precision,
            seed=config.seed,
        )

    def keep(folder: Path, scores: Mapping[str, Any], data: str) -> None:
        write_model(
            folder, config=config, vocabulary=vocabulary, encoder=encoder, decoder=decoder,
            scores=scores, data=data, frequencies=frequencies,
        )  # fmt: skip

    train = config.train
    small = train.encoder_learning_rate if config.encoder.fine_tune_stages else None
    return Trainee(
        learner=learner,
        rates=[
            (list(decoder.parameters()), train.learning_rate),
            (list(encoder.parameters()), small or train.learning_rate),
        ],
        captions=captions,
        known=_encoded(
            [[tokenise(c) for c in p.captions] for p in judged], vocabulary, config.text.max_length
        ),
        source=source,
        judging=judging,
        at_once=50,
        speaker=speaker,
        keep=keep,
        teach=teach,
        watched=config.train.objective == "scst",
    )


Begun = tuple[Config, Lexicon, Encoder, Decoder, Mapping[str, Any]]
"""The settings in full, what was built, and what else makes the run what it is."""


def _anew(
    config: Config, tokens: Sequence[Sequence[Sequence[str]]], message: Callable[[str], None]
) -> Begun:
    """A captioner with random weights, the words perhaps from a file of vectors."""
    vocabulary = build_vocabulary(config.text, (c for group in tokens for c in group))
    vectors = None
    if config.text.embeddings is not None:
        vectors = read_vectors(Path(config.text.embeddings), vocabulary.words)
        message(
            f"Word vectors: {len(vectors.vectors)} of {len(vocabulary)} words "
            f"({vectors.coverage(vocabulary.words):.1%}) have one."
        )
    config = with_embedding_width(config, vectors)
    torch.manual_seed(config.seed)
    encoder = build_encoder(config.encoder)
    decoder = build_decoder(
        config.decoder, vocabulary_size=len(vocabulary), feature_width=encoder.width
    )
    if vectors is not None:
        start_from_vectors(decoder, vocabulary, vectors)
    return config, vocabulary, encoder, decoder, {}


def _begun_with(config: Config) -> Begun:
    """The captioner of ``--init``."""
    config, model = read_initial(config)
    origin = {"init": {"id": config.captioner.init, "weights": model.weights_hash}}
    return config, model.vocabulary, model.encoder, decoder_to_train(config, model), origin


def _seen(
    clip: Clip, photos: Sequence[Photo], message: Callable[[str], None]
) -> NDArray[np.float32]:
    """The photos as a CLIP sees them, ``(photos, E)``, once for the whole training."""
    message(f"Looking at {len(photos)} photos with {clip.name}, for the reward ...")
    return clip.embed_photos([p.path for p in photos])


def _encoded(tokens: Sequence[Sequence[Sequence[str]]], vocabulary: Lexicon, most: int) -> Captions:
    return Captions(
        tuple(
            tuple(tuple(vocabulary.encode(c, max_length=most)) for c in group if c)
            for group in tokens
        ),
        pad=vocabulary.pad,
        start=vocabulary.start,
        end=vocabulary.end,
    )


def _weights(
    tokens: Sequence[Sequence[Sequence[str]]], power: float, frequencies: DocumentFrequencies
) -> tuple[tuple[float, ...], ...] | None:
    """What each caption weighs, as ``train.agreement`` has it; the mean of a photo's is 1."""
    if not power:
        return None
    found = []
    for agreed in agreement_among([[c for c in group if c] for group in tokens], frequencies):
        raised = agreed**power if agreed.any() else np.ones_like(agreed)
        found.append(tuple((raised / raised.mean()).tolist() if len(raised) else ()))
    return tuple(found)


def _learn_words(
    file: Path,
    encoder: Encoder,
    photos: Sequence[Photo],
    captions: Captions,
    vocabulary: Lexicon,
    config: Config,
    fabric: Fabric,
    message: Callable[[str], None],
) -> None:
    """Teach the encoder words in the first process, once, and freeze it in all of them."""
    if fabric.is_global_zero and not file.exists():
        words = torch.ones(len(vocabulary), dtype=torch.bool)
        words[[vocabulary.pad, vocabulary.start, vocabulary.end]] = False
        epochs = config.train.word_epochs
        learn_words(
            encoder.to(fabric.device),
            PreparedPhotos(encoder.preparation, [p.path for p in photos]),
            Plan(
                captions,
                grouping="photo",
                batch_size=config.train.batch_size,
                captions_per_photo=max(map(len, captions.by_photo)),
                seed=config.seed,
            ),
            config.train,
            words=words,
            fabric=fabric,
            on_epoch=lambda done, loss: message(
                f"Words: epoch {done} of {epochs}, loss {loss:.2f} a photo."
            ),
        )
        write_state(encoder.backbone.state_dict(), file)
    fabric.barrier()
    encoder.backbone.load_state_dict(read_state(file, fabric.device))
    encoder.freeze()


def _sources(
    encoder: Encoder,
    photos: Sequence[Photo],
    judged: Sequence[Photo],
    views: int,
    fabric: Fabric,
    cache: Path | None,
    message: Callable[[str], None],
    features: Callable[[int, int], None],
) -> tuple[PhotoSource, PhotoSource]:
    """Where the photos come from: the feature cache, or the files if the encoder is trained."""
    paths, judged_paths = [p.path for p in photos], [p.path for p in judged]
    encoder.to(fabric.device)
    if not encoder.frozen:
        encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return (
            PreparedPhotos(encoder.preparation, paths),
            PreparedPhotos(encoder.preparation, judged_paths),
        )
    progress = features if fabric.is_global_zero else None
    at_once = photos_at_once(fabric.device)
    whole = build_features(
        [*paths, *judged_paths], encoder, cache,
        batch_size=at_once, on_progress=progress, on_message=message,
    )  # fmt: skip
    others = build_views(
        paths, encoder, cache,
        views=views, batch_size=at_once, on_progress=progress, on_message=message,
    )  # fmt: skip
    fabric.barrier()
    return CachedRegions([whole, *others], paths), CachedRegions([whole], judged_paths)
