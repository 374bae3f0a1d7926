"""Captioners as ONNX: onnxruntime says what torch says, in any batch, and errors say what to do."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import foreign
import tiny
from regard.apps.export import export_model
from regard.apps.push import push_model
from regard.build import build_decoder, build_encoder
from regard.captioner import Captioner, ExportedCaptioner, PhotoCaption, load
from regard.checkpoint import read_model, write_model
from regard.config import make_config
from regard.describe import Decoding
from regard.errors import ConfigError, MissingExtraError, ModelError, RegardError
from regard.exported import Network, find_exported, load_exported
from regard.metrics.cider import DocumentFrequencies
from regard.models.decoder import Parts, Speaker
from regard.models.small import SmallEncoder
from regard.text.subwords import Subwords
from regard.text.vocabulary import Lexicon, Vocabulary

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

CAPTIONS = [["a", "dog", "'s", "ball"], ["two", "dogs", "run"], ["a", "red", "ball"]] * 3
WIDTHS = [
    "decoder.hidden_width=16", "decoder.attention_width=8", "decoder.embedding_width=16",
    "decoder.heads=2", "decoder.layers=2", "encoder.image_size=32",
    "train.precision=float32",
]  # fmt: skip
CASES: dict[str, list[str]] = {
    "lstm, words": ["decoder.kind=lstm"],
    "lstm, pieces": [
        "decoder.kind=lstm", "decoder.gate=true", "decoder.start_state=zeros",
        "text.vocabulary=bpe:280", "encoder.resize=crop", "encoder.grid=3",
    ],
    "transformer, words": [
        "decoder.kind=transformer", "decoder.embedding_width=12", "encoder.resize=crop",
    ],
    "transformer, pieces": [
        "decoder.kind=transformer", "decoder.positions=learned", "decoder.tied=false",
        "decoder.layers=1", "text.vocabulary=bpe:280",
    ],
}  # fmt: skip

FIRST = next(iter(CASES))


def save_model(folder: Path, settings: list[str], encoder: str = "small") -> Path:
    """A model whose captions differ from photo to photo, with a card that someone added to."""
    config = make_config(
        preset="scenes", overrides={"encoder.id": encoder}, settings=[*WIDTHS, *settings]
    )
    words: Lexicon = Vocabulary.from_captions(CAPTIONS)
    if config.text.vocabulary.startswith("bpe"):
        words = Subwords.from_captions(CAPTIONS, size=280)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        seer = build_encoder(config.encoder)
        decoder = build_decoder(
            config.decoder, vocabulary_size=len(words), feature_width=seer.width
        )
        for parameter in decoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    write_model(
        folder, config=config, vocabulary=words, encoder=seer, decoder=decoder,
        scores={"CIDEr": 0.5}, data="tiny",
        frequencies=DocumentFrequencies.of([[caption] for caption in CAPTIONS]),
    )  # fmt: skip
    card = folder / "README.md"
    card.write_text(card.read_text() + "\nOnly for the tests of others.\n")
    return folder


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """The model folder of a case and what was exported of it; of the first by the command line."""

    @functools.cache
    def made(case: str) -> tuple[Path, Path]:
        place = tmp_path_factory.mktemp("export")
        model = save_model(place / "model", CASES[case])
        if case == FIRST:
            done = tiny.regard("export", "model", "out", cwd=place)
            assert "captioner is in out. Furthest from torch: regions" in done.stdout
            assert not done.stderr
        else:
            differences = export_model(model, place / "out")
            assert differences.keys() == {"regions", "logits", "attention"}
            assert max(differences.values()) < 1e-3
        return model, place / "out"

    return made


@pytest.fixture(scope="module", params=CASES)
def folders(request: pytest.FixtureRequest, export) -> tuple[Path, Path]:
    found: tuple[Path, Path] = export(request.param)
    return found


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    place = tmp_path_factory.mktemp("photos")
    colours = np.random.default_rng(0).integers(0, 256, (5, 3, 4, 3), dtype=np.uint8)
    for i, pixels in enumerate(colours):
        Image.fromarray(pixels).resize((56, 42)).save(place / f"{i}.png")
    return sorted(place.iterdir())


def torchs(folder: Path) -> Captioner:
    captioner = load(folder, device="cpu")
    assert isinstance(captioner, Captioner)
    captioner.encode = captioner.model.encoder.fast("float32")
    return captioner


def test_the_folder_is_complete(folders):
    model, out = folders
    words = next(n for n in ("vocabulary.json", "tokenizer.json") if (model / n).is_file())
    assert sorted(file.name for file in out.iterdir()) == sorted([
        "README.md", "config.json", "decoder_start.onnx", "decoder_step.onnx", "encoder.onnx",
        "frequencies.json", words,
    ])  # fmt: skip
    assert sorted(p.name for p in out.parent.iterdir() if p.name != "cache") == ["model", "out"]
    for name in (words, "frequencies.json"):
        assert (out / name).read_bytes() == (model / name).read_bytes()
    assert find_exported(out) == out
    assert find_exported(model) is None
    before, card = ((f / "README.md").read_text() for f in folders)
    assert card.startswith(before[: before.index("# An image")])
    assert "research and education only" in card
    assert card.endswith("Only for the tests of others.\n")
    described = json.loads((out / "config.json").read_text())
    assert described["model"] == read_model(model).weights_hash
    for shapes in described["state"].values():
        assert all(f"| `{n}` | {' x '.join(map(str, s))} |" in card for n, s in shapes.items())


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("decoding", [
    Decoding(beam=1, max_length=9), Decoding(beam=3, max_length=9),
    Decoding(sampling=True, count=3, seed=1, max_length=9),
    Decoding(beam=3, max_length=9, consensus=20),
], ids=["greedy", "beam", "draws", "consensus"])  # fmt: skip
def test_captions_are_those_of_torch(folders, photos, decoding, batch_size):
    model, out = folders
    exported = load(out)
    assert isinstance(exported, ExportedCaptioner)
    expected = list(torchs(model).captions(photos, decoding, batch_size=batch_size))
    found = list(exported.captions(photos, decoding, batch_size=batch_size))
    assert len({one.text for one in expected if isinstance(one, PhotoCaption)}) > 1
    for theirs, ours in zip(expected, found, strict=True):
        assert isinstance(theirs, PhotoCaption)
        assert isinstance(ours, PhotoCaption)
        assert (ours.size, ours.placement) == (theirs.size, theirs.placement)
        for one, other in zip(
            (ours.best, *ours.others), (theirs.best, *theirs.others), strict=True
        ):
            assert one.words == other.words
            # Regions that differ by rounding may round to another float16, which is 1e-3 away.
            np.testing.assert_allclose(one.maps, other.maps, atol=2e-3)
            np.testing.assert_allclose(
                one.log_probabilities, other.log_probabilities, rtol=2e-3, atol=2e-3
            )


@torch.no_grad()
def test_every_step_is_that_of_torch(folders):
    """Whatever the photos, the rows of each, and their order; also rows that are not even."""
    model, out = folders
    torch_, onnx = read_model(model), load_exported(out)
    regions = torch.rand(3, torch_.encoder.grid[0] * torch_.encoder.grid[1], torch_.encoder.width)
    orders = ([0], [2, 2, 1, 1, 0, 0], [0, 1, 1, 2], [0, 0, 0, 1, 1, 1, 2, 2, 2])

    def said(speaker: Speaker, rows: list[int], photos: int) -> list[Tensor]:
        state = speaker.start(regions[:photos]).select(torch.tensor(rows))
        first = speaker.step(torch.arange(len(rows)), state)
        order = torch.arange(len(rows)).flip(0)
        second = speaker.step(order, first.state.select(order))
        return [first.logits, first.attention, second.logits, second.attention]

    for rows in orders:
        photos = max(rows) + 1
        pairs = zip(said(onnx.decoder, rows, photos), said(torch_.decoder, rows, photos),
                    strict=True)  # fmt: skip
        for found, expected in pairs:
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_state_comes_apart_and_together_again(folders):
    decoder = read_model(folders[0]).decoder
    regions = torch.rand(2, 9, 128)  # as wide as the small encoder's
    photo = torch.tensor([0, 0, 1, 1])
    state = decoder.step(torch.arange(4), decoder.start(regions).select(photo)).state
    parts = decoder.apart(state)
    assert isinstance(parts, Parts)
    assert {len(x) for x in parts.rows.values()} == {4}
    assert {len(x) for x in parts.photos.values()} == {2}
    again = decoder.step(torch.arange(4), decoder.together(parts, state.rows))
    assert torch.equal(again.logits, decoder.step(torch.arange(4), state).logits)


def test_the_program_of_the_card_needs_no_regard(folders, photos, tmp_path):
    model, out = folders
    card = (out / "README.md").read_text(encoding="utf-8")
    program = card[card.index("```python\n") + 10 : card.index("\n```\n")]
    assert "regard" not in program
    assert "torch" not in program
    (tmp_path / "caption.py").write_text(program, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, tmp_path / "caption.py", out, photos[1]],
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    expected = torchs(model).caption(photos[1], Decoding(beam=1)).words
    assert done.stdout.decode("utf-8").removesuffix("\n") == " ".join(expected)


@pytest.mark.parametrize("family", ["clip_vision_model"])
def test_encoders_of_transformers_are_exported(family, tmp_path, photos):
    pytest.importorskip("transformers", reason="transformers is not installed")
    encoder = foreign.save_backbone(tmp_path / family, family)
    model = save_model(tmp_path / "model", CASES[FIRST], str(encoder))
    export_model(model, tmp_path / "out")
    shutil.rmtree(encoder)  # its weights are in the folder
    found = load(tmp_path / "out").caption(photos[0])
    assert found.maps.shape[1:] == read_grid(tmp_path / "out")


def read_grid(folder: Path) -> tuple[int, ...]:
    return tuple(json.loads((folder / "config.json").read_text())["encoder"]["grid"])


def test_it_goes_to_the_hub_and_comes_from_there(export, photos, monkeypatch):
    _, out = export(FIRST)
    pushed: list[str] = []

    def upload(folder: Path, files: list[str], repository: str, **_: object) -> str:
        assert folder == out
        pushed.extend(files)
        return "c"

    def fetch(repository: str, files: list[str], *, optional: tuple[str, ...] = (), **more) -> Path:
        assert (repository, more["revision"]) == ("someone/captioner", "v2")
        assert set(files) - set(optional) <= set(pushed)
        return out

    monkeypatch.setattr("regard.apps.push.upload", upload)
    push_model(out, "someone/captioner", say=print)
    assert sorted(pushed) == sorted(file.name for file in out.iterdir())
    for module in ("exported", "finished"):
        monkeypatch.setattr(f"regard.{module}.fetch", fetch)
    found = load("someone/captioner", revision="v2")
    assert isinstance(found, ExportedCaptioner)
    assert found.caption(photos[0]).text == load(out).caption(photos[0]).text


# --- what goes wrong --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(export) -> Path:
    return export(FIRST)[0]


@pytest.fixture(scope="module")
def whole(export) -> Path:
    return export(FIRST)[1]


@pytest.fixture
def copy(whole: Path, tmp_path: Path) -> Path:
    shutil.copytree(whole, tmp_path / "copy")
    return tmp_path / "copy"


def test_a_folder_that_holds_something_is_left_alone(model, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(RegardError, match=r"out holds something already\. Give a folder that is"):
        export_model(model, tmp_path / "out")
    assert [file.name for file in (tmp_path / "out").iterdir()] == ["mine"]


def test_what_cannot_be_exported_is_said_in_a_line(whole, tmp_path):
    with pytest.raises(ModelError, match=r"There is no model at \./nothing"):
        export_model("./nothing", tmp_path / "out")
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "config.json").write_text('{"model_type": "blip"}')
    with pytest.raises(ModelError, match="blip is a captioner that others finished; those of"):
        export_model(tmp_path / "blip", tmp_path / "out")
    with pytest.raises(ModelError, match="is exported already"):
        export_model(whole, tmp_path / "out")
    with pytest.raises(ModelError, match="exported to ONNX, which captions photos and no more"):
        read_model(whole)
    done = tiny.inside("export", "nothing", "out", cwd=tmp_path, code=2)
    assert done.stderr.startswith("regard: There is no model at nothing.")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_missing_extra_is_named(model, whole, tmp_path, monkeypatch):
    for package in ("onnxruntime", "onnxscript"):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(MissingExtraError, match=r'pip install "regard\[onnx\]"'):
            export_model(model, tmp_path / "out")
    with pytest.raises(MissingExtraError, match=r'ONNX needs .*"regard\[onnx\]"'):
        load(whole)


def test_an_encoder_that_cannot_be_traced_is_named(model, tmp_path, monkeypatch):
    forward = SmallEncoder.forward

    def depends_on_the_photo(self: SmallEncoder, images: Tensor) -> Tensor:
        return forward(self, images if images.sum() > 0 else -images)

    monkeypatch.setattr(SmallEncoder, "forward", depends_on_the_photo)
    with pytest.raises(
        ModelError, match=r"The encoder small \(small\) cannot be exported by torch"
    ):
        export_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_networks_that_say_something_else_are_not_left_behind(model, whole, tmp_path, monkeypatch):
    run = Network.__call__
    monkeypatch.setattr(
        "regard.apps.export._write",
        lambda folder, model: shutil.copytree(whole, folder, dirs_exist_ok=True),
    )
    monkeypatch.setattr(Network, "__call__", lambda self, inputs: {
        name: x * (1.1 if name == "logits" else 1) for name, x in run(self, inputs).items()
    })  # fmt: skip
    with pytest.raises(ModelError, match=r"say something else than the model: logits differ by 1"):
        export_model(model, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_damage_is_named(copy):
    step = copy / "decoder_step.onnx"
    step.write_bytes(step.read_bytes()[:-1])
    with pytest.raises(ModelError, match=r"decoder_step\.onnx is not the file that .*Copy the"):
        load(copy)
    step.unlink()
    with pytest.raises(ModelError, match=r"copy lacks decoder_step\.onnx"):
        load(copy)


def test_what_it_does_not_know_is_refused(copy):
    with pytest.raises(ConfigError, match="--device cuda was asked for, but an exported"):
        load(copy, device="cuda")
    described = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**described, "exported": 99}))
    with pytest.raises(ModelError, match=r"has format 99 .* reads format 1"):
        load(copy)
    del described["state"]
    (copy / "config.json").write_text(json.dumps(described))
    with pytest.raises(ModelError, match="lacks state"):
        load(copy)
