"""What each option of training does to the captions: a run with it beside one without.

    python scripts/ablation.py DATA --encoder E --out FOLDER [--seeds 0 1 2] [--only NAME ...]
        [--at-once N] [--set A.B=C ...]

The base is the preset ``fast`` with 8 epochs, judged with a beam of 3. Each option is changed
alone. FOLDER/NAME-SEED are the runs, FOLDER/table.md the best epoch's scores: the mean over the
seeds, and the mean difference from the base of the same seed with its standard deviation. The same
command goes on where it was stopped; what is not finished is not in the table.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BASE = (
    "--preset", "fast", "--set", "decoder.gate=true", "--set", "train.epochs=8",
    "--set", "validation.beam=3",
)  # fmt: skip

OPTIONS: dict[str, tuple[str, ...]] = {
    "base": (),
    "no-label-smoothing": ("train.label_smoothing=0",),
    "no-dropout": ("decoder.dropout=0",),
    "no-gate": ("decoder.gate=false",),
    "no-weight-decay": ("train.weight_decay=0",),
    "one-caption": ("train.grouping=caption", "train.batch_size=160"),
    "constant-rate": ("train.schedule=constant",),
    "attention-penalty": ("train.attention_penalty=0.5",),
    "agreement": ("train.agreement=1",),
    "scheduled-sampling": ("train.scheduled_sampling=0.25",),
    "averaged": ("train.average=0.999",),
    "six-views": ("train.views=6",),
    "six-views-averaged": ("train.views=6", "train.average=0.999"),
}

Scores = Mapping[str, float]


def main() -> None:
    """Train what is missing, then write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--encoder", required=True, help="hub id, folder or file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--at-once", type=int, default=1, help="trainings at a time")
    parser.add_argument("--cache", help="folder of the feature cache")
    parser.add_argument("--set", action="append", default=[], help="a setting of all runs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    given = [arguments.data, "--encoder", arguments.encoder]
    given += ["--cache", arguments.cache] if arguments.cache else []
    wanted = [(name, seed) for seed in arguments.seeds for name in arguments.only]

    def train(job: tuple[str, int]) -> None:
        name, seed = job
        run = arguments.out / f"{name}-{seed}"
        settings = [*arguments.set, *OPTIONS[name], f"seed={seed}"]
        _train(run, *given, *BASE, *(part for s in settings for part in ("--set", s)))
        _write_table(arguments.out, wanted)

    with ThreadPoolExecutor(arguments.at_once) as pool:
        list(pool.map(train, wanted))
    print((arguments.out / "table.md").read_text(encoding="utf-8"))


def _train(run: Path, *arguments: str) -> None:
    resume = ["--resume"] if (run / "settings.json").exists() else []
    command = [sys.executable, "-m", "regard", "train", *arguments, "--out", str(run), *resume]
    log = run.with_name(f"{run.name}.log")
    with log.open("a", encoding="utf-8") as stream:
        if subprocess.run(command, check=False, stdout=stream, stderr=stream).returncode:
            sys.exit(f"The training of {run.name} failed; its last words are in {log}.")
    run.with_name(f"{run.name}.done").touch()


def _write_table(out: Path, wanted: Sequence[tuple[str, int]]) -> None:
    """The table of all runs that are finished."""
    found: dict[str, dict[int, Scores]] = {}
    for name, seed in wanted:
        run = out / f"{name}-{seed}"
        if run.with_name(f"{run.name}.done").exists():
            found.setdefault(name, {})[seed] = _best(run)
    base = found.get("base", {})
    lines = [
        "| option | seeds | BLEU-4 | CIDEr | difference | loss on dev | an epoch, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, by_seed in found.items():
        rows = list(by_seed.values())
        apart = [
            row["CIDEr"] - base[seed]["CIDEr"] for seed, row in by_seed.items() if seed in base
        ]
        difference = "" if name == "base" or not apart else f"{statistics.mean(apart):+.3f}"
        if difference and len(apart) > 1:
            difference += f" ± {statistics.stdev(apart):.3f}"
        means = {key: statistics.mean(row[key] for row in rows) for key in rows[0]}
        lines.append(
            f"| {name} | {len(rows)} | {means['BLEU-4']:.3f} | {means['CIDEr']:.3f} | {difference} "
            f"| {means['val_loss']:.3f} | {means['seconds']:.0f} |"
        )
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _best(run: Path) -> Scores:
    """The scores of the epoch with the best CIDEr, and the median seconds of an epoch."""
    with (run / "log" / "epochs.csv").open(encoding="utf-8", newline="") as stream:
        rows = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(stream)]
    best = max(rows, key=lambda row: row["CIDEr"])
    return {**best, "seconds": statistics.median(row["seconds"] for row in rows)}


if __name__ == "__main__":
    main()
