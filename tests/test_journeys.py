"""What a newcomer types, through the real command line, and what goes wrong on the way."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import regard
import tiny
from regard.describe import Decoding
from regard.errors import ConfigError, PhotoError
from regard.metrics.diagnosis import diagnose


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A data set ``tiny`` and a run ``run`` trained on it."""
    folder = tmp_path_factory.mktemp("journey")
    tiny.draw_tiny(folder / "tiny")
    tiny.inside(
        "train", "tiny", "--preset", "scenes", *tiny.QUICK, "--set", "train.epochs=40",
        "--set", "train.learning_rate=5e-3", "--set", "train.batch_size=3",
        "--set", "decoder.dropout=0", "--out", "run", cwd=folder,
    )  # fmt: skip
    return folder


def records(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_photos_are_captioned_and_their_gaze_is_drawn(place):
    photos = [f"tiny/photos/{i:02}.png" for i in range(4)]
    done = tiny.regard(
        "caption", *photos, "--model", "run", "--gaze", "gaze", "--out", "out.jsonl", cwd=place
    )
    assert done.stdout == ""  # they are in the file
    assert done.stderr == "4 captioned\n"
    printed = tiny.inside("caption", *photos, "--model", "run", cwd=place).stdout.splitlines()
    found = records(place / "out.jsonl")
    assert [r["path"] for r in found] == photos
    for r, line in zip(found, printed, strict=True):
        assert line == f"{r['path']}: {r['caption']}"
        assert " ".join(w["word"] for w in r["words"]) == r["caption"]
        assert all(w["log_probability"] <= 0 for w in r["words"])
        assert not {"<UNK>", "<PAD>", "<START>", "<END>"} & {w["word"] for w in r["words"]}
    pictures = sorted((place / "gaze").iterdir())
    assert [p.name for p in pictures] == [f"{i:02}.png.gaze.png" for i in range(4)]
    for picture in pictures:
        with Image.open(picture) as figure:
            assert min(figure.size) > 200


def test_it_has_learnt_the_colours(place):
    """Not chance: most of its photos' colours are named."""
    photos = [f"tiny/photos/{i:02}.png" for i in range(18)]
    tiny.inside("caption", *photos, "--model", "run", "--out", "all.jsonl", cwd=place)
    right = sum(
        list(tiny.COLOURS)[i % 3] in r["caption"].split()
        for i, r in enumerate(records(place / "all.jsonl"))
    )
    assert right >= 12


def test_one_bad_photo_does_not_stop_the_others(place):
    (place / "bad.jpg").write_text("no photo")
    done = tiny.regard(
        "caption", "tiny/photos/00.png", "bad.jpg", "none.jpg", "tiny/photos/01.png",
        "--model", "run/model", "--out", "mixed.jsonl", cwd=place, code=1,
    )  # fmt: skip
    found = records(place / "mixed.jsonl")
    assert [("caption" in r, "error" in r) for r in found] == [
        (True, False), (False, True), (False, True), (True, False),
    ]  # fmt: skip
    assert "bad.jpg" in found[1]["error"]
    assert "none.jpg" in done.stderr


def test_a_folder_is_captioned_searched_and_shown(place):
    for name in ("00.png", "01.png"):
        (place / "album" / "below").mkdir(parents=True, exist_ok=True)
        (place / "album" / "below" / name).write_bytes((place / "tiny/photos" / name).read_bytes())
    (place / "album" / "bad.jpg").write_text("no photo")
    options = ["--model", "run", "--out", "album.csv", "--txt", "--xmp", "--alt-text"]
    asked = tiny.inside("caption", "album", *options, "--dry-run", cwd=place)
    assert len(asked.stdout.splitlines()) == 3
    assert not (place / "album.csv").exists()
    done = tiny.inside("caption", "album", *options, "--gallery", "page", cwd=place, code=1)
    assert "album/bad.jpg is text, not a photo" in done.stderr
    assert done.stderr.endswith("2 captioned, 1 failed (1 not a photo)\n")
    texts = sorted((place / "album" / "below").glob("*.txt"))
    assert [text.name for text in texts] == ["00.png.txt", "01.png.txt"]
    for text in texts:
        assert text.read_text()[0].isupper()
        assert text.read_text().endswith(".\n")
    assert len(list((place / "album" / "below").glob("*.xmp"))) == 2
    assert len(list((place / "page" / "thumbnails").glob("*/*.jpg"))) == 2
    word = texts[0].read_text().split()[-1].rstrip(".")
    found = tiny.regard("find", word, "album.csv", "--gallery", "found", cwd=place)
    assert f"album/below/00.png: {texts[0].read_text()}" in found.stdout
    assert (place / "found" / "index.html").is_file()
    assert "No caption in album.csv" in tiny.inside(
        "find", "zebra", "album.csv", cwd=place, code=1
    ).stderr  # fmt: skip
    (place / "list").write_text("album/below/00.png\nalbum/below/01.png\n")
    again = tiny.inside(
        "caption", "--from", "list", *options, "--log", "json", cwd=place
    ).stderr.splitlines()  # fmt: skip
    assert json.loads(again[-1])["done_before"] == 2


def test_python_says_what_the_command_line_says(place):
    captioner = regard.load(place / "run")
    photo = place / "tiny" / "photos" / "05.png"
    tiny.inside("caption", photo, "--model", "run", "--out", "python.jsonl", cwd=place)
    found = captioner.caption(photo)
    assert found.text == records(place / "python.jsonl")[0]["caption"]
    assert len(found.words) == len(found.log_probabilities) == len(found.maps)
    np.testing.assert_allclose(found.maps.sum((1, 2)), 1, atol=1e-5)
    assert found.gaze(0).shape == (48, 64)
    assert len(found.others) == 2
    assert found.best.score >= found.others[0].score
    by_bytes = captioner.caption(photo.read_bytes())
    by_image = captioner.caption(Image.open(photo))
    assert found.text == by_bytes.text == by_image.text
    with pytest.raises(PhotoError, match="nothing"):
        captioner.caption(place / "nothing.png")


def test_alone_equals_in_a_batch(place):
    captioner = regard.load(place / "run")
    photos = sorted((place / "tiny" / "photos").iterdir())
    for decoding in (Decoding(beam=3), Decoding(sampling=True, seed=4, count=2, top_p=0.9)):
        together = [c.text for c in captioner.captions(photos, decoding)]
        assert together == [captioner.caption(p, decoding).text for p in photos]


def test_several_captions_come_with_their_scores(place):
    done = tiny.inside(
        "caption", "tiny/photos/03.png", "--model", "run", "--beam", "4", "--groups", "2",
        "--diversity", "2", "--count", "3", "--out", "several.jsonl", cwd=place,
    )  # fmt: skip
    (found,) = records(place / "several.jsonl")
    candidates = found["candidates"]
    assert len(candidates) == len({c["caption"] for c in candidates}) == 3
    assert [c["score"] for c in candidates] == sorted(c["score"] for c in candidates)[::-1]
    assert candidates[0]["caption"] == found["caption"]
    for c in candidates:
        assert f"{c['score']:8.3f}  {c['caption']}" in done.stdout


def test_captions_keep_to_what_was_asked(place):
    photos = [f"tiny/photos/{i:02}.png" for i in range(6)]

    def said(*options: str) -> list[str]:
        tiny.inside(
            "caption", *photos, "--model", "run", *options, "--out", "kept.jsonl", cwd=place
        )
        return [r["caption"] for r in records(place / "kept.jsonl")]

    plain = said()
    first, last = plain[0].split()[0], plain[0].split()[-1]
    for caption in said("--forbid", last, "--min-length", "6", "--no-repeat", "2"):
        words = caption.split()
        assert last not in words
        assert len(words) >= 6 or len(words) < len(set(words)) + 2
        pairs = list(itertools.pairwise(words))
        assert len(set(pairs)) == len(pairs)
    assert all(c.startswith(f"{last} {first}") for c in said("--prefix", f"{last} {first}"))
    assert said("--sample", "--top-k", "1", "--beam", "1") == said("--beam", "1")


def test_models_caption_together(place):
    """Twice the same is the one, in captions and in scores."""
    for name, models in (("alone", ["run"]), ("together", ["run", "run/model"])):
        options = [o for m in models for o in ("--model", m)]
        tiny.inside("caption", "tiny/photos/03.png", *options, "--out", f"{name}.jsonl", cwd=place)
        tiny.inside(
            "evaluate", "tiny", *options, "--no-meteor", "--json", f"{name}.json", cwd=place
        )
    said = [records(place / f"{name}.jsonl")[0] for name in ("alone", "together")]
    for words in zip(*(one["words"] for one in said), strict=True):
        assert words[0]["word"] == words[1]["word"]
        assert words[0]["log_probability"] == pytest.approx(words[1]["log_probability"], abs=0.02)
    one, two = (json.loads((place / f"{name}.json").read_text()) for name in ("alone", "together"))
    assert one["scores"] == two["scores"]
    assert [other["model"] for other in two["settings"]["together_with"]] == [
        one["settings"]["model"]
    ]


def test_samples_are_seeded(place):
    captioner = regard.load(place / "run")
    photo = place / "tiny" / "photos" / "03.png"

    def draw(seed: int) -> list[str]:
        options = Decoding(sampling=True, seed=seed, count=5, temperature=3.0)
        found = captioner.caption(photo, options)
        return [found.text, *(o.text for o in found.others)]

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


def test_scores_agree_with_those_of_the_captions_from_a_file(place):
    tiny.regard(
        "evaluate", "tiny", "--model", "run", "--split", "dev", "--json", "scores.json", cwd=place
    )
    scores = json.loads((place / "scores.json").read_text())
    usual = {"BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE-L", "CIDEr", "CIDEr-plain"}
    assert set(scores["scores"]) - {"METEOR"} == set(scores["human"]) - {"METEOR"} == usual
    most = scores["settings"]["decoding"]["max_length"]
    captions = [p["caption"].split() for p in scores["photos"]]
    alone = diagnose(captions, cut=[len(caption) == most for caption in captions])
    assert scores["diagnosis"]["cut off"] == alone["cut off"]
    assert scores["settings"]["number_of_photos"] == len(scores["photos"]) == 6
    assert scores["settings"]["decoding"]["beam"] == 3
    assert all(len(p["references"]) == 2 for p in scores["photos"])
    for name, fewer in (("lines.jsonl", []), ("coco.json", ["--no-meteor"])):
        rows = [
            {"image": p["id"], "image_id": p["id"], "caption": p["caption"]}
            for p in scores["photos"]
        ]
        text = "".join(json.dumps(r) + "\n" for r in rows) if name[0] == "l" else json.dumps(rows)
        (place / name).write_text(text)
        tiny.inside(
            "evaluate", "tiny", "--captions", name, "--split", "val", "--json", "again.json",
            *fewer, cwd=place,
        )  # fmt: skip
        again = json.loads((place / "again.json").read_text())
        left_out = {"METEOR"} if fewer else set()
        assert again["scores"] == pytest.approx(
            {name: score for name, score in scores["scores"].items() if name not in left_out}
        )


def test_a_score_that_cannot_be_had_leaves_the_others(place):
    arguments = ["evaluate", "tiny", "--model", "run", "--no-meteor", "--json", "rest.json"]
    done = tiny.inside(
        *arguments, "--spice", "--clip", "./none", cwd=place, code=1, PATH=str(place)
    )
    assert "SPICE is left out: " in done.stderr
    assert "CLIPScore is left out: CLIP model './none': there is no such folder" in done.stderr
    rest = json.loads((place / "rest.json").read_text())
    assert set(rest["scores"]) == {
        "BLEU-1",
        "BLEU-2",
        "BLEU-3",
        "BLEU-4",
        "ROUGE-L",
        "CIDEr",
        "CIDEr-plain",
    }
    assert len(rest["left_out"]) == 2


def test_evaluations_are_compared(place):
    for beam in (1, 3):
        tiny.inside(
            "evaluate", "tiny", "--model", "run", "--beam", beam, "--no-meteor",
            "--json", f"beam{beam}.json", cwd=place,
        )  # fmt: skip
    done = tiny.regard("compare", "beam1.json", "beam3.json", "--json", "both.json", cwd=place)
    assert "Differences are from beam1. 6 photos" in done.stdout
    both = json.loads((place / "both.json").read_text())
    assert {d["other"] for d in both["differences"]} == {"beam3"}
    alone = tiny.inside("compare", "beam1.json", cwd=place, code=2)
    assert "A comparison needs two evaluations or more, 1 was given" in alone.stderr


def test_features_of_a_frozen_encoder_are_made_once(place):
    from test_checkpoint import resnet_file

    weights = resnet_file(place / "resnet18.safetensors", 0)
    first = tiny.regard("features", "tiny", "--encoder", weights, cwd=place)
    assert "features of 24 photos in" in first.stdout
    shards = {f: f.stat().st_mtime_ns for f in (place / "cache").rglob("*.safetensors")}
    assert shards
    tiny.inside("features", "tiny", "--encoder", weights, cwd=place)
    tiny.inside(
        "train", "tiny", "--encoder", weights, *tiny.QUICK, "--set", "train.max_steps=2",
        "--out", "frozen", cwd=place,
    )  # fmt: skip
    assert shards == {f: f.stat().st_mtime_ns for f in (place / "cache").rglob("*.safetensors")}
    tiny.inside("caption", "tiny/photos/00.png", "--model", "frozen", cwd=place)


def test_the_last_stages_can_be_trained_as_well(place):
    from safetensors.torch import load_file

    from test_checkpoint import resnet_file

    weights = resnet_file(place / "tuned18.safetensors", 0)
    tiny.inside(
        "train", "tiny", "--encoder", weights, *tiny.QUICK, "--fine-tune", "1",
        "--set", "encoder.image_size=64", "--set", "train.max_steps=2",
        "--set", "train.encoder_learning_rate=1e-3", "--out", "tuned", cwd=place,
    )  # fmt: skip
    before, after = load_file(weights), load_file(place / "tuned" / "model" / "model.safetensors")

    def moved(name: str) -> bool:
        return not bool((before[name] == after[f"encoder.backbone.{name}"]).all())

    assert moved("layer4.0.conv1.weight")
    assert not moved("layer3.0.conv1.weight")
    assert not moved("layer4.0.bn1.running_mean")
    weights.unlink()  # what was trained travels with the model
    tiny.inside("caption", "tiny/photos/00.png", "--model", "tuned", cwd=place)


def test_words_start_from_vectors(place):
    words = ["red", "circle", "zebra"]
    file = place / "vectors.txt"
    file.write_text(
        "3 5\n" + "".join(f"{w} " + " ".join(str(i + k / 10) for k in range(5)) + "\n"
                          for i, w in enumerate(words))
    )  # fmt: skip
    arguments = [
        "train", "tiny", "--preset", "scenes", "--embeddings", file, "--set", "train.max_steps=1",
        *tiny.QUICK, "--out",
    ]  # fmt: skip
    clash = tiny.inside(*arguments, "clash", cwd=place, code=2)
    assert "decoder.embedding_width is 12, but the vectors in" in clash.stderr
    assert "are 5 wide" in clash.stderr
    done = tiny.inside(*arguments, "vectors", "--set", "decoder.embedding_width=null", cwd=place)
    assert "2 of" in done.stderr
    model = regard.load(place / "vectors").model
    assert model.decoder.embedding.weight.shape[1] == 5


WRONG = [
    (["train", "tiny", "--out", "x", "--preset", "quick"], "There is no preset 'quick'"),
    (["train", "tiny", "--out", "x", "--set", "train.epoch=3"], "did you mean 'train.epochs'"),
    (["train", "tiny", "--out", "x", "--device", "tpu"], "There is no device 'tpu'"),
    (["train", "tiny", "--out", "x", "--encoder", "./none"], "./none"),
    (["caption", "tiny/photos/00.png", "--model", "run", "--beam", "0"], "beam is 0"),
    (["caption", "a.png", "--model", "run", "--count", "4"], "count is 4, it must be at most"),
    (
        ["caption", "tiny/photos/00.png", "--model", "run", "--prefix", "a zebra"],
        "does not know 'zebra'",
    ),
    (["caption", "a.png", "--model", "run", "--model", "./none"], "There is no model at ./none"),
    (["caption", "tiny/photos/00.png", "--model", "run", "--device", "gpu"], "no device 'gpu'"),
    (["caption", "a.png", "--model", "run", "--out", "a.xls"], "a.xls ends in .xls"),
    (["caption", "a.png", "--model", "run", "--txt"], "There is no file for the records"),
    (["caption", "--model", "run"], "Give photos, folders"),
    (
        ["evaluate", "tiny", "--model", "run", "--captions", "x.jsonl"],
        "Give either --model or --captions",
    ),
    (["evaluate", "tiny", "--model", "run", "--split", "vall"], "There is no split 'vall'"),
]
WRONG_OF_EACH = [  # of each command one, run as people run it
    (["train", "nowhere", "--out", "x"], "nowhere"),
    (["caption", "tiny/photos/00.png", "--model", "./none"], "There is no model at ./none"),
    (["find", "dog", "none.jsonl"], "Caption photos first"),
    (["evaluate", "tiny", "--captions", "none.json"], "none.json cannot be read"),
    (["data", "check", "run"], "run"),
]


@pytest.mark.parametrize(
    ("run", "arguments", "said"),
    [(tiny.inside, *case) for case in WRONG] + [(tiny.regard, *case) for case in WRONG_OF_EACH],
)
def test_wrong_inputs_give_one_clear_line(place, run, arguments, said):
    done = run(*arguments, cwd=place, code=2)
    assert said in done.stderr
    assert done.stderr.startswith("regard: ")
    assert not (place / "x").exists()


def test_debug_shows_where_an_error_came_from(place):
    done = subprocess.run(
        tiny.command("--debug", "caption", "a.jpg", "--model", "./none"), cwd=place, text=True,
        capture_output=True, env=tiny.environment(place), check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_captions_that_cannot_be_chosen_are_refused():
    with pytest.raises(ConfigError) as caught:
        Decoding(beam=0, temperature=0, top_p=2)
    for name in ("beam is 0", "temperature is 0", "top-p is 2"):
        assert name in str(caught.value)


def test_help_explains_every_setting():
    from regard.config import describe_fields

    done = tiny.inside("train", "--help", cwd=Path.cwd())
    squeezed = "".join(done.stdout.split())
    for name, sentence in describe_fields():
        assert f"{name}:" in squeezed
        assert "".join(sentence.split())[:40] in squeezed


def heavy_after(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run it as a program that at its end prints which heavy libraries it has read."""
    heavy = "[m for m in ('torch', 'lightning', 'transformers', 'matplotlib') if m in sys.modules]"
    code = f"import sys, regard, regard.cli\ntry: {code}\nfinally: print({heavy})"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], text=True, capture_output=True, check=False
    )


def test_help_and_version_load_nothing_heavy():
    assert heavy_after("pass").stdout.strip() == "[]"
    assert tiny.regard("--version", cwd=Path.cwd()).stdout.strip() == f"regard {regard.__version__}"


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "nowhere", "--out", "x"],
        ["features", "nowhere"],
        ["gaze-check", "nowhere", "--model", "x"],
        ["report", "x", "--data", "nowhere", "--out", "y"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_complaints_about_the_data_wait_for_nothing_heavy(arguments):
    done = heavy_after("regard.cli.main()", *arguments)
    assert "There is no nowhere" in done.stderr
    assert done.stdout.strip() == "[]"
