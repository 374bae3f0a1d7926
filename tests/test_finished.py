"""Finished captioners: text, log-probabilities and gaze are those of transformers' own classes.

The captioners are tiny and random, with tiny vocabularies, saved by transformers as real ones are.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import foreign
import regard
import tiny
from regard.describe import Decoding
from regard.errors import ConfigError, ModelError, PhotoError
from regard.finished import Finished, find_finished, load_finished
from regard.models.speakers import KINDS

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

ALL = ["blip", "git", "blip-2", "florence2", "vision-encoder-decoder", "wide-encoder"]
WITH_GAZE = ["blip", "florence2", "vision-encoder-decoder", "wide-encoder"]
LENGTH = 10


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("captioners")
    return {kind: foreign.save_captioner(place / kind, kind) for kind in ALL}


@pytest.fixture(scope="module")
def loaded(folders: dict[str, Path]) -> dict[str, Finished]:
    return {kind: load_finished(folder, device="cpu") for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [
        Image.fromarray(random.integers(0, 256, (3, 4, 3), np.uint8)).resize(size)
        for size in [(40, 50), (64, 33), (32, 32)]
    ]


class Reference:
    """transformers alone: its class, its tokenizer and its processor."""

    def __init__(self, folder: Path, kind: str) -> None:
        named = KINDS["vision-encoder-decoder" if kind == "wide-encoder" else kind].model
        model = getattr(transformers, named)
        self.model = model.from_pretrained(folder, attn_implementation="eager").eval()
        self.words = transformers.AutoTokenizer.from_pretrained(folder)
        self.pixels = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
        self.marks = int(kind == "florence2")  # a <s> before the first word
        self.first = 1 + self.marks  # of the ids, that of the first word
        if kind == "blip-2":
            self.first += self.model.config.num_query_tokens

    def inputs(self, photo: Image.Image) -> dict[str, torch.Tensor]:
        """What the network is told of a photo before it speaks."""
        if isinstance(self.model, transformers.Florence2ForConditionalGeneration):
            self.pixels.image_seq_length = 1 + 16
            processor = transformers.Florence2Processor(self.pixels, self.words)
            return dict(processor(images=photo, text="<CAPTION>", return_tensors="pt"))
        return {"pixel_values": self.pixels(images=photo, return_tensors="pt")["pixel_values"]}

    def generate(self, photo: Image.Image, **settings: object) -> torch.Tensor:
        if self.marks:
            settings["forced_eos_token_id"] = None
        return self.model.generate(
            **self.inputs(photo),
            max_new_tokens=LENGTH + self.marks,
            min_new_tokens=1 + self.marks,
            do_sample=False,
            **settings,
        )

    def read(self, photo: Image.Image, sequence: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (T, V) after each id of a caption, and cross-attention if there is."""
        inputs = self.inputs(photo)
        pixels, ids, model = inputs["pixel_values"], sequence[None], self.model
        with torch.no_grad():
            if isinstance(model, transformers.BlipForConditionalGeneration):
                out = model(pixel_values=pixels, input_ids=ids)
                seen = model.vision_model(pixel_values=pixels).last_hidden_state
                cross = model.text_decoder(
                    input_ids=ids, encoder_hidden_states=seen, output_attentions=True
                ).cross_attentions
                logits = out.logits
            elif model.config.is_encoder_decoder:
                out = model(**inputs, decoder_input_ids=ids, output_attentions=True)
                logits, cross = out.logits, out.cross_attentions
            else:
                logits, cross = model(pixel_values=pixels, input_ids=ids).logits, None
                logits = logits[:, -len(sequence) :]
        return logits[0].log_softmax(-1), cross and cross[-1][0]


@pytest.fixture(scope="module")
def references(folders: dict[str, Path]) -> dict[str, Reference]:
    return {kind: Reference(folder, kind) for kind, folder in folders.items()}


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kind", ALL)
def test_text_is_that_of_transformers(kind, beam, loaded, references, photos):
    decoding = Decoding(beam=beam, max_length=LENGTH, length_penalty=0.7)
    said = [group[0].text for group in loaded[kind].describe(photos, decoding)]
    settings = {"num_beams": beam, **({"length_penalty": 0.7} if beam > 1 else {})}
    theirs = references[kind]
    expected = [
        theirs.words.decode(theirs.generate(p, **settings)[0], skip_special_tokens=True).strip()
        for p in photos
    ]
    assert said == expected
    assert all(said)


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("kind", ALL)
def test_log_probabilities_are_those_of_a_teacher_forced_pass(
    kind, beam, loaded, references, photos
):
    theirs = references[kind]
    settings = {"num_beams": beam, **({"length_penalty": 0.7} if beam > 1 else {})}
    decoding = Decoding(beam=beam, max_length=LENGTH)
    for photo, group in zip(photos, loaded[kind].describe(photos, decoding), strict=True):
        sequence = theirs.generate(photo, **settings)[0]
        read, _ = theirs.read(photo, sequence)
        ids = sequence[theirs.first :]
        each = read[theirs.first - 1 : -1].gather(-1, ids[:, None])[:, 0].tolist()
        pieces = each if group[0].cut else each[:-1]
        assert sum(group[0].log_probabilities) == pytest.approx(sum(pieces), abs=1e-4)
        assert len(group[0].words) == len(group[0].log_probabilities) == len(group[0].maps)
        assert " ".join(group[0].words) == " ".join(group[0].text.split())


