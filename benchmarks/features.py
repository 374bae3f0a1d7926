"""Photos a second from JPEG files to the feature cache, beside the encoder and decoding alone.

    python benchmarks/features.py [--photos N] [--runs N] [--json OUT]

The bare encoder runs on photos that are prepared already: each of its settings with all threads on
one batch, and in lanes with one thread a batch. ``ratio`` is the cache's rate over the best of
those.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import SHARED, elsewhere, medians, options, report, table, take_turns
from torch import Tensor

from regard.data.features import build_features
from regard.images import open_photo
from regard.models.encoders import Encoder, load_encoder
from regard.models.fast import WORTH_COMPILING
from regard.models.lanes import lanes

BATCH = 8


class Prepared:
    """An encoder whose fast form is there already, as in a job of many photos."""

    def __init__(self, encoder: Encoder, encode: Callable[[Tensor], Tensor]) -> None:
        self.preparation = encoder.preparation
        self.describe = encoder.describe
        self.fast_precision = encoder.fast_precision
        self._encode = encode

    def fast(self, precision: str, **_: int) -> Callable[[Tensor], Tensor]:
        """The form that is there."""
        return self._encode


def main() -> None:
    """Measure, print, and write the section of the page."""
    parser = options(__doc__, runs=3)
    parser.add_argument("--photos", type=int, default=512)
    arguments = parser.parse_args()

    encoder = load_encoder(str(SHARED / "models" / "resnet50-imagenet"))
    files = sorted((SHARED / "data" / "flickr8k" / "Images").glob("*.jpg"))[: arguments.photos]
    some = np.stack([encoder.preparation(open_photo(file)) for file in files[:64]])
    batches = torch.from_numpy(some).split(BATCH)  # of (B, 3, height, width)
    turns = -(-len(files) // len(some))
    precision = encoder.fast_precision()

    def one_by_one(encode: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: [encode(batch) for _ in range(turns) for batch in batches]

    def in_lanes(encode: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        def run() -> None:
            with lanes() as threads:
                for done in [threads.submit(encode, b) for _ in range(turns) for b in batches]:
                    done.result()

        return run

    forms = {
        f"{precision}, uncompiled": encoder.fast(precision),
        f"{precision}, compiled": encoder.fast(precision, photos=WORTH_COMPILING),
        "float32, uncompiled": encoder.fast("float32"),
    }
    ways: dict[str, Callable[[], object]] = {}
    for name, encode in forms.items():
        ways[f"encoder, {name}, all threads on a batch"] = one_by_one(encode)
        ways[f"encoder, {name}, a thread a batch"] = in_lanes(encode)
    ways["decoding"] = lambda: _decode(encoder, files)
    for kind in ("uncompiled", "compiled"):
        made = Prepared(encoder, forms[f"{precision}, {kind}"])
        ways[f"features, {kind}"] = lambda made=made: _fill(made, files)
    seconds = medians(take_turns(ways, runs=arguments.runs))
    counts = dict.fromkeys(ways, turns * len(some)) | {
        name: len(files) for name in ways if not name.startswith("encoder")
    }
    rates = {name: counts[name] / s for name, s in seconds.items()}

    ours = max(rate for name, rate in rates.items() if name.startswith("features"))
    best = max(rate for name, rate in rates.items() if name.startswith("encoder"))
    errors = {name: _error(encoder, encode, batches) for name, encode in forms.items()}
    figures: dict[str, Any] = {
        "photos_per_second": rates,
        "relative_error": errors,
        "ratio": ours / best,
    }
    lines = [(name, f"{rate:.1f}") for name, rate in rates.items()]
    text = "\n\n".join([
        f"{len(files)} photos of Flickr8k, ResNet-50, {torch.get_num_threads()} threads.",
        table(["", "photos/s"], lines),
        table(
            ["difference from float32, relative", "all values", "mean over the regions"],
            [(name, f"{e['all']:.4f}", f"{e['mean']:.4f}") for name, e in errors.items()],
        ),
        f"From files to the cache at {figures['ratio']:.2f} of the encoder's best rate.",
    ])  # fmt: skip
    report("features", text, figures, json=arguments.json, of=elsewhere(torch.device("cpu")))


def _decode(encoder: Encoder, files: list[Path]) -> None:
    with lanes() as threads:
        for _ in threads.map(lambda file: encoder.preparation(open_photo(file)), files):
            pass


def _fill(encoder: Prepared, files: list[Path]) -> None:
    root = Path(tempfile.mkdtemp())
    try:
        build_features(files, encoder, root, batch_size=BATCH)
    finally:
        shutil.rmtree(root)


def _error(
    encoder: Encoder, encode: Callable[[Tensor], Tensor], batches: tuple[Tensor, ...]
) -> dict[str, float]:
    """Norm of the difference from float32 over the norm: of all values, of each photo's mean."""
    found = torch.cat([encode(batch) for batch in batches])  # (B, L, D)
    right = torch.cat([encoder(batch) for batch in batches])
    means = found.mean(dim=1), right.mean(dim=1)  # (B, D)
    return {
        "all": float((found - right).norm() / right.norm()),
        "mean": float((means[0] - means[1]).norm() / means[1].norm()),
    }


if __name__ == "__main__":
    main()
