"""What the benchmarks share: taking turns, one line on the machine, and the page of results."""

from __future__ import annotations

import argparse
import os
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regard.files import write_json
from regard.machine import describe_machine

if TYPE_CHECKING:
    import torch

RESULTS = Path(__file__).parent / "RESULTS.md"
"""One section a benchmark, each written by the benchmark that it is named after."""

SHARED = Path(os.environ.get("REGARD_SHARED", Path(__file__).parents[2] / "shared"))
"""Where the real photos and weights are, if anywhere."""


def options(
    description: str | None, *, runs: int | None = None, device: bool = False
) -> argparse.ArgumentParser:
    """The options that benchmarks share, for a benchmark to add its own.

    Args:
        description: the benchmark's docstring, whose first line is shown.
        runs: how many measured runs of each way are usual, where that can be chosen.
        device: whether it also runs elsewhere than on the CPU.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if runs is not None:
        parser.add_argument("--runs", type=int, default=runs, help="measured runs of each way")
    if device:
        parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--json", type=Path, metavar="OUT", help="write the figures there too")
    return parser


def elsewhere(device: torch.device) -> str:
    """What to name a section after, beside its benchmark: nothing on a CPU that has bf16."""
    # Not above: where starting is measured, torch must not be there yet.
    from regard.models.devices import fast_precision

    if device.type != "cpu":
        return device.type
    return "" if fast_precision(device) == "bf16" else "float32"


def take_turns(ways: Mapping[str, Callable[[], object]], *, runs: int) -> dict[str, list[float]]:
    """Seconds of each way, ``runs`` times, one after the other in turn, after one unmeasured run.

    A machine that is busy for a while then slows all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if run:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def medians(seconds: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def peak_memory() -> int:
    """The most memory this process has held so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def table(headings: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    texts = [[str(cell) for cell in row] for row in [headings, *rows]]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]

    def line(cells: Sequence[str]) -> str:
        sides = [str.ljust, *[str.rjust] * (len(cells) - 1)]
        padded = [side(c, w) for side, c, w in zip(sides, cells, widths, strict=True)]
        return f"| {' | '.join(padded)} |"

    rule = ["-" * widths[0], *["-" * (w - 1) + ":" for w in widths[1:]]]
    return "\n".join([line(texts[0]), line(rule), *map(line, texts[1:])])


def report(
    name: str, text: str, figures: dict[str, Any], *, json: Path | None, of: str = ""
) -> None:
    """Print a result, put it into its section of the page, and write its figures.

    Args:
        name: of the benchmark: the heading of its section, and its script without ``.py``.
        text: Markdown.
        figures: plain values; the machine and the versions are added.
        json: where to write them, if anywhere.
        of: what was measured, where a benchmark has a section for each of several things.
    """
    heading = f"{name}, {of}" if of else name
    described = describe_machine()
    machine, versions = described["machine"], described["versions"]
    where = machine.get("accelerator") or f"{machine['processor']}, {machine['cores']} cores"
    known = ", ".join(f"{package} {version}" for package, version in versions.items())
    section = (
        f"## {heading}\n\n`python benchmarks/{name}.py` on {where}; {known}.\n\n{text.strip()}\n"
    )
    print(section)
    page = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else "# Measured\n"
    pattern = re.compile(rf"^## {re.escape(heading)}\n.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    if pattern.search(page):
        page = pattern.sub(lambda _: section + "\n", page)
    else:
        page = f"{page.rstrip()}\n\n{section}"
    beside = RESULTS.with_name(RESULTS.name + ".new")
    beside.write_text(page.rstrip() + "\n", encoding="utf-8")
    beside.replace(RESULTS)
    if json is not None:
        write_json(json, figures | described)
