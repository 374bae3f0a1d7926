"""Seconds until the program answers: importing it, its help, and looking at a small data set.

    python benchmarks/start.py [--runs N] [--json OUT]

``ratio`` is each time over the time of an empty Python process.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from measuring import medians, options, report, table, take_turns

from regard.data.scenes import draw_scenes


def main() -> None:
    """Measure, print, and write the section of the page."""
    parser = options(__doc__, runs=9)
    arguments = parser.parse_args()
    program = str(Path(sys.executable).with_name("regard"))
    with tempfile.TemporaryDirectory() as folder:
        draw_scenes(Path(folder) / "scenes", count=20, seed=0)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "python -c 'import regard'": [sys.executable, "-c", "import regard"],
            "regard --help": [program, "--help"],
            "regard data check (20 photos)": [program, "data", "check", f"{folder}/scenes"],
            "python -c 'import torch'": [sys.executable, "-c", "import torch"],
        }
        ways = {
            name: lambda command=command: subprocess.run(command, check=True, capture_output=True)
            for name, command in commands.items()
        }
        seconds = medians(take_turns(ways, runs=arguments.runs))
    empty = seconds["python -c pass"]
    figures = {"seconds": seconds, "ratio": {name: s / empty for name, s in seconds.items()}}
    rows = [(f"`{name}`", f"{s:.3f}") for name, s in seconds.items()]
    report("start", table(["", "s"], rows), figures, json=arguments.json)


if __name__ == "__main__":
    main()
