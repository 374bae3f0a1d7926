"""Train the best captioners of docs/results.md: four, a fifth that they teach, and its SCST.

    python scripts/best.py DATA --encoder E --out FOLDER [--teacher RUN ...]

Two LSTMs, one of them without the gate, and two Transformers learn what people wrote;
FOLDER/taught goes on with the first Transformer and learns what all four expect, and any more
teachers that there are; FOLDER/scst goes on with that one by self-critical training.
FOLDER/*.json are their scores on the split that judges: with a beam, with one that sees six views
of each photo, and by consensus of six views. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
TEACHERS = {
    "lstm-1": ("lstm", "seed=1"),
    "no-gate": ("lstm", "decoder.gate=false"),
    "transformer": ("transformer", "seed=0"),
    "transformer-1": ("transformer", "seed=1"),
}
"""By run: its configuration, and what is otherwise in it."""

BEAM = ("--beam", "5", "--no-repeat", "2")
SEARCHES = {
    "beam": BEAM,
    "views": (*BEAM, "--views", "6"),
    "consensus": ("--beam", "30", "--no-repeat", "2", "--consensus", "128", "--views", "6"),
}


def main() -> None:
    """Train, teach, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--encoder", required=True, help="a ResNet-50: hub id, folder or file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--teacher", action="append", default=[], help="one more; may be repeated")
    parser.add_argument("--cache", help="folder of the feature cache")
    arguments = parser.parse_args()
    cache = ["--cache", arguments.cache] if arguments.cache else []
    known = [arguments.data, "--encoder", arguments.encoder, *cache]
    teachers = [arguments.out / name for name in TEACHERS]
    for teacher, (kind, setting) in zip(teachers, TEACHERS.values(), strict=True):
        config = CONFIGS / f"flickr8k-{kind}.yaml"
        _train(teacher, *known, "--config", config, "--set", setting)
    taught = arguments.out / "taught"
    asked = ["--init", arguments.out / "transformer", "--config", CONFIGS / "flickr8k-taught.yaml"]
    for teacher in (*teachers, *arguments.teacher):
        asked += ["--teacher", teacher]
    _train(taught, *known, *asked)
    scst = arguments.out / "scst"
    asked = ["--init", taught, "--config", CONFIGS / "flickr8k-scst.yaml"]
    _train(scst, *known, *asked, "--set", "train.learning_rate=1e-4", "--set", "train.epochs=10")
    for run in (*teachers, taught, scst):
        for name, search in SEARCHES.items():
            scores = arguments.out / f"{run.name}-{name}.json"
            if not scores.exists():
                _regard("evaluate", *known, "--model", run, *search, "--json", scores)


def _train(run: Path, *arguments: object) -> None:
    resume = ["--resume"] if (run / "settings.json").exists() else []
    _regard("train", *arguments, "--out", run, *resume)


def _regard(*arguments: object) -> None:
    command = [str(Path(sys.executable).with_name("regard")), *map(str, arguments)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
