"""What every model card says, whichever captioner it is of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CARE = """\
Weights trained on photos from Flickr are for research and education only. Captions are guesses:
they name what the training photos taught, they are often wrong about numbers, colours and actions,
and they carry the habits and biases of the people who wrote the training captions. Have a person
read them before they are published.
"""


def score_table(scores: Mapping[str, Any]) -> str:
    """The section of the scores: how they were measured, and a table of what was."""
    measured = {k: v for k, v in scores.items() if isinstance(v, int | float)}
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in measured.items())
    how = ", ".join(f"{name} {value}" for name, value in scores.items() if name not in measured)
    return f"""## Scores

{how}

| score | value |
|---|---|
{rows}
"""