@pytest.mark.parametrize("kind", WITH_GAZE)
def test_gaze_is_the_cross_attention_of_the_last_layer(kind, loaded, references, photos):
    theirs = references[kind]
    [group] = loaded[kind].describe(photos[:1], Decoding(beam=1, max_length=LENGTH))
    sequence = theirs.generate(photos[0], num_beams=1)[0]
    _, attention = theirs.read(photos[0], sequence[:-1])
    maps = attention.mean(0)[theirs.marks :, 1:17]  # (S, L): neither class token nor prompt is one
    maps = maps / maps.sum(-1, keepdim=True)
    found = group[0]
    assert found.maps.shape == (len(found.words), 4, 4)
    np.testing.assert_allclose(found.maps.sum((1, 2)), 1, atol=1e-5)
    ids = sequence[theirs.first :].tolist()
    beginnings = [
        theirs.words.decode(ids[: n + 1], skip_special_tokens=True).split()
        for n in range(len(ids) - (not found.cut))
    ]
    count = sum(len(words) <= 1 for words in beginnings)  # pieces of the first word
    assert beginnings[count - 1] == [found.words[0]]
    expected = maps[:count].mean(0).view(4, 4)
    np.testing.assert_allclose(found.maps[0], expected, atol=1e-5)


def test_words_of_several_pieces_sum_them(loaded):
    finished = loaded["vision-encoder-decoder"]
    tokenizer = finished._tokenizer
    ids = tokenizer(" two smörgåsbord 🙂 dogs").input_ids
    assert len(ids) > 8
    pieces = [-float(i + 1) for i in range(len(ids) + 1)]
    maps = np.arange(len(pieces), dtype=np.float32)[:, None, None] * np.ones((1, 2, 2), np.float32)
    found = finished._in_words([*ids, tokenizer.eos_token_id], pieces, maps, None, 1.0)
    assert found.words == ("two", "smörgåsbord", "🙂", "dogs")
    assert sum(found.log_probabilities) == pytest.approx(sum(pieces[:-1]))
    assert found.score == pytest.approx(np.mean(pieces))
    assert not found.cut
    starts = [0]
    for word in (" two", " smörgåsbord", " 🙂", " dogs"):
        starts.append(starts[-1] + len(tokenizer(word).input_ids))
    assert starts[-1] == len(ids)
    for i in range(4):
        own = range(starts[i], starts[i + 1])
        assert found.log_probabilities[i] == pytest.approx(sum(pieces[k] for k in own))
        assert found.maps[i, 0, 0] == pytest.approx(np.mean(own))


@pytest.mark.parametrize("kind", ALL)
def test_alone_equals_in_a_batch_and_draws_are_seeded(kind, loaded, photos):
    for decoding in (
        Decoding(beam=3, max_length=LENGTH),
        Decoding(sampling=True, seed=4, count=3, max_length=LENGTH, top_p=0.9),
    ):
        together = [[c.text for c in group] for group in loaded[kind].describe(photos, decoding)]
        alone = [[c.text for c in loaded[kind].describe([p], decoding)[0]] for p in photos]
        assert together == alone
        assert {len(group) for group in together} == {3}
    other = Decoding(sampling=True, seed=5, count=3, max_length=LENGTH, top_p=0.9)
    assert [[c.text for c in g] for g in loaded[kind].describe(photos, other)] != together


@pytest.mark.parametrize("kind", ["blip", "git"])  # those whose pieces are words
def test_search_keeps_to_what_was_asked(kind, loaded, photos):
    model = loaded[kind]
    plain = [group[0] for group in model.describe(photos, Decoding(max_length=LENGTH))]
    words = [word for caption in plain for word in caption.words]
    word = max(set(words), key=words.count)
    decoding = Decoding(max_length=LENGTH, forbid=(word,), min_length=3)
    for group in model.describe(photos, decoding):
        for caption in group:
            assert word not in caption.words
    once = Decoding(max_length=LENGTH, no_repeat=1)
    for group in model.describe(photos, once):
        for caption in group:
            assert len(set(caption.words)) == len(caption.words)
    assert any(len(set(c.words)) < len(c.words) for c in plain)


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("options", [{"prefix": "a photo"}, {"groups": 3}, {"consensus": 5}])
def test_options_that_its_program_lacks_are_refused(kind, options, loaded, photos):
    with pytest.raises(ConfigError, match=f"^{next(iter(options))} is .*no such option"):
        loaded[kind].describe(photos, Decoding(**options))


@pytest.mark.parametrize("kind", ALL)
def test_what_is_said_depends_on_the_photo(kind, loaded, photos):
    said = loaded[kind].describe(photos, Decoding(max_length=LENGTH))
    assert len({group[0].log_probabilities for group in said}) == 3


