"""Several models that choose each word together, and one that sees several views of a photo."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import folders
import regard
import tiny
from regard.build import build_decoder, build_encoder
from regard.captioner import Captioner, EnsembleCaptioner
from regard.checkpoint import Model
from regard.config import make_config
from regard.describe import Decoding
from regard.ensemble import Ensemble
from regard.errors import ConfigError, ModelError
from regard.images import VIEWS, open_photo
from regard.text.vocabulary import Vocabulary

WORDS = Vocabulary(["a", "dog", "runs", "on", "grass"])


def model(kind: str, *, seed: int, image_size: int = 112, like: Model | None = None) -> Model:
    """Random weights; with the encoder of another model if there is one."""
    settings = [f"decoder.kind={kind}", "decoder.hidden_width=8", "decoder.attention_width=8"]
    settings += ["decoder.embedding_width=8", "decoder.heads=2", "train.precision=float32"]
    settings += [f"encoder.image_size={image_size}"]
    config = make_config(preset="scenes", settings=settings)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        encoder = build_encoder(config.encoder).eval() if like is None else like.encoder
        decoder = build_decoder(
            config.decoder, vocabulary_size=len(WORDS), feature_width=encoder.width
        ).eval()
        for parameter in decoder.parameters():
            parameter.data.normal_(std=0.5)
    return Model(config, WORDS, encoder, decoder, str(seed), {})


@pytest.fixture(scope="module")
def members() -> list[Model]:
    """Two with one encoder, one with another that sees another grid."""
    first = model("lstm", seed=0)
    return [first, model("transformer", seed=1, like=first), model("lstm", seed=2, image_size=96)]


@pytest.fixture(scope="module")
def photos() -> list[bytes]:
    return [folders.photo(i, (16, 12)) for i in range(5)]


@pytest.mark.parametrize(
    "decoding",
    [Decoding(beam=3, max_length=5), Decoding(sampling=True, count=3, seed=1, max_length=5)],
)
@pytest.mark.parametrize("which", [0, 1])
def test_twice_the_same_is_the_one(members, photos, decoding, which):
    one = members[which]
    alone = list(Captioner(one, device="cpu").captions(photos, decoding))
    twice = EnsembleCaptioner(Ensemble((one, one)), device="cpu")
    for a, b in zip(alone, twice.captions(photos, decoding), strict=True):
        assert [c.text for c in (a.best, *a.others)] == [c.text for c in (b.best, *b.others)]
        for x, y in zip((a.best, *a.others), (b.best, *b.others), strict=True):
            assert x.score == pytest.approx(y.score, abs=1e-4)
            np.testing.assert_allclose(x.maps, y.maps, atol=1e-5)


def test_a_words_probability_is_the_mean_of_theirs(members):
    """Along a caption, of which one state's rows are reordered on the way."""
    ensemble = Ensemble(tuple(members))
    assert len(ensemble.encoders) == 2
    grids = [encoder.grid for encoder in ensemble.encoders]
    assert grids[0] != grids[1]
    generator = torch.Generator().manual_seed(0)
    each = [torch.randn(2, h * w, encoder.width, generator=generator)
            for encoder in ensemble.encoders for h, w in [encoder.grid]]  # fmt: skip
    speaker = ensemble.speaker()
    speakers = [(m.speaker(), each[i]) for m, i in zip(members, (0, 0, 1), strict=True)]
    order = torch.tensor([1, 0, 1])
    with torch.inference_mode():
        state = speaker.start(ensemble.regions(each))
        states = [s.start(regions) for s, regions in speakers]
        for t, words in enumerate(([1, 1], [4, 6, 5], [5, 4, 7])):
            tokens = torch.tensor(words)
            said = speaker.step(tokens, state)
            steps = [s.step(tokens, one) for (s, _), one in zip(speakers, states, strict=True)]
            mean = torch.stack([step.logits.softmax(-1) for step in steps]).mean(0)
            torch.testing.assert_close(said.logits.exp(), mean)
            looked = torch.stack([steps[0].attention, steps[1].attention]).mean(0)
            torch.testing.assert_close(said.attention, looked)
            state, states = said.state, [step.state for step in steps]
            if t == 0:
                assert state.device == order.device
                state, states = state.select(order), [one.select(order) for one in states]


def test_a_photo_alone_is_as_beside_others(members, photos):
    captioner = EnsembleCaptioner(Ensemble(tuple(members)), device="cpu")
    decoding = Decoding(beam=3, max_length=6)
    for photo, found in zip(
        photos, captioner.captions(photos, decoding, batch_size=3), strict=True
    ):
        alone = captioner.caption(photo, decoding)
        assert found.text == alone.text
        assert found.maps.shape[1:] == captioner.grid == members[0].encoder.grid
        np.testing.assert_allclose(found.maps, alone.maps, atol=1e-4)
    texts = [
        [c.text for c in EnsembleCaptioner(Ensemble(some), device="cpu").captions(photos, decoding)]
        for some in (tuple(members), tuple(members[:2]), (members[2],))
    ]
    assert texts[0] != texts[1]
    assert texts[0] != texts[2]


