"""How long a training step of the published Transformer takes beside that of the published LSTM.

    python benchmarks/decoders.py [--runs N] [--device cpu|cuda] [--json OUT]

Decoders as configs/flickr8k-lstm.yaml and configs/flickr8k-transformer.yaml have them: 32 photos of
10 x 10 regions (L 100, D 2048) with 5 captions each, V 2,650, mixed precision. Captions have 7 to
16 words, so 72 % of the places of a batch hold a word: in Flickr8k's batches of photos with
captions of similar length it is 71 %. A step is what training does: loss, gradient with its norm,
AdamW. The two take turns in one process, so the ratio is that of their epochs from the feature
cache.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import elsewhere, medians, options, report, table, take_turns

from regard.build import build_decoder
from regard.config import make_config
from regard.machine import keep_freed_memory
from regard.models.devices import fast_precision, find_device
from regard.training.learner import Learner
from regard.training.loop import clip_gradients

B, K, L, D, V, WORDS = 32, 5, 100, 2048, 2650, 16
PAD, END = 0, 2
CONFIGS = Path(__file__).parents[1] / "configs"
KINDS = ("lstm", "transformer")


def main() -> None:
    """Measure, write."""
    arguments = options(__doc__, runs=30, device=True).parse_args()
    keep_freed_memory()
    device = find_device(arguments.device)
    seconds = take_turns({kind: _step(kind, device) for kind in KINDS}, runs=arguments.runs)
    ratios = [b / a for a, b in zip(*(seconds[kind] for kind in KINDS), strict=True)]
    found = medians(seconds)
    figures = {**found, "ratio": statistics.median(ratios), "runs": arguments.runs}
    rows = [[kind, f"{found[kind] * 1e3:.0f}", f"{min(seconds[kind]) * 1e3:.0f}"] for kind in KINDS]
    text = (
        f"One training step of 32 photos at 320 pixels with their 5 captions, in turn, "
        f"{arguments.runs} times, {fast_precision(device)}: the Transformer takes "
        f"{figures['ratio']:.2f} of the LSTM's time (median of the turns' ratios).\n\n"
        f"{table(['decoder', 'median, ms', 'least, ms'], rows)}"
    )
    report("decoders", text, figures, json=arguments.json, of=elsewhere(device))


def _step(kind: str, device: torch.device) -> Callable[[], None]:
    """A step on random regions and words; the same ones at each call."""
    torch.manual_seed(0)
    config = make_config(file=CONFIGS / f"flickr8k-{kind}.yaml")
    train = config.train
    decoder = build_decoder(config.decoder, vocabulary_size=V, feature_width=D)
    learner = Learner(
        encoder=None, decoder=decoder, pad=PAD, end=END, label_smoothing=train.label_smoothing
    ).to(device)
    optimizer = torch.optim.AdamW(
        learner.parameters(), train.learning_rate, weight_decay=train.weight_decay, fused=True
    )
    regions = torch.rand(B, L, D, device=device).half()  # as the cache has them
    captions = torch.randint(4, V, (B, K, WORDS + 1), device=device)
    for i, caption in enumerate(captions.view(B * K, -1)):
        caption[WORDS + 1 - 7 * i % 10 :] = PAD
    bf16 = fast_precision(device) == "bf16"

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            total, nll = learner(regions, captions)
        (total / (B * K * WORDS)).backward()
        clip_gradients(learner, train.clip)
        optimizer.step()
        optimizer.zero_grad()
        nll.item()  # as the training's log does, which waits for the device

    return step


if __name__ == "__main__":
    main()
