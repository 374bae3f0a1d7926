"""How long one optimiser step takes, beside the report's equations taken literally.

    python benchmarks/train_step.py [--runs N] [--device cpu|cuda] [--json OUT]

The sizes are the report's: B 32, L 49, D 2048, A 512, N 512, E 300, T 14, V 7,400 and 20,000.
``literal`` is the oracle of the tests in float32, one caption a photo; ``single`` is regard's
training step with one caption a photo, ``grouped`` with five, both in the precision that
``train.precision=auto`` takes here. A step is what training does with a batch: scores, loss,
gradients, their norm, Adam. The arithmetic is counted by ``torch.utils.flop_counter`` in the same
step without compiled functions: 2 m n k for each product of an (m, k) and a (k, n) matrix, nothing
for the rest. The peak is that of one product of square matrices of side 2,048 in the same
precision. Where the time of a grouped step goes is torch's profiler's word, on a CPU. The roofline
sets the products at their peak beside the bytes that a grouped step moves in any form of it
(``_bytes``), at the rate of a copy of 256 MiB.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measuring import elsewhere, medians, options, report, table, take_turns
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracle
from regard.machine import keep_freed_memory
from regard.models.devices import DTYPES, Precision, fast_precision, find_device
from regard.models.lstm import LstmDecoder
from regard.training.learner import Learner
from regard.training.loop import clip_gradients

B, L, D, A, N, E, T, K = 32, 49, 2048, 512, 512, 300, 14, 5
VOCABULARIES = (7_400, 20_000)
WANTED = {"single": 8, "grouped": 16}
"""Times faster than the literal step that a caption is to be."""

PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm"),
    "the recurrence's own work": ("_Recurrence", "_RecurrenceBackward"),
    "the loss's own work": ("_Surprise", "_SurpriseBackward"),
    "copies and casts": ("aten::copy_", "aten::cat"),
    "Adam": ("aten::_fused_adam_",),
    "norm of the gradient": ("aten::dot", "aten::linalg_vector_norm", "aten::mul_"),
}
"""What torch's profiler calls them; the compiled functions are the own work of their callers: on a
processor with a matrix unit, the products of the loop too."""

Step = Callable[[], float]


def main() -> None:
    """Measure, write."""
    parser = options(__doc__, runs=7, device=True)
    arguments = parser.parse_args()
    keep_freed_memory()
    device = find_device(arguments.device)
    figures: dict[str, Any] = {"precision": fast_precision(device), "runs": arguments.runs}
    rows = []
    for vocabulary in VOCABULARIES:
        found = _measured(vocabulary, device, arguments.runs)
        if vocabulary == VOCABULARIES[0]:
            figures |= found
        else:
            figures[str(vocabulary)] = found
        rows += [
            [
                f"{way}, V {vocabulary:,}",
                f"{found[way] * 1e3:.2f}",
                f"{found['literal'] / found[way]:.1f}",
                f"{found['flop'][way] / 1e9:.2f}",
                f"{found['flop'][way] / found[way] / 1e9:,.0f}",
                f"{found['peak'][way] / 1e9:,.0f}",
            ]
            for way in ("literal", "single", "grouped")
        ]
    head = ["a caption", "ms", "times faster", "GFLOP", "GFLOP/s", "peak GFLOP/s"]
    text = (
        f"One optimiser step at B {B}, L {L}, D {D}, A {A}, N {N}, E {E}, T {T}: the literal "
        f"equations in float32, one caption a photo and {K} captions a photo in "
        f"{figures['precision']}; wanted: at least {WANTED['single']} and {WANTED['grouped']} "
        f"times faster. Medians of {arguments.runs} steps in turn.\n\n{table(head, rows)}"
    )
    if device.type == "cpu":
        grouped = _our_step(VOCABULARIES[0], K, device, fast_precision(device))
        figures["parts"] = parts = _parts(grouped)
        shares = [[n, f"{s * 1e3:.1f}", f"{s / sum(parts.values()):.0%}"] for n, s in parts.items()]
        text += f"\n\n{table(['a grouped step, profiled', 'ms', 'share'], shares)}"
    figures["roofline"] = roofline = _roofline(figures, device, arguments.runs)
    text += (
        f"\n\nRoofline of a grouped step at V {VOCABULARIES[0]:,}: "
        f"{roofline['flop'] / 1e9:.0f} GFLOP take {roofline['compute'] * 1e3:.0f} ms at the peak; "
        f"{roofline['bytes'] / 1e9:.2f} GB take {roofline['move'] * 1e3:.0f} ms at the "
        f"{roofline['bandwidth'] / 1e9:.0f} GB/s of a copy. That is "
        f"{roofline['flop'] / roofline['bytes']:.0f} FLOP a byte where the machine needs "
        f"{roofline['flop'] / roofline['compute'] / roofline['bandwidth']:.0f}. The step takes "
        f"{roofline['step'] * 1e3:.0f} ms, {roofline['step'] / roofline['compute']:.2f} times the "
        "higher of the two bounds."
    )
    report("train_step", text, figures, json=arguments.json, of=elsewhere(device))


def _measured(vocabulary: int, device: torch.device, runs: int) -> dict[str, Any]:
    """Seconds, FLOP and peak FLOP/s, the first two a caption."""
    precision = fast_precision(device)
    steps = _steps(vocabulary, device, precision)
    captions = {"literal": B, "single": B, "grouped": B * K}
    # Counted on the CPU: elsewhere a step may be recorded, and what is replayed is not counted.
    cpu = torch.device("cpu")
    counted = steps if device == cpu else _steps(vocabulary, cpu, precision)
    flop = {}
    for way, step in counted.items():
        with FlopCounterMode(display=False) as counter, _in_torch():
            step()
        flop[way] = counter.get_total_flops() / captions[way]
    products = {p: _product(p, device) for p in ("float32", "bf16")}
    seconds = medians(take_turns({**steps, **products}, runs=runs))
    peak = {p: 2 * 2048**3 / seconds[p] for p in products}
    each = {way: seconds[way] / captions[way] for way in steps}
    return {
        **each,
        "ratio_single": each["literal"] / each["single"],
        "ratio_grouped": each["literal"] / each["grouped"],
        "flop": flop,
        "peak": {"literal": peak["float32"], "single": peak[precision], "grouped": peak[precision]},
    }


@contextlib.contextmanager
def _in_torch() -> Iterator[None]:
    """Without compiled functions, whose products nobody counts."""
    before = os.environ.get("REGARD_COMPILER")
    os.environ["REGARD_COMPILER"] = ""
    try:
        yield
    finally:
        del os.environ["REGARD_COMPILER"]
        if before is not None:
            os.environ["REGARD_COMPILER"] = before


def _steps(vocabulary: int, device: torch.device, precision: Precision) -> dict[str, Step]:
    return {
        "literal": _literal_step(vocabulary, device),
        "single": _our_step(vocabulary, 1, device, precision),
        "grouped": _our_step(vocabulary, K, device, precision),
    }


def _roofline(figures: dict[str, Any], device: torch.device, runs: int) -> dict[str, float]:
    """The bounds of a grouped step, in seconds, by arithmetic and by memory."""
    block = torch.zeros(2**26, device=device)  # 256 MiB
    copy = torch.empty_like(block)

    def copied() -> float:
        copy.copy_(block)
        return copy[0].item()

    bandwidth = 2 * block.nbytes / medians(take_turns({"copy": copied}, runs=runs))["copy"]
    captions = B * K
    flop, moved = captions * figures["flop"]["grouped"], _bytes(VOCABULARIES[0])
    return {
        "flop": flop,
        "bytes": moved,
        "bandwidth": bandwidth,
        "compute": flop / figures["peak"]["grouped"],
        "move": moved / bandwidth,
        "step": captions * figures["grouped"],
    }


def _bytes(vocabulary: int) -> float:
    """What a grouped step moves to and from memory at least.

    Of each weight, in float32: Adam reads it, its gradient and two moments and writes three of
    them (28 bytes), the norm reads the gradient (4), which was written (4), and a product's copy of
    it in half the width is made and read (4 + 2 + 2). Of each score of the vocabulary, in half the
    width: written, read and replaced by its gradient by the loss, and read by two products (10).
    """
    weights = sum(p.numel() for p in _decoder(vocabulary).parameters())
    return 44.0 * weights + 10.0 * B * K * T * vocabulary


def _decoder(vocabulary: int) -> LstmDecoder:
    torch.manual_seed(0)
    return LstmDecoder(
        vocabulary_size=vocabulary, feature_width=D, embedding_width=E, hidden_width=N,
        attention_width=A,
    )  # fmt: skip


def _literal_step(vocabulary: int, device: torch.device) -> Step:
    captioner = oracle.LiteralCaptioner(_decoder(vocabulary)).to(device)
    features = torch.rand(B, D, 7, 7, device=device)
    captions = torch.randint(4, vocabulary, (B, T + 1), device=device)
    optimizer = torch.optim.Adam(captioner.parameters(), 1e-3, fused=True)

    def step() -> float:
        scores, _ = captioner(features, captions[:, :-1])
        loss = F.cross_entropy(scores.flatten(0, 1), captions[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(captioner.parameters(), 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def _our_step(vocabulary: int, each: int, device: torch.device, precision: str) -> Step:
    decoder = _decoder(vocabulary)
    learner = Learner(encoder=None, decoder=decoder, pad=0, end=2, label_smoothing=0.0).to(device)
    photos = torch.rand(B, L, D, device=device).half()  # as the cache has them
    captions = torch.randint(4, vocabulary, (B, each, T + 1), device=device)
    optimizer = torch.optim.Adam(learner.parameters(), 1e-3, fused=True)

    def step() -> float:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            total, nll = learner(photos, captions)
        (total / (B * each * T)).backward()
        loss = nll.item()
        clip_gradients(learner, 5.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss

    return step


def _parts(step: Step, steps: int = 5) -> dict[str, float]:
    """Seconds of a step in each of :data:`PARTS`, and in the rest."""
    step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(steps):
            step()
    names = {name: part for part, names in PARTS.items() for name in names}
    parts = dict.fromkeys([*PARTS, "the rest"], 0.0)
    for event in profile.key_averages():
        parts[names.get(event.key, "the rest")] += event.self_cpu_time_total * 1e-6 / steps
    return parts


def _product(precision: str, device: torch.device) -> Step:
    dtype = DTYPES[precision]
    a, b = torch.rand(2, 2048, 2048, device=device).to(dtype)
    return lambda: (a @ b)[0, 0].item()


if __name__ == "__main__":
    main()
