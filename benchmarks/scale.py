"""How time and peak memory grow with the number of photos: features, an epoch, captions.

    python benchmarks/scale.py --model MODEL [--parts P ...] [--sizes N ...] [--many N] [--json OUT]

Each size runs in a process of its own, on Flickr8k with a frozen ResNet-50. ``cache`` is the cache
alone, from a thousand to ``--many`` photos: copies of the photos, each with its number behind the
picture, so that they are different files, through an encoder that takes no time. The exponent is
the slope of log time over log photos; ``ratio`` is the peak memory of the largest size over that of
a thousand.
"""

from __future__ import annotations

import argparse
import json as jsonlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import SHARED, options, peak_memory, report, table
from torch import Tensor

PARTS = ("features", "train", "caption", "cache")
SIZES = (500, 1000, 2000, 4000, 6900)


class Numbered(Sequence[Path]):
    """The paths of many photos, made when they are asked for: what is measured is the cache."""

    def __init__(self, folder: Path, count: int) -> None:
        self._folder, self._numbers = folder, range(count)

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, at: Any) -> Any:
        numbers = self._numbers[at]
        if isinstance(numbers, range):
            return [self._folder / f"{i:06}.jpg" for i in numbers]
        return self._folder / f"{numbers:06}.jpg"


class Instant:
    """An encoder that takes no time: its features are as large as ResNet-18's, and all the same."""

    def __init__(self) -> None:
        from regard.images import Preparation

        self.preparation = Preparation(size=(224, 224))
        self._regions = torch.zeros(49, 512)

    def describe(self) -> dict[str, Any]:
        """Of no real encoder."""
        return {
            "id": "instant",
            "architecture": "instant",
            "width": 512,
            "grid": [7, 7],
            "preparation": self.preparation.as_dict(),
            "weights_hash": "none",
        }

    def fast_precision(self) -> str:
        """As any."""
        return "float32"

    def fast(self, precision: str, **_: int) -> Callable[[Tensor], Tensor]:
        """(B, 3, 224, 224) to (B, 49, 512)."""
        return lambda images: self._regions.expand(len(images), -1, -1)


def main() -> None:
    """Measure every size in its own process, print, and write the section of the page."""
    parser = options(__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", type=int, default=list(SIZES))
    parser.add_argument("--many", type=int, default=50_000)
    parser.add_argument("--one", nargs=2, metavar=("PART", "N"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        part, count = arguments.one
        with tempfile.TemporaryDirectory() as folder:
            seconds = _RUNS[part](int(count), arguments.model, Path(folder))
        print(jsonlib.dumps({"seconds": seconds, "peak_bytes": peak_memory()}))
        return

    found: dict[str, dict[int, dict[str, float]]] = {}
    for part in arguments.parts:
        sizes = (1000, 10_000, arguments.many) if part == "cache" else arguments.sizes
        for size in sizes:
            command = [sys.executable, __file__, "--model", arguments.model]
            run = [*command, "--one", part, str(size)]
            output = subprocess.run(run, check=True, stdout=subprocess.PIPE, text=True).stdout
            found.setdefault(part, {})[size] = jsonlib.loads(output.splitlines()[-1])
            print(part, size, found[part][size], flush=True)
    figures: dict[str, Any] = {"parts": found, "exponent": {}, "ratio": {}}
    rows: list[tuple[object, ...]] = []
    for part, by_size in found.items():
        sizes = sorted(by_size)
        times = [by_size[size]["seconds"] for size in sizes]
        memory = [by_size[size]["peak_bytes"] for size in sizes]
        thousand = memory[sizes.index(1000)] if 1000 in sizes else memory[0]
        figures["exponent"][part] = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
        figures["ratio"][part] = memory[-1] / thousand
        rows += [
            (part, f"{size:,}", f"{t:.1f}", f"{m / 2**20:,.0f}")
            for size, t, m in zip(sizes, times, memory, strict=True)
        ]
    slopes = [
        (part, f"{figures['exponent'][part]:.2f}", f"{figures['ratio'][part]:.2f}")
        for part in found
    ]
    text = "\n\n".join([
        table(["", "photos", "s", "peak MiB"], rows),
        table(["", "exponent of time", "peak memory, largest over 1,000"], slopes),
    ])  # fmt: skip
    report("scale", text, figures, json=arguments.json)


def _photos(count: int) -> list[Path]:
    return sorted((SHARED / "data" / "flickr8k" / "Images").glob("*.jpg"))[:count]


def _features(count: int, model: str, folder: Path) -> float:
    from regard.data.features import build_features
    from regard.models.encoders import load_encoder

    encoder = load_encoder(str(SHARED / "models" / "resnet50-imagenet"))
    began = time.perf_counter()
    build_features(_photos(count), encoder, folder)
    return time.perf_counter() - began


def _train(count: int, model: str, folder: Path) -> float:
    """The iterations of one epoch; features come from the usual cache, filled first if need be."""
    from regard.config import make_config
    from regard.data.dataset import read_dataset
    from regard.training.loop import Watch
    from regard.training.run import Listener, train

    whole = read_dataset(SHARED / "data" / "flickr8k")
    judged = whole.split("val")[:20]
    learnt = [photo for photo in whole.photos if photo not in judged][:count]
    photos = (*(replace(photo, split="train") for photo in learnt), *judged)
    config = make_config(
        preset="fast",
        settings=["train.epochs=1"],
        overrides={"encoder.id": str(SHARED / "models" / "resnet50-imagenet")},
    )
    times: list[float] = []
    listener = Listener(
        begin=lambda *_: times.append(time.perf_counter()),
        watch=Watch(iteration=lambda *_: times.append(time.perf_counter())),
    )
    train(replace(whole, photos=photos), config, folder / "run", listener=listener)
    return times[-1] - times[0]


def _caption(count: int, model: str, folder: Path) -> float:
    import regard

    captioner = regard.load(model)
    began = time.perf_counter()
    for _ in captioner.captions(_photos(count)):
        pass
    return time.perf_counter() - began


def _cache(count: int, model: str, folder: Path) -> float:
    """Fill a cache, and read all of it."""
    from regard.data.features import build_features

    originals = [photo.read_bytes() for photo in _photos(500)]
    photos = Numbered(folder, count)
    for i, photo in enumerate(photos):
        photo.write_bytes(originals[i % len(originals)] + i.to_bytes(4, "big"))
    began = time.perf_counter()
    store = build_features(photos, Instant(), folder / "cache", batch_size=8)
    for i in range(0, count, 32):
        store.read(photos[i : i + 32])
    return time.perf_counter() - began


_RUNS = {"features": _features, "train": _train, "caption": _caption, "cache": _cache}

if __name__ == "__main__":
    main()
