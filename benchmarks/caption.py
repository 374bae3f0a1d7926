"""Photos a second from JPEG files to captions, beside the bare encoder; one photo, warm and cold.

    python benchmarks/caption.py [--model MODEL] [--photos N] [--runs N] [--json OUT]

``ratio`` is the rate with a beam of 3 over the best of the bare encoder on prepared photos,
``latency_ratio`` the time of one photo with a beam of 3, warm, over the encoder's own.
"""

from __future__ import annotations

import itertools
import json as jsonlib
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import SHARED, elsewhere, medians, options, report, table, take_turns

import regard
from regard.captioner import Captioner
from regard.describe import Decoding
from regard.images import open_photo
from regard.models.lanes import lanes

BATCH = 16
COLD = """
import json, sys, time
began = time.perf_counter()
import torch
torch_there = time.perf_counter()
import regard.apps.photos, regard.captioner
from regard.describe import Decoding
imported = time.perf_counter()
captioner = regard.captioner.load(sys.argv[1])
loaded = time.perf_counter()
regions = None
encode = captioner.encode
def timed(images):
    global encoded, regions
    start = time.perf_counter()
    regions = encode(images)
    encoded = time.perf_counter() - start
    return regions
captioner.encode = timed
captioner.caption(sys.argv[2], Decoding(beam=3))
done = time.perf_counter()
print(json.dumps({
    "import torch": torch_there - began,
    "import regard": imported - torch_there,
    "load": loaded - imported,
    "encode": encoded,
    "decode and search": done - loaded - encoded,
}))
"""


def main() -> None:
    """Measure, print, and write the section of the page."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--model", default=regard.DEFAULT_MODEL)
    parser.add_argument("--photos", type=int, default=256)
    arguments = parser.parse_args()

    captioner = regard.load(arguments.model)
    if not isinstance(captioner, Captioner):
        parser.error("--model has to be one that regard trained")
    files = sorted((SHARED / "data" / "flickr8k" / "Images").glob("*.jpg"))[: arguments.photos]
    preparation = captioner.model.encoder.preparation
    prepared = torch.from_numpy(np.stack([preparation(open_photo(file)) for file in files]))
    batches = prepared.split(BATCH)

    def alone() -> None:
        with lanes() as threads:
            for done in [threads.submit(captioner.encode, batch) for batch in batches]:
                done.result()

    ways: dict[str, Any] = {
        "encoder, all threads on a batch": lambda: [captioner.encode(b) for b in batches],
        "encoder, a thread a batch": alone,
    }
    for beam in (1, 3, 5):
        ways[f"captions, beam {beam}"] = lambda beam=beam: list(
            captioner.captions(files, Decoding(beam=beam), batch_size=BATCH)
        )
    rates = {
        name: len(files) / s for name, s in medians(take_turns(ways, runs=arguments.runs)).items()
    }
    best = max(rate for name, rate in rates.items() if name.startswith("encoder"))
    latency = _latency(captioner, files, prepared)
    cold, command = _cold(arguments.model, files[0], runs=arguments.runs)
    figures: dict[str, Any] = {
        "photos_per_second": rates,
        "ratio": rates["captions, beam 3"] / best,
        "latency_seconds": latency,
        "latency_ratio": latency["caption, beam 3"] / latency["encoder"],
        "cold_seconds": cold,
        "cold_command_seconds": command,
    }
    small = arguments.model == regard.DEFAULT_MODEL
    of = regard.DEFAULT_MODEL if small else Path(captioner.model.encoder.id).name
    text = "\n\n".join([
        f"{len(files)} photos of Flickr8k, {of}, {torch.get_num_threads()} threads.",
        table(["", "photos/s"], [(name, f"{rate:.1f}") for name, rate in rates.items()]),
        f"Beam 3 at {figures['ratio']:.2f} of the encoder's best rate.",
        table(["one photo, warm", "ms"], [(n, f"{s * 1000:.1f}") for n, s in latency.items()]),
        f"That is {figures['latency_ratio']:.2f} times the encoder's own.",
        table(["one photo, cold", "s"], [(n, f"{s:.2f}") for n, s in cold.items()]),
        f"`regard caption PHOTO --model MODEL` takes {command:.2f} s.",
    ])  # fmt: skip
    named = filter(None, [of if small else "", elsewhere(captioner.device)])
    report("caption", text, figures, json=arguments.json, of=", ".join(named))


def _latency(captioner: Captioner, files: list[Path], prepared: torch.Tensor) -> dict[str, float]:
    """Seconds for one photo, another in each run; all ways take the same photos."""
    ways: dict[str, Any] = {"encoder": lambda i: captioner.encode(prepared[i : i + 1])}
    for beam in (1, 3, 5):
        ways[f"caption, beam {beam}"] = lambda i, beam=beam: captioner.caption(
            files[i], Decoding(beam=beam)
        )
    turns = {name: map(way, itertools.cycle(range(len(files)))) for name, way in ways.items()}
    return medians(
        take_turns({name: lambda t=turn: next(t) for name, turn in turns.items()}, runs=64)
    )


def _cold(model: str, file: Path, *, runs: int) -> tuple[dict[str, float], float]:
    """Seconds of each part in a new process, and of the whole command."""
    parts: dict[str, list[float]] = {}
    whole: list[float] = []
    command = [str(Path(sys.executable).with_name("regard")), "caption", str(file)]
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run([*command, "--model", model], check=True, stdout=subprocess.DEVNULL)
        whole.append(time.perf_counter() - began)
        run = [sys.executable, "-c", COLD, model, str(file)]
        output = subprocess.run(run, check=True, capture_output=True, text=True).stdout
        for name, seconds in jsonlib.loads(output).items():
            parts.setdefault(name, []).append(seconds)
    return medians(parts), medians({"whole": whole})["whole"]


if __name__ == "__main__":
    main()
