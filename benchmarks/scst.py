"""How long one step of self-critical training takes, and which part of it is the reward.

    python benchmarks/scst.py [--runs N] [--device cpu|cuda] [--json OUT]

32 photos, 5 captions drawn of each, both decoders of the presets: L 49, D 2048, V 3,000. The
weights are random, but every eleventh word drawn ends its caption, the twentieth at the latest, as
it does those of a trained captioner. The references, 5 of each of 2,000 photos, have eleven
random words, some much more frequent than others. A step is drawing, reward, gradient with
its norm, and Adam. The bf16 copy that draws is made anew in every step: the weights have changed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from measuring import elsewhere, medians, options, report, table

from regard.build import build_decoder
from regard.config import make_config
from regard.data.batches import Batch
from regard.machine import keep_freed_memory
from regard.models.decoder import Decoder
from regard.models.devices import fast_precision, find_device
from regard.text.vocabulary import SPECIAL, Vocabulary
from regard.training.learner import Learner
from regard.training.loop import clip_gradients
from regard.training.reward import Reward
from regard.training.scst import SelfCritical

B, K, L, D, V, PHOTOS, WORDS, LONGEST = 32, 5, 49, 2048, 3000, 2000, 11, 19
WANTED = 0.15
"""Most of a step that the reward may take."""

PARTS = ("drawing", "reward", "gradient")


def main() -> None:
    """Measure, write."""
    arguments = options(__doc__, runs=15, device=True).parse_args()
    keep_freed_memory()
    device = find_device(arguments.device)
    precision = fast_precision(device)
    figures: dict[str, Any] = {"precision": precision, "runs": arguments.runs}
    rows = []
    for kind, preset in (("lstm", "fast"), ("transformer", "transformer")):
        found = _measured(preset, device, arguments.runs)
        figures[kind] = found
        whole = sum(found[part] for part in PARTS)
        rows.append(
            [
                kind,
                *(f"{found[part] * 1e3:.1f}" for part in PARTS),
                f"{whole * 1e3:.1f}",
                f"{found['reward'] / whole:.1%}",
                f"{found['words']:.1f}",
            ]
        )
    head = ["ms", *PARTS, "a step", "share of the reward", "words drawn a caption"]
    text = (
        f"One step of self-critical training at B {B}, K {K}, L {L}, D {D}, V {V:,} in "
        f"{precision}; wanted: at most {WANTED:.0%} of it for the reward. Medians of "
        f"{arguments.runs} steps.\n\n{table(head, rows)}"
    )
    report("scst", text, figures, json=arguments.json, of=elsewhere(device))


def _measured(preset: str, device: torch.device, runs: int) -> dict[str, float]:
    """Seconds of each part, and words drawn for a caption."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    vocabulary = Vocabulary(f"w{i}" for i in range(V - len(SPECIAL)))
    config = make_config(preset=preset, overrides={"decoder.dropout": 0.0})
    decoder = build_decoder(config.decoder, vocabulary_size=V, feature_width=D).to(device)
    learner = Learner(
        encoder=None, decoder=decoder, pad=vocabulary.pad, label_smoothing=0.0,
        end=vocabulary.end, forbidden=vocabulary.forbidden,
    )  # fmt: skip
    _end_after(decoder, vocabulary.end)
    common = rng.zipf(1.3, (PHOTOS, K, 64)) % len(vocabulary.words)
    lengths = rng.integers(WORDS - 4, WORDS + 5, (PHOTOS, K))
    references = [
        [[vocabulary.words[i] for i in row[:n]] for row, n in zip(group, ns, strict=True)]
        for group, ns in zip(common, lengths, strict=True)
    ]
    seconds: dict[str, list[float]] = {part: [] for part in PARTS}
    rewarding = Reward(references, {"cider": 1.0})

    def timed_reward(*arguments: Any) -> Any:
        began = time.perf_counter()
        found = rewarding(*arguments)
        seconds["reward"].append(time.perf_counter() - began)
        return found

    teach = SelfCritical(
        learner, vocabulary, timed_reward, samples=K, longest=LONGEST, cross_entropy=0.0,
        precision="auto", seed=0,
    )  # type: ignore[arg-type]  # fmt: skip
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-6, fused=True)
    photos = torch.rand(B, L, D, device=device).half()  # as the cache has them
    indices = tuple(range(B))
    batch = Batch(photos, torch.zeros(B, 1, 2, dtype=torch.long), B, indices, B)
    said = []
    for step in range(runs + 1):
        began = time.perf_counter()
        lesson = teach(batch, step)
        _finish(device)
        taught = time.perf_counter()
        with torch.autocast(device.type, torch.bfloat16, enabled=fast_precision(device) == "bf16"):
            total, _ = learner(photos, lesson.captions, weights=lesson.weights, drawn=True)
        (total / lesson.divisor).backward()
        clip_gradients(learner, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        _finish(device)
        seconds["gradient"].append(time.perf_counter() - taught)
        seconds["drawing"].append(taught - began - seconds["reward"][-1])
        said.append(lesson.words / (B * K) - 1)
    measured = {part: values[1:] for part, values in seconds.items()}
    return {**medians(measured), "words": float(np.mean(said))}


@torch.no_grad()
def _end_after(decoder: Decoder, end: int) -> None:
    """Make the end one word in :data:`WORDS`, on average over random captions."""
    device = decoder.embedding.weight.device
    captions = torch.randint(len(SPECIAL), V, (4, K, WORDS), device=device)
    scores = decoder(torch.rand(4, L, D, device=device), captions)  # (4, K, T, V)
    others = scores.index_fill(-1, torch.tensor(end, device=device), -torch.inf).logsumexp(-1)
    parameters = dict(decoder.named_parameters())
    bias = parameters["bias" if "bias" in parameters else "output.bias"]
    bias[end] -= (scores[..., end] - others).mean() + math.log(WORDS - 1)


def _finish(device: torch.device) -> None:
    finish: Callable[[], None] = getattr(torch, device.type).synchronize
    finish()


if __name__ == "__main__":
    main()
