"""CLIP: vectors are transformers' own, whatever else is in the batch; scores are the paper's.

The networks are tiny and random, and saved as real ones are.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from regard.errors import DataError, ModelError, PhotoError
from regard.metrics.clipscore import PROMPT, WEIGHT, clip_scores
from regard.models.clip import load_clip

transformers = pytest.importorskip("transformers", reason="transformers is not installed")

CAPTIONS = [
    "a black dog runs through the grass .",
    "Two men in red shirts are playing football",
    "",
    "a girl climbs the stairs of a wooden playhouse while her brother waits in the garden " * 3,
]
LENGTH = 24


def words():
    """Pieces of words of small letters, as CLIP has them: a piece that ends a word has ``</w>``."""
    tokenizer = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator([PROMPT, *CAPTIONS], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.CLIPTokenizer(vocab=model["vocab"], merges=merges)


def sizes(tokenizer) -> dict[str, dict[str, object]]:
    common = {
        "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }  # fmt: skip
    text = {
        "vocab_size": len(tokenizer), "max_position_embeddings": LENGTH,
        "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    return {
        "text_config": {**common, **text},
        "vision_config": {**common, "image_size": 32, "patch_size": 8},
    }


def save(folder: Path, model, *others) -> Path:
    for thing in (model, *others):
        thing.save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """Save a tiny CLIP with random weights, as transformers saves real ones."""
    torch.manual_seed(0)
    tokenizer = words()
    config = transformers.CLIPConfig(**sizes(tokenizer), projection_dim=12)
    model = transformers.CLIPModel(config)
    for parameter in model.parameters():  # its own beginning makes all vectors nearly the same
        torch.nn.init.normal_(parameter, std=0.3)
    pixels = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    return save(folder, model, tokenizer, pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def clip(folder: Path):
    return load_clip(str(folder), device="cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    random = np.random.default_rng(0)
    paths = []
    for i, shape in enumerate([(40, 50), (64, 33), (32, 32), (90, 200)]):
        path = tmp_path_factory.mktemp("photos") / f"{i}.png"
        patches = Image.fromarray(random.integers(0, 256, (3, 3, 3), np.uint8))
        patches.resize(shape, Image.Resampling.NEAREST).save(path)
        paths.append(path)
    Image.open(paths[0]).convert("L").save(paths[0])
    return paths


# --- vectors ----------------------------------------------------------------------------------


def test_vectors_are_those_of_transformers(folder, clip, photos):
    model = transformers.CLIPModel.from_pretrained(folder).eval()
    processor = transformers.CLIPProcessor(
        transformers.CLIPImageProcessorPil.from_pretrained(folder),
        transformers.CLIPTokenizer.from_pretrained(folder),
    )
    images = [Image.open(path).convert("RGB") for path in photos]
    inputs = processor(
        text=CAPTIONS, images=images, return_tensors="pt", padding=True, truncation=True,
        max_length=LENGTH,
    )  # fmt: skip
    with torch.no_grad():
        both = model(**inputs)
    np.testing.assert_allclose(clip.embed_photos(photos), both.image_embeds, atol=1e-6)
    np.testing.assert_allclose(clip.embed_texts(CAPTIONS), both.text_embeds, atol=1e-6)


def test_vectors_have_length_one_and_differ(clip, photos):
    for vectors in (clip.embed_photos(photos), clip.embed_texts(CAPTIONS)):
        assert (vectors.shape, vectors.dtype) == ((4, 12), np.float32)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
        assert np.abs(vectors[1:] - vectors[:-1]).max(axis=1).min() > 1e-2


@pytest.mark.parametrize("batch_size", [1, 3])
def test_neighbours_in_a_batch_change_nothing(clip, photos, batch_size):
    np.testing.assert_allclose(
        clip.embed_photos(photos, batch_size=batch_size), clip.embed_photos(photos), atol=1e-6
    )
    np.testing.assert_allclose(
        clip.embed_texts(CAPTIONS, batch_size=batch_size), clip.embed_texts(CAPTIONS), atol=1e-6
    )


def test_a_text_is_cut_where_the_model_ends(clip):
    long = CAPTIONS[-1]
    whole, longer, other = clip.embed_texts([long, long + " and more", "and more " + long])
    np.testing.assert_allclose(whole, longer, atol=1e-6)
    assert abs(whole - other).max() > 1e-3


def test_a_photo_that_is_none_is_named(clip, tmp_path):
    (tmp_path / "note.jpg").write_text("no photo")
    with pytest.raises(PhotoError, match=r"note\.jpg is text, not a photo"):
        clip.embed_photos([tmp_path / "note.jpg"])


def test_name_and_hash_lead_back_to_the_weights(folder, clip, tmp_path):
    assert clip.name == str(folder)
    other = copy(folder, tmp_path / "other")
    assert load_clip(str(other)).weights_hash == clip.weights_hash
    tensors = load_file(other / "model.safetensors")
    tensors["logit_scale"] += 1
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    assert load_clip(str(other)).weights_hash != clip.weights_hash


def test_siglip_too(tmp_path, photos):
    tokenizer = words()
    model = transformers.SiglipModel(transformers.SiglipConfig(**sizes(tokenizer))).eval()
    pixels = transformers.SiglipImageProcessorPil(size={"height": 32, "width": 32})
    folder = save(tmp_path / "siglip", model, tokenizer, pixels)
    siglip = load_clip(str(folder), device="cpu")
    ids = tokenizer(CAPTIONS, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"]
    images = [Image.open(path).convert("RGB") for path in photos]
    with torch.no_grad():
        both = model(torch.tensor(ids), **pixels(images=images, return_tensors="pt"))
    np.testing.assert_allclose(siglip.embed_texts(CAPTIONS), both.text_embeds, atol=1e-6)
    np.testing.assert_allclose(siglip.embed_photos(photos), both.image_embeds, atol=1e-6)
    np.testing.assert_allclose(siglip.embed_texts(CAPTIONS[:1]), both.text_embeds[:1], atol=1e-6)


# --- scores -----------------------------------------------------------------------------------


def unit(random: np.random.Generator, *shape: int) -> np.ndarray:
    vectors = random.normal(size=shape)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def test_scores_are_those_of_the_paper():
    random = np.random.default_rng(1)
    photos, captions = unit(random, 30, 3), unit(random, 30, 3)
    references = [unit(random, 1 + i % 4, 3) for i in range(30)]
    seen, both = clip_scores(photos, captions, references, engine="clip")
    for i in range(30):
        clip_score = 2.5 * max(float(captions[i] @ photos[i]), 0)
        nearest = max(max(float(captions[i] @ r), 0) for r in references[i])
        harmonic = 2 / (1 / clip_score + 1 / nearest) if clip_score and nearest else 0
        assert seen.per_photo[i] == pytest.approx(clip_score, abs=1e-12)
        assert both.per_photo[i] == pytest.approx(harmonic, abs=1e-12)
    assert (seen.per_photo == 0).any()
    assert (both.per_photo > 0).any()
    assert seen.corpus == pytest.approx(seen.per_photo.mean())
    assert both.corpus == pytest.approx(both.per_photo.mean())
    assert (seen.name, both.name, seen.engine) == ("CLIPScore", "RefCLIPScore", "clip")


def test_laws_of_references():
    random = np.random.default_rng(2)
    photos, captions = unit(random, 20, 4), unit(random, 20, 4)
    few = [unit(random, 2, 4) for _ in range(20)]
    more = [np.concatenate([group, unit(random, 2, 4)]) for group in few]
    said = [np.concatenate([group, captions[i : i + 1]]) for i, group in enumerate(few)]
    seen, with_few = clip_scores(photos, captions, few, engine="")
    _, with_more = clip_scores(photos, captions, more, engine="")
    _, with_said = clip_scores(photos, captions, said, engine="")
    assert (with_more.per_photo >= with_few.per_photo).all()
    assert (with_said.per_photo >= with_more.per_photo).all()
    np.testing.assert_allclose(
        with_said.per_photo, 2 * seen.per_photo / (seen.per_photo + 1), atol=1e-12
    )
    assert seen.per_photo.max() <= WEIGHT


def test_a_caption_of_the_whole_way(clip, photos):
    """From files and texts to scores, each photo's independent of the others."""

    def scores(chosen: list[int]):
        return clip_scores(
            clip.embed_photos([photos[i] for i in chosen]),
            clip.embed_texts([PROMPT + CAPTIONS[i] for i in chosen]),
            [clip.embed_texts([PROMPT + CAPTIONS[i], PROMPT + CAPTIONS[i - 1]]) for i in chosen],
            engine=clip.name,
        )

    together, alone = scores([0, 1, 2, 3]), [scores([i]) for i in range(4)]
    for kind in range(2):
        values = [score[kind].corpus for score in alone]
        np.testing.assert_allclose(together[kind].per_photo, values, atol=1e-5)