def test_different_words_are_refused(members):
    other = replace(members[1], vocabulary=Vocabulary([*WORDS.words, "cat"]), folder=Path("b"))
    with pytest.raises(ModelError, match=r"A model and b cannot caption together.*5 and 6 words"):
        Ensemble((members[0], other))


def test_only_regards_own_caption_together(tmp_path):
    blip = tmp_path / "blip"
    blip.mkdir()
    (blip / "config.json").write_text(json.dumps({"model_type": "blip"}))
    with pytest.raises(ModelError, match="cannot caption together.*a finished captioner"):
        regard.load([blip, blip])
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "config.json").write_text(json.dumps({"exported": 1}))
    with pytest.raises(ModelError, match="cannot caption together.*an exported captioner"):
        regard.load([exported, tmp_path / "run"])
    with pytest.raises(ModelError, match=r"There is no model\."):
        regard.load([])


def test_a_words_probability_is_the_mean_over_views(members):
    ensemble = Ensemble(tuple(members), views=3)
    photo = open_photo(folders.photo(3, (40, 30)))
    with torch.inference_mode():
        each = [
            encoder(torch.from_numpy(prepare(photo))[None])
            for encoder, prepare in zip(
                [e for e in ensemble.encoders for _ in range(3)], ensemble.preparations, strict=True
            )
        ]
        speaker = ensemble.speaker()
        start, words = torch.tensor([1]), torch.tensor([5])
        said = speaker.step(words, speaker.step(start, speaker.start(ensemble.regions(each))).state)
        steps = []
        for member in members:
            for view in VIEWS[:3]:
                seen = torch.from_numpy(member.encoder.preparation(view(photo)))[None]
                one = member.speaker()
                state = one.step(start, one.start(member.encoder(seen))).state
                steps.append(one.step(words, state))
        mean = torch.stack([step.logits.softmax(-1) for step in steps]).mean(0)
        torch.testing.assert_close(said.logits.exp(), mean)
        looked = (steps[0].attention + steps[3].attention) / 2  # the whole photo, the same grid
        torch.testing.assert_close(said.attention, looked)


def test_a_photo_that_is_its_mirror_image_is_as_from_one_view(members):
    half = np.random.default_rng(0).integers(0, 256, (112, 56, 3), dtype=np.uint8)
    photo = Image.fromarray(np.concatenate([half, half[:, ::-1]], axis=1))
    decoding = Decoding(beam=3, max_length=6)
    for member in members[:2]:
        alone = Captioner(member, device="cpu").caption(photo, decoding)
        both = EnsembleCaptioner(Ensemble((member,), views=2), device="cpu").caption(
            photo, decoding
        )
        assert both.text == alone.text
        assert both.best.score == pytest.approx(alone.best.score, abs=1e-4)
        np.testing.assert_allclose(both.maps, alone.maps, atol=1e-5)


@pytest.mark.parametrize("views", [0, 13])
def test_there_are_so_many_views(members, views):
    with pytest.raises(ConfigError, match=f"views is {views}. Expected from 1.*to 12"):
        Ensemble((members[0],), views)


def test_the_commands_see_the_same_views(tmp_path):
    tiny.draw_tiny(tmp_path / "tiny")
    tiny.inside(
        "train", "tiny", "--preset", "scenes", "--out", "run", *tiny.QUICK, "--set",
        "train.epochs=2", cwd=tmp_path,
    )  # fmt: skip
    asked = ["--model", "run", "--max-length", "6", "--device", "cpu"]
    tiny.inside(
        "evaluate", "tiny", *asked, "--views", "4", "--no-meteor", "--json", "scores.json",
        cwd=tmp_path,
    )  # fmt: skip
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["settings"]["views"] == 4
    photos = [f"tiny/photos/{i}.png" for i in range(12, 18)]
    say = ["caption", *photos, *asked, "--out", "said.jsonl"]
    for options, captioned in (
        ([], "6 captioned"),
        (["--model", "run"], "6 captioned"),  # the first again, beside itself
        (["--views", "4"], "6 captioned"),
        (["--views", "4"], "0 captioned, 6 done before"),
    ):
        assert captioned in tiny.inside(*say, *options, cwd=tmp_path).stderr
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text().splitlines()]
    assert {Path(r["path"]).name: r["caption"] for r in said} == {
        Path(p["id"]).name: p["caption"] for p in scores["photos"]
    }
    done = tiny.inside(*say, "--views", "13", cwd=tmp_path, code=2)
    assert "The number of views is 13. Expected from 1" in done.stderr
    blip = tmp_path / "blip"
    blip.mkdir()
    (blip / "config.json").write_text(json.dumps({"model_type": "blip"}))
    done = tiny.inside("evaluate", "tiny", "--model", "blip", "--views", "2", cwd=tmp_path, code=2)
    assert "blip cannot caption from 2 views: it is a finished captioner." in done.stderr