# --- through the doors ------------------------------------------------------------------------


def test_python_loads_them_as_it_loads_ours(folders, photos, tmp_path):
    captioner = regard.load(folders["blip"], device="cpu")
    photos[0].save(tmp_path / "a.png")
    (tmp_path / "bad.png").write_text("no photo")
    found = captioner.caption(tmp_path / "a.png")
    assert found.text == " ".join(found.words)
    assert found.gaze(0).shape == (50, 40)
    assert len(found.others) == 2
    assert found.placement == (0, 0, 40, 50)
    good, bad = captioner.captions([tmp_path / "a.png", tmp_path / "bad.png"])
    assert good.text == found.text
    assert isinstance(bad, PhotoError)
    silent = regard.load(folders["git"], device="cpu").caption(tmp_path / "a.png")
    assert silent.placement == (0, 5, 40, 45)  # it saw the square in the middle
    with pytest.raises(ModelError, match="There is no gaze of"):
        silent.gaze(0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("journey")
    tiny.draw_tiny(folder / "tiny")
    return folder


def test_the_command_line_captions_and_draws_their_gaze(folders, place):
    done = tiny.inside(
        "caption", "tiny/photos/00.png", "--model", folders["vision-encoder-decoder"],
        "--max-length", LENGTH, "--gaze", "gaze", "--out", "out.jsonl", cwd=place,
    )  # fmt: skip
    record = json.loads((place / "out.jsonl").read_text())
    assert f"tiny/photos/00.png: {record['caption']}" in done.stdout
    assert (place / "gaze" / "00.png.gaze.png").exists()
    silent = tiny.inside(
        "caption", "tiny/photos/00.png", "--model", folders["git"], "--gaze", "none", cwd=place,
        code=2,
    )  # fmt: skip
    assert re.search(r"is a git, whose words do not attend .* no gaze to draw\.", silent.stderr)
    assert not (place / "none").exists()


def test_the_command_line_scores_them(folders, place):
    tiny.inside(
        "evaluate", "tiny", "--model", folders["blip"], "--max-length", LENGTH, "--no-meteor",
        "--json", "scores.json", cwd=place,
    )  # fmt: skip
    scores = json.loads((place / "scores.json").read_text())
    assert {"BLEU-1", "BLEU-4", "ROUGE-L", "CIDEr"} <= set(scores["scores"])
    described = scores["settings"]["captioner"]
    assert (described["kind"], described["revision"]) == ("blip", None)
    assert len(described["weights"]) == 64
    assert len(scores["photos"]) == 6


# --- what cannot be used ----------------------------------------------------------------------


@pytest.fixture
def copy(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["blip"], tmp_path / "blip"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as error:
        load_finished(folder, device="cpu")
    assert "\n" not in str(error.value)
    return str(error.value)


def test_ours_and_nothing_are_not_finished_captioners(tmp_path):
    (tmp_path / "config.json").write_text('{"format": 1, "kind": "lstm"}')
    assert find_finished(tmp_path) is None
    assert find_finished(tmp_path / "none") is None


def test_a_model_that_cannot_caption_is_refused(copy):
    (copy / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"of the kind 'bert', which writes no captions.*blip, "):
        find_finished(copy)


def test_pickles_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    assert "only pytorch_model.bin, a pickle, which is not read" in refusal(copy)


def test_a_missing_tokenizer_is_named(copy):
    (copy / "tokenizer.json").unlink()
    assert "has no tokenizer.json. Copy the file" in refusal(copy)


def test_a_missing_processor_is_named(copy):
    (copy / "preprocessor_config.json").unlink()
    assert "has no preprocessor_config.json or processor_config.json" in refusal(copy)


def test_a_tokenizer_of_another_network_is_refused(copy, folders):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folders["vision-encoder-decoder"] / name, copy / name)
    words = len(transformers.AutoTokenizer.from_pretrained(copy))
    said = refusal(copy)
    assert f"does not belong to its network: it has {words} words" in said
    assert "the network has" in said


def test_photos_of_another_size_are_refused(copy):
    file = copy / "preprocessor_config.json"
    described = json.loads(file.read_text())
    file.write_text(json.dumps({**described, "size": {"height": 48, "width": 48}}))
    assert "makes photos of 48 pixels; the network takes 32" in refusal(copy)


def test_weights_with_a_gap_are_refused(copy):
    tensors = load_file(copy / "model.safetensors")
    gap = next(name for name in tensors if "crossattention" in name)
    del tensors[gap]
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    assert f"lacks 1 tensors, the first is {gap}" in refusal(copy)


def test_the_hub_out_of_reach_says_how_to_go_on(monkeypatch):
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: "http://127.0.0.1:9/x")
    with pytest.raises(ModelError) as error:
        regard.load("somebody/blip-nowhere")
    assert "could not be fetched from the hub" in str(error.value)
    assert "hf download somebody/blip-nowhere" in str(error.value)
    assert "--model blip-nowhere" in str(error.value)
