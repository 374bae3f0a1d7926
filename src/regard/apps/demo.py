"""The demo: caption photos; then draw scenes, learn to caption them, show where each word looked.

The photos are captioned by the captioner in the box. The rest needs no network and no weights: the
encoder is a few convolutions that first learn which words a scene's captions hold, then the decoder
learns to say them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from regard import DEFAULT_MODEL
from regard.apps.photos import draw_gaze
from regard.apps.records import record
from regard.captioner import Captioner, PhotoCaption, load
from regard.checkpoint import read_model
from regard.config import make_config
from regard.data.dataset import read_dataset
from regard.data.scenes import draw_scenes
from regard.describe import Decoding
from regard.evaluation import evaluate_model
from regard.images import open_photo
from regard.plots import gallery_figure, loss_figure
from regard.training.log import read_log
from regard.training.run import Listener, train

SCENES = 4000
"""Scenes drawn; a tenth is never seen in training."""

SHIPPED = Path(__file__).parents[1] / "box" / "photos"
"""A few photos, drawn by scripts/draw_photos.py."""

SHOWN = 8
"""Unseen scenes whose gaze is drawn."""


def run_demo(
    out: Path,
    *,
    seed: int,
    say: Callable[[str], None],
    training: Callable[[], AbstractContextManager[Listener]],
    count: int = SCENES,
    epochs: int | None = None,
) -> None:
    """Run the demo.

    Args:
        out: folder of everything it makes; what an earlier demo left there is used again.
        seed: of the scenes and of the training.
        say: told one line at a time.
        training: a context that shows a training.
        count: scenes to draw.
        epochs: passes over them, if not the preset's.
    """
    say("Captioning photos with the captioner that comes with regard ...")
    _caption_shipped(out / "photos", say)

    say(f"Drawing {count} scenes ...")
    scenes = out / "scenes"
    draw_scenes(scenes, count=count, seed=seed)
    dataset = read_dataset(scenes)
    overrides = {"seed": seed} | ({} if epochs is None else {"train.epochs": epochs})
    config = make_config(preset="scenes", overrides=overrides)
    run = out / "run"
    say(f"Training on {len(dataset.split('train'))} of them ...")
    with training() as listener:
        train(
            dataset, config, run, resume=(run / "settings.json").exists(),
            cache=out / "features", listener=listener,
        )  # fmt: skip
    loss_figure(
        read_log(run / "log" / "steps.csv"), read_log(run / "log" / "epochs.csv"), out / "loss.png"
    )

    say("Captioning scenes that it has not seen ...")
    captioner = Captioner(read_model(run))
    decoding = Decoding(beam=3)
    result = evaluate_model(dataset, "test", captioner.model, decoding, cache=out / "features")
    result.write(out / "scores.json")
    shown = sorted(dataset.split("test"), key=lambda p: p.id)[:SHOWN]
    gaze = out / "gaze"
    gaze.mkdir(parents=True, exist_ok=True)
    rows = []
    with (out / "captions.jsonl").open("w", encoding="utf-8") as stream:
        for photo, found in zip(
            shown, captioner.captions((p.path for p in shown), decoding), strict=True
        ):
            stream.write(json.dumps(record(photo.path, found), ensure_ascii=False) + "\n")
            if isinstance(found, PhotoCaption):
                say(f"  {photo.path.name}: {found.text}")
                draw_gaze(photo.path, found, gaze / f"{photo.path.stem}.png")
                rows.append((open_photo(photo.path), found.text, photo.captions))
    gallery_figure(rows, out / "gallery.png")
    scores = result.scores
    say(
        f"On {len(result.photos)} unseen scenes: BLEU-4 {scores['BLEU-4'].corpus:.3f}, "
        f"CIDEr {scores['CIDEr'].corpus:.3f}."
    )
    say(f"Everything is in {out.resolve()}:")
    for name, what in (
        ("photos/", "where regard-small looked in the first photos"),
        ("gaze/", "where each word looked"),
        ("gallery.png", "generated beside actual captions"),
        ("loss.png", "how the training went"),
        ("captions.jsonl", "captions with their words' log-probabilities"),
        ("scores.json", "scores of all unseen scenes, one by one"),
        ("run/model/", f"the captioner: regard caption PHOTO --model {run}"),
    ):
        say(f"  {name:<15} {what}")


def _caption_shipped(out: Path, say: Callable[[str], None]) -> None:
    """Caption the photos that come with regard."""
    photos = sorted(SHIPPED.glob("*.jpg"))
    out.mkdir(parents=True, exist_ok=True)
    captioner = load(DEFAULT_MODEL)
    for photo, found in zip(photos, captioner.captions(photos), strict=True):
        if isinstance(found, PhotoCaption):
            say(f"  {photo.name}: {found.text}")
            draw_gaze(photo, found, out / f"{photo.stem}.png")