def test_what_does_not_fit_together_is_refused():
    two, three = np.eye(2), np.eye(3)[:, :2]
    with pytest.raises(DataError, match="2 photos, 3 captions and 2 groups of references, 0 of"):
        clip_scores(two, three, [two, two], engine="")
    with pytest.raises(DataError, match="2 groups of references, 1 of them empty"):
        clip_scores(two, two, [two, two[:0]], engine="")
    with pytest.raises(DataError, match="Give at least one photo"):
        clip_scores(two[:0], two[:0], [], engine="")


# --- what cannot be loaded --------------------------------------------------------------------


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def refusal(source: object, **settings: bool) -> str:
    with pytest.raises(ModelError) as error:
        load_clip(str(source), device="cpu", **settings)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_what_is_neither_a_folder_nor_a_hub_id_is_refused():
    assert "'no/such/clip': there is no such folder, and it is not a hub" in refusal("no/such/clip")


def test_all_files_that_lack_are_named(folder, tmp_path):
    assert (
        "has no config.json, no tokenizer.json, no model.safetensors, no preprocessor_config.json "
        "or processor_config.json. A CLIP's folder" in refusal(tmp_path)
    )
    other = copy(folder, tmp_path / "other")
    (other / "model.safetensors").rename(other / "pytorch_model.bin")
    assert "has no model.safetensors. A CLIP's folder has all of them; pickled" in refusal(other)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('{"model_type": "clip_vision_model"}', "is a model of the kind 'clip_vision_model'; "),
        ("{}", "config.json describes no model: KeyError('model_type')"),
        ("[", "config.json describes no model: JSONDecodeError("),
    ],
)
def test_a_model_of_another_kind_is_refused(folder, tmp_path, config, message):
    other = copy(folder, tmp_path / "other")
    (other / "config.json").write_text(config)
    assert message in refusal(other)


