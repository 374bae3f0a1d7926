"""How many captions a second greedy and beam search write from cached features.

    python benchmarks/search.py [--runs N] [--device cpu|cuda] [--json OUT]

The decoder has the report's sizes (D 2048, A 512, N 512, E 300, V 7,400) and random weights, and
never ends a caption by itself, so that each has exactly 12 words. ``literal`` is a plain beam
search over the oracle of the tests, one photo and one row at a time, in float32. In float32 the
captions of both must be equal; ``ratio`` is of the precision that this machine is fastest in.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from measuring import elsewhere, medians, options, report, table, take_turns
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import oracle
from regard.models.devices import Precision, fast_precision, find_device
from regard.models.lstm import LstmDecoder
from regard.search import Rules, beam_search

L, D, V, WORDS = 49, 2048, 7_400, 12
BATCHES = (1, 16, 128)
WIDTHS = {"greedy": 1, "beam 5": 5}
LITERAL_PHOTOS = 2
"""Photos that the literal search captions in a run: each costs it the same."""
RULES = Rules(start=1, end=2, forbidden=(0, 1, 3), max_length=WORDS)


def main() -> None:
    """Measure, compare, write."""
    parser = options(__doc__, runs=5, device=True)
    arguments = parser.parse_args()
    device = find_device(arguments.device)
    torch.manual_seed(0)
    decoder = LstmDecoder(vocabulary_size=V, feature_width=D)
    with torch.no_grad():
        decoder.output.bias[RULES.end] = -20.0
        decoder.output.weight *= 8  # so that candidates are far enough apart to be the same
    decoder = decoder.eval().to(device)
    literal = oracle.LiteralCaptioner(decoder).to(device)
    regions = torch.rand(max(BATCHES), L, D, device=device)

    precisions = list(dict.fromkeys(("float32", fast_precision(device))))
    figures: dict[str, Any] = {"words": WORDS, "runs": arguments.runs}
    rows = []
    for name, width in WIDTHS.items():
        found = _measured(decoder, literal, regions, width, precisions, arguments.runs)
        figures[name.replace(" ", "_")] = found
        for precision in precisions:
            rates = {**found, **found[precision]}
            columns = ("literal", *map(str, BATCHES), "ratio")
            rows.append([f"{name}, {precision}", *(f"{rates[k]:,.1f}" for k in columns)])
    figures["ratio"] = min(figures[n.replace(" ", "_")][precisions[-1]]["ratio"] for n in WIDTHS)
    head = ["captions/s", "literal", *(f"batch {b}" for b in BATCHES), "times faster"]
    text = (
        f"Captions of {WORDS} words from cached features at D {D}, V {V:,}; the literal search "
        "takes one photo and one row at a time, in float32. The last column is batch "
        f"{BATCHES[-1]} to literal. Medians of {arguments.runs} runs in turn.\n\n"
        f"{table(head, rows)}"
    )
    report("search", text, figures, json=arguments.json, of=elsewhere(device))


def _measured(
    decoder: LstmDecoder,
    literal: oracle.LiteralCaptioner,
    regions: Tensor,
    width: int,
    precisions: Sequence[Precision],
    runs: int,
) -> dict[str, Any]:
    """Captions a second of each precision and batch size and of the literal search."""
    speakers = {precision: decoder.fast(precision) for precision in precisions}

    def ours(precision: Precision, photos: int) -> list[tuple[int, ...]]:
        speaker = speakers[precision]
        with torch.inference_mode():
            state = speaker.start(regions[:photos])
        found = beam_search(
            speaker.step, state, photos, rules=RULES, width=width, at_once=speaker.search
        )
        return [best[0].ids for best in found]

    def plain() -> list[tuple[int, ...]]:
        return [_literal_search(literal, r, width) for r in regions[:LITERAL_PHOTOS]]

    if ours("float32", LITERAL_PHOTOS) != plain():
        sys.exit("The two searches write different captions: one of them is wrong.")
    ways = {f"{p} {b}": lambda p=p, b=b: ours(p, b) for p in precisions for b in BATCHES}
    seconds = medians(take_turns({**ways, "literal": plain}, runs=runs))
    slow = LITERAL_PHOTOS / seconds["literal"]
    found: dict[str, Any] = {"literal": slow}
    for p in precisions:
        rates = {str(b): b / seconds[f"{p} {b}"] for b in BATCHES}
        found[p] = {**rates, "ratio": rates[str(BATCHES[-1])] / slow}
    return found


@torch.inference_mode()
def _literal_search(model: oracle.LiteralCaptioner, regions: Tensor, width: int) -> tuple[int, ...]:
    """The best caption of a photo ``(L, D)``, by the textbook: every beginning on its own."""
    features = regions.t().reshape(1, D, 7, 7)
    mean = regions.mean(0, keepdim=True)
    h = torch.tanh(mean @ model.w_h0.t() + model.b_h0)
    c = mean @ model.w_c0.t() + model.b_c0
    beginnings = [(0.0, (RULES.start,), h, c)]
    for t in range(WORDS):
        longer = []
        for total, ids, h, c in beginnings:
            context, _ = model.attend(features, h)
            joined = torch.cat([model.embedding[ids[-1]].unsqueeze(0), h, context], dim=-1)
            i, f, o, new = (joined @ model.w.t() + model.b).chunk(4, dim=-1)
            after = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(new)
            state = torch.sigmoid(o) * torch.tanh(after)
            scores = state @ model.w_out.t() + model.b_out
            scores[:, [*RULES.forbidden, *([RULES.end] if t == 0 else [])]] = -torch.inf
            best = scores.log_softmax(-1)[0].topk(width)
            for value, word in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                longer.append((total + value, (*ids, word), state, after))
        beginnings = sorted(longer, key=lambda b: -b[0])[:width]
    return beginnings[0][1][1:]


if __name__ == "__main__":
    main()
