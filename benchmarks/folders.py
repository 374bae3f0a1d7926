"""What a run over a folder costs beside its captioner, and its memory at a million photos.

    python benchmarks/folders.py [--names N] [--folder FOLDER] [--json OUT]

A captioner that says the same of every photo goes over N names of sixteen tiny photos (hard links,
so that each is a file of its own), in a process of its own: once, and again when all is done.
``memory_ratio`` is the most memory at N names over that at a hundredth of them, wanted below 1.5.
"""

from __future__ import annotations

import json as jsonlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measuring import options, report, table
from PIL import Image

RUN = """
import json, resource, sys, time
from pathlib import Path
import numpy as np
from regard.apps.listeners import Json
from regard.apps.names import Photos
from regard.apps.photos import Outputs, caption_photos
from regard.captioner import AnyCaptioner
from regard.describe import Caption, Decoding

WORDS = tuple("a dog runs over the green grass with a ball".split())
SAME = Caption(" ".join(WORDS), WORDS, (-0.5,) * 10, np.full((10, 7, 7), 1 / 49, "f4"), -1.0, False)

class Same(AnyCaptioner):
    identity, folder, no_gaze, grid = "same", None, None, (7, 7)
    def placement(self, size): return (0, 0, *size)
    def _prepare(self, photo): return None
    def _describer(self, photos, batch_size): return lambda prepared, decoding: [[SAME]] * len(prepared)

began = time.perf_counter()
listener = Json(captions=False, stream=open("/dev/null", "w"))
tally = caption_photos(Same(), Photos([sys.argv[1]]), Decoding(), Outputs(out=Path(sys.argv[2])), listener)
print(json.dumps({
    "seconds": time.perf_counter() - began,
    "captioned": tally.captioned, "known": tally.known,
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
}))
"""  # noqa: E501


def main() -> None:
    """Measure, print, write."""
    parser = options(__doc__)
    parser.add_argument("--names", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the names are made")
    arguments = parser.parse_args()
    rows = []
    most: dict[int, float] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for count in (arguments.names // 100, arguments.names):
            folder = Path(place) / str(count)
            _link(folder, count)
            for turn, done in (("captioned", "captioned"), ("all done before", "known")):
                found = _run(folder, Path(place) / f"{count}.jsonl")
                if found[done] != count:
                    raise SystemExit(f"{found[done]} of {count} are {turn}")
                rows.append((
                    f"{count:,} photos, {turn}", f"{count / found['seconds']:,.0f}",
                    f"{found['seconds'] / count * 1e6:.0f}", f"{found['peak']:.0f}",
                ))  # fmt: skip
                most[count] = max(most.get(count, 0.0), found["peak"])
    few, many = most.values()
    text = "\n\n".join([
        table(["", "photos/s", "us a photo", "most memory, MiB"], rows),
        f"A hundred times the photos take {many / few:.2f} times the memory; wanted: below 1.5.",
    ])  # fmt: skip
    report("folders", text, {"rows": rows, "memory_ratio": many / few}, json=arguments.json)


def _link(folder: Path, count: int) -> None:
    """Sixteen photos under so many names, five thousand a folder."""
    folder.mkdir()
    photos = [folder / f"{i}.png" for i in range(min(16, count))]
    for i, photo in enumerate(photos):
        pixels = np.random.default_rng(i).integers(0, 256, (2, 2, 3), np.uint8)
        Image.fromarray(pixels).save(photo)
    for i in range(len(photos), count):
        below = folder / f"{i // 5000:04}"
        below.mkdir(exist_ok=True)
        (below / f"{i}.png").hardlink_to(photos[i % 16])


def _run(folder: Path, out: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(out)],
        check=True,
        capture_output=True,
        text=True,
    )
    found: dict[str, Any] = jsonlib.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
