"""METEOR by the Java program, and captions to hold it against."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from regard.text.tokenise import tokenise

CAPTIONS = "data/flickr8k/Flickr8k.token.txt"


def why_not() -> str | None:
    """Why the program cannot run here; none if it can."""
    if shutil.which("java") is None:
        return "Java is not installed"
    try:
        import pycocoevalcap  # noqa: F401
    except ImportError:
        return "pycocoevalcap is not installed"
    return None


def by_java(hypotheses, references) -> tuple[float, list[float]]:
    """The score of all photos and that of each, as pycocoevalcap has them."""
    from pycocoevalcap.meteor.meteor import Meteor

    java = Meteor()
    try:
        return java.compute_score(
            {i: [" ".join(r) for r in group] for i, group in enumerate(references)},
            {i: [" ".join(h)] for i, h in enumerate(hypotheses)},
        )
    finally:
        # It leaves its pipes open; and after a failure it would wait for its own lock for ever.
        java.meteor_p.stdout.close()
        java.meteor_p.stderr.close()
        if java.lock.locked():
            java.lock.release()


def photos(shared: Path, seed: int) -> Iterator[tuple[list[str], list[list[str]]]]:
    """Captions to score and their references, drawn from those that people wrote.

    Some are another person's caption of the photo, some one of the references, of another photo,
    in disorder, with words lost and others put in, cut, said twice or empty. There are 1 to 7
    references, of which some are empty or of another photo.
    """
    draw = random.Random(seed)
    by_photo: dict[str, list[list[str]]] = {}
    for line in (shared / CAPTIONS).read_text().splitlines():
        name, caption = line.split("\t")
        by_photo.setdefault(name.partition("#")[0], []).append(tokenise(caption))
    groups = list(by_photo.values())
    assert len(groups) > 1000
    while True:
        group = draw.choice(groups)
        said, *references = draw.sample(group, len(group))
        other = draw.choice(draw.choice(groups))
        said = draw.choice(
            [
                said,
                said,
                draw.choice(references),
                other,
                draw.sample(said, len(said)),
                [w for w in said if draw.random() < 0.8] + other[: draw.randint(0, 5)],
                said[: len(said) // 2],
                said + said,
                [] if draw.random() < 0.2 else said,
            ]
        )
        references += draw.choice(groups)[: draw.randint(0, 3)]
        if draw.random() < 0.02:
            references[0] = []
        yield said, references[: draw.randint(1, 7)]
