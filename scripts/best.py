"""Train the best captioner of docs/results.md: cross-entropy, then self-critical training.

    python scripts/best.py DATA --encoder E --out FOLDER [--seed N]

FOLDER/lstm and FOLDER/scst are the two runs, FOLDER/*.json their scores on the split that judges.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"
SEARCH = ("--beam", "3", "--no-repeat", "2")


def main() -> None:
    """Train, go on, score."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--encoder", required=True, help="a ResNet-50: hub id, folder or file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", help="folder of the feature cache")
    arguments = parser.parse_args()
    first, second = arguments.out / "lstm", arguments.out / "scst"
    cache = ["--cache", arguments.cache] if arguments.cache else []
    known = [arguments.data, "--encoder", arguments.encoder, *cache]
    seed = ["--set", f"seed={arguments.seed}"]
    _train(first, *known, "--config", CONFIGS / "flickr8k-lstm.yaml", *seed)
    _train(second, *known, "--config", CONFIGS / "flickr8k-scst.yaml", "--init", first, *seed)
    for run in (first, second):
        scores = arguments.out / f"{run.name}.json"
        _regard("evaluate", *known, "--model", run, *SEARCH, "--json", scores)


def _train(run: Path, *arguments: object) -> None:
    resume = ["--resume"] if (run / "settings.json").exists() else []
    _regard("train", *arguments, "--out", run, *resume)


def _regard(*arguments: object) -> None:
    command = [str(Path(sys.executable).with_name("regard")), *map(str, arguments)]
    if code := subprocess.run(command, check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
