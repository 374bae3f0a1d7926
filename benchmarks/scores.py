"""How long BLEU, ROUGE-L and CIDEr of captions take, beside pycocoevalcap.

    python benchmarks/scores.py [--photos N] [--runs N] [--json OUT]

Each engine is a fresh Python process that reads captions, finds their words, scores them and writes
the scores: what a person waits for. pycocoevalcap is called as its own evaluation calls it, with
its Java tokeniser. The two take turns, so that a machine that is busy for a while slows both.

The references are those of Flickr8k where ``REGARD_SHARED`` or ``../shared`` has them, else of
drawn scenes. The captions to score are first references with every fourth word or so left out.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ENGINES = ("regard", "pycocoevalcap")
WANTED = 5
"""Times faster that regard is to be."""


def main() -> int:
    """Measure, print, and say by the exit code whether the scores agree."""
    arguments = _arguments()
    if arguments.engine:
        _score(*arguments.engine)
        return 0
    source, references = _references(arguments.photos)
    draw = random.Random(0)
    captions = [_shortened(group[0], draw) for group in references]
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder, "captions.json")
        given.write_text(json.dumps([captions, references]), encoding="utf-8")
        seconds: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for _ in range(arguments.runs):
            for engine in ENGINES:
                made = Path(folder, f"{engine}.json")
                command = [sys.executable, __file__, "--engine", engine, str(given), str(made)]
                started = time.perf_counter()
                subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
                seconds[engine].append(time.perf_counter() - started)
        scores = {e: json.loads(Path(folder, f"{e}.json").read_text("utf-8")) for e in ENGINES}
    found = _summary(source, references, seconds, scores)
    _print(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if found["largest_difference"] <= 1e-6 else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--photos", type=int, default=1000, help="photos, of 5 references each")
    parser.add_argument("--runs", type=int, default=7, help="runs of each engine")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there too")
    # One run of one engine, which this script starts itself.
    parser.add_argument("--engine", nargs=3, metavar=("NAME", "GIVEN", "MADE"), help="internal")
    return parser.parse_args()


# --- captions ---------------------------------------------------------------------------------


def _references(photos: int) -> tuple[str, list[list[str]]]:
    """Where five captions of each photo come from, and these."""
    shared = Path(os.environ.get("REGARD_SHARED", Path(__file__).parents[2] / "shared"))
    if (shared / "data" / "flickr8k").is_dir():
        from regard.data.dataset import read_dataset

        dataset = read_dataset(shared / "data" / "flickr8k")
        groups = [list(photo.captions) for photo in dataset.photos if len(photo.captions) == 5]
        if len(groups) >= photos:
            return "Flickr8k", random.Random(0).sample(groups, photos)
    import numpy as np

    from regard.data.scenes import compose, describe

    draw = np.random.default_rng(0)
    return "drawn scenes", [list(describe(compose(draw), draw)) for _ in range(photos)]


def _shortened(caption: str, draw: random.Random) -> str:
    return " ".join(word for word in caption.split() if draw.random() > 0.25)


# --- one engine, in a process of its own ------------------------------------------------------


def _score(engine: str, given: str, made: str) -> None:
    """Write the scores by name: the value for all photos, then the value for each."""
    captions, references = json.loads(Path(given).read_text(encoding="utf-8"))
    by = {"regard": _by_regard, "pycocoevalcap": _by_pycocoevalcap}[engine]
    Path(made).write_text(json.dumps(by(captions, references)), encoding="utf-8")


Scores = dict[str, list[float]]


def _by_regard(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    from regard.metrics.scores import score_all
    from regard.text.tokenise import tokenise

    scores = score_all(
        [tokenise(caption) for caption in captions],
        [[tokenise(reference) for reference in group] for group in references],
    )
    return {name: [score.corpus, *score.per_photo.tolist()] for name, score in scores.items()}


def _by_pycocoevalcap(captions: Sequence[str], references: Sequence[Sequence[str]]) -> Scores:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    words = PTBTokenizer()
    wanted = words.tokenize({i: [{"caption": r} for r in g] for i, g in enumerate(references)})
    said = words.tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    values, each = Bleu(4).compute_score(wanted, said, verbose=0)
    found = {f"BLEU-{k + 1}": [values[k], *each[k]] for k in range(4)}
    for name, scorer in (("ROUGE-L", Rouge()), ("CIDEr", Cider())):
        value, of_each = scorer.compute_score(wanted, said)
        found[name] = [float(value), *map(float, of_each)]
    return found


# --- figures ----------------------------------------------------------------------------------


def _summary(
    source: str,
    references: Sequence[Sequence[str]],
    seconds: dict[str, list[float]],
    scores: dict[str, Scores],
) -> dict[str, object]:
    from regard.machine import describe_machine

    ours, theirs = (scores[engine] for engine in ENGINES)
    median = {engine: statistics.median(seconds[engine]) for engine in ENGINES}
    return {
        **describe_machine(),
        "captions": source,
        "photos": len(references),
        "references": sum(map(len, references)),
        "seconds": seconds,
        "median_seconds": median,
        "times_faster": median["pycocoevalcap"] / median["regard"],
        "scores": {name: [ours[name][0], theirs[name][0]] for name in theirs},
        "largest_difference": max(
            math.inf if len(ours[name]) != len(theirs[name]) else abs(a - b)
            for name in theirs
            for a, b in zip(ours[name], theirs[name], strict=False)
        ),
    }


def _print(found: dict) -> None:
    machine = found["machine"]
    print(
        f"{found['photos']} photos with {found['references']} references ({found['captions']}); "
        f"{machine['processor']}, {machine['cores']} cores; "
        f"Python {found['versions']['python']}, numpy {found['versions']['numpy']}"
    )
    print(f"\n{'seconds':10}{'median':>10}{'fastest':>10}{'slowest':>10}   runs")
    for engine, seconds in found["seconds"].items():
        values = (found["median_seconds"][engine], min(seconds), max(seconds))
        print(f"{engine[:9]:10}" + "".join(f"{v:10.2f}" for v in values) + f"{len(seconds):7}")
    print(f"\n{'score':10}" + "".join(f"{engine[:9]:>12}" for engine in ENGINES))
    for name, values in found["scores"].items():
        print(f"{name:10}" + "".join(f"{value:12.6f}" for value in values))
    print(
        f"\nregard is {found['times_faster']:.1f} times faster (wanted: {WANTED}); "
        f"the largest difference of any score of any photo is {found['largest_difference']:.1e}"
    )


if __name__ == "__main__":
    sys.exit(main())
