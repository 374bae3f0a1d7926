"""Photos to captions: in their order, whatever the batch, the lanes, and the photos that fail."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import folders
from regard.build import build_decoder, build_encoder
from regard.captioner import Captioner, PhotoCaption
from regard.checkpoint import Model
from regard.config import make_config
from regard.describe import Decoding
from regard.errors import PhotoError
from regard.text.vocabulary import Vocabulary

WORDS = Vocabulary(["a", "dog", "runs", "on", "grass"])


@pytest.fixture(scope="module")
def captioner() -> Captioner:
    config = make_config(
        preset="scenes",
        settings=[
            "decoder.kind=lstm",
            "decoder.hidden_width=8",
            "decoder.attention_width=8",
            "decoder.embedding_width=6",
        ],
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = build_encoder(config.encoder).eval()
        decoder = build_decoder(
            config.decoder, vocabulary_size=len(WORDS), feature_width=encoder.width
        ).eval()
    captioner = Captioner(Model(config, WORDS, encoder, decoder, "none", {}), device="cpu")
    captioner.encode = encoder.fast("float32")
    return captioner


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [folders.photo(i, (16, 12)) for i in range(7)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 7, 16])
def test_alone_equals_in_any_batch(
    captioner: Captioner, photos: list[bytes], batch_size: int
) -> None:
    decoding = Decoding(beam=2, max_length=5)
    found = list(captioner.captions(iter(photos), decoding, batch_size=batch_size))
    assert len(found) == len(photos)
    for photo, one in zip(photos, found, strict=True):
        alone = captioner.caption(photo, decoding)
        assert isinstance(one, PhotoCaption)
        assert one.text == alone.text
        np.testing.assert_allclose(one.maps, alone.maps, atol=1e-4)
        assert one.size == (16, 12)


def test_a_photo_that_cannot_be_opened_gives_its_error_in_its_place(
    captioner: Captioner, photos: list[bytes], tmp_path: Path
) -> None:
    given = [photos[0], tmp_path / "none.png", photos[1], b"no photo", photos[2]]
    found = list(captioner.captions(given, Decoding(beam=1, max_length=3), batch_size=2))
    assert [isinstance(one, PhotoError) for one in found] == [False, True, False, True, False]
    assert "none.png does not exist" in str(found[1])
    assert list(captioner.captions([])) == []


def test_photos_without_end_are_read_a_few_batches_ahead(
    captioner: Captioner, photos: list[bytes]
) -> None:
    given = 0

    def endless() -> Iterator[bytes]:
        nonlocal given
        while True:
            given += 1
            yield photos[given % len(photos)]

    found = captioner.captions(endless(), Decoding(beam=1, max_length=3), batch_size=2)
    for _ in range(5):
        assert isinstance(next(found), PhotoCaption)
    found.close()
    assert given <= 5 + 2 * (torch.get_num_threads() + 2)
