"""How far METEOR is from the Java program's, and how long both take.

    python benchmarks/meteor_parity.py [--pairs N] [--seed S]

A pair is a caption and one of its references. Both are drawn from the captions of Flickr8k, which
``REGARD_SHARED`` or ``../shared`` has. The exit code is 1 where the two differ by more than 1e-9.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

HOME = Path(__file__).parents[1]
sys.path.insert(0, str(HOME / "tests"))

import meteor_oracle  # noqa: E402
from regard.metrics.meteor import meteor  # noqa: E402


def main() -> int:
    """Draw, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=20_000, help="at least so many")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if reason := meteor_oracle.why_not():
        sys.exit(f"There is nothing to compare with: {reason}.")
    shared = Path(os.environ.get("REGARD_SHARED", HOME.parent / "shared"))
    hypotheses, references, pairs = [], [], 0
    for said, group in meteor_oracle.photos(shared, arguments.seed):
        hypotheses.append(said)
        references.append(group)
        pairs += len(group)
        if pairs >= arguments.pairs:
            break

    began = time.perf_counter()
    found = meteor(hypotheses, references)
    between = time.perf_counter()
    corpus, each = meteor_oracle.by_java(hypotheses, references)
    ended = time.perf_counter()

    difference = np.abs(found.per_photo - each).max()
    of_corpus = abs(found.corpus - corpus)
    print(f"pairs               {pairs:,} of {len(hypotheses):,} photos")
    print(f"largest difference  {difference:.1e} of a photo, {of_corpus:.1e} of all")
    print(f"METEOR              {found.corpus:.6f}")
    print(f"regard              {between - began:.1f} s")
    print(f"java                {ended - between:.1f} s")
    return int(max(difference, of_corpus) > 1e-9)


if __name__ == "__main__":
    sys.exit(main())
