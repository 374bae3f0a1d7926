"""How long one epoch of training takes, from the feature cache.

    python benchmarks/epoch.py [DATA] [--encoder E] [--set A.B=C] [--device cpu|cuda] [--json OUT]

It trains as ``regard train`` does: the report's sizes and words, photos with all their captions, in
batches of 32 photos whose captions have similar lengths. The time is that of the run's own log:
reading the cache, iterations and saved states, without what comes before and the validation after.
DATA is Flickr8k where ``REGARD_SHARED`` or ``../shared`` has it. The features are computed first if
``$REGARD_CACHE`` has none, which is not part of the time.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import SHARED, options, peak_memory, report

from regard.config import make_config
from regard.data.dataset import read_dataset
from regard.training.log import read_log
from regard.training.run import Machine, train


def main() -> None:
    """Train, read the log, write."""
    parser = options(__doc__, device=True)
    parser.add_argument("data", nargs="?", default=SHARED / "data" / "flickr8k")
    parser.add_argument("--encoder", default=SHARED / "models" / "resnet50-imagenet")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="a setting")
    arguments = parser.parse_args()
    config = make_config(
        overrides={
            "encoder.id": str(arguments.encoder),
            "train.epochs": 1,
            "train.grouping": "photo",
            "train.bucket": True,
            "validation.max_photos": 8,
        },
        settings=arguments.set,
    )
    dataset = read_dataset(Path(arguments.data))
    captions = sum(len(photo.captions) for photo in dataset.split("train"))
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        outcome = train(dataset, config, run, machine=Machine(device=arguments.device))
        if not outcome.progress.finished:
            sys.exit("The epoch was stopped before its end: there is nothing to report.")
        seconds = read_log(run / "log" / "epochs.csv")[0]["seconds"]
    text = (
        f"One epoch of {dataset.name}, {captions:,} captions: {seconds:.1f} s, "
        f"{captions / seconds:,.0f} captions/s. Memory at most {peak_memory() / 2**30:.1f} GiB."
    )
    figures = {"seconds": seconds, "captions": captions, "peak_memory": peak_memory()}
    report("epoch", text, figures, json=arguments.json)


if __name__ == "__main__":
    main()