def test_weights_that_are_not_whole_are_refused(folder, tmp_path):
    other = copy(folder, tmp_path / "other")
    weights = other / "model.safetensors"
    tensors = load_file(weights)
    short = {k: v for k, v in tensors.items() if not k.startswith("text_model.final")}
    save_file(short, weights, metadata={"format": "pt"})
    assert "lacks 2 tensors, the first is text_model.final_layer_norm.bias" in refusal(other)
    save_file({**tensors, "text_projection.weight": torch.zeros(3, 3)}, weights)
    assert re.search(r"cannot be loaded: .*text_projection|mismatch", refusal(other))
    weights.write_bytes(b"cut off")
    assert "cannot be loaded: " in refusal(other)


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    other = copy(folder, tmp_path / "other")
    ran = tmp_path / "ran"
    (other / "evil.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    for name, entry in (
        ("config.json", {"AutoModel": "evil.Evil", "AutoConfig": "evil.Evil"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}),
        ("preprocessor_config.json", {"AutoImageProcessor": "evil.Evil"}),
    ):
        settings = json.loads((other / name).read_text())
        (other / name).write_text(json.dumps({**settings, "auto_map": entry}))
    load_clip(str(other), device="cpu")
    assert not ran.exists()


def test_a_hub_out_of_reach_is_reported_at_once(monkeypatch):
    # An address that refuses connections, so that the test does the same with a network.
    url = "http://127.0.0.1:9/config.json"
    monkeypatch.setattr(huggingface_hub, "hf_hub_url", lambda *_, **__: url)
    started = time.monotonic()
    message = refusal("nobody/clip-nowhere")
    assert time.monotonic() - started < 10
    assert "CLIP model 'nobody/clip-nowhere' is not on this machine and could not be" in message
    assert "Copy that folder here and pass its path: --clip clip-nowhere" in message
    assert "and offline use was asked for" in refusal("nobody/clip-nowhere", offline=True)
