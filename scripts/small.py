"""Make regard-small, the captioner in the box, from random weights.

    python scripts/small.py DATA --teacher ENCODER --out FOLDER [--epochs N]

Three trainings: an encoder learns what the teacher sees (scripts/distil.py), a decoder learns to
caption by it, and both learn together. Then the weights are rounded to bfloat16, scored, and
written with their card to FOLDER/regard-small; with --install to the package too. The same command
goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from string import Template
from typing import Any

from safetensors.torch import load_file, save_file

import regard
from regard.card import CARE
from regard.checkpoint import IN_THE_BOX
from regard.files import hash_file, replaced_folder, write_json
from regard.machine import describe_machine
from regard.models.hub import WEIGHTS
from regard.training.log import read_log

HERE = Path(__file__).parent
CONFIGS = HERE.parent / "configs"
SEARCHES = {"beam 3": (), "beam 5, no repeat 2": ("--beam", "5", "--no-repeat", "2")}
SCORES = ("BLEU-1", "BLEU-4", "METEOR", "ROUGE-L", "CIDEr")
OTHERS = (
    "| LSTM on ResNet-50, 224 pixels, beam 3 | 0.626 | 0.216 | 0.208 | 0.468 | 0.533 | 12.3% |",
    "| LSTM on ResNet-50, 320 pixels, SCST, beam 5, no repeat 2 "
    "| 0.659 | 0.237 | 0.204 | 0.474 | 0.580 | 0.0% |",
    "| one person against the other four | 0.644 | 0.218 | 0.257 | 0.496 | 0.832 | 2.1% |",
)
PARTS = {
    "student": "the encoder sees what the teacher sees",
    "decoder": "the decoder captions by it",
    "whole": "both together",
}
STEPS = (
    ("decoder", None, "small-decoder.yaml"),
    ("whole", "decoder", "small-whole.yaml"),
)
"""Each training, the one that it begins with, and its settings."""


def main() -> None:
    """Teach, train, round, score, describe."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data")
    parser.add_argument("--teacher", required=True, help="a ResNet-50: hub id, folder or file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", default="52", help="of the distillation")
    parser.add_argument("--cache", help="folder of the feature cache")
    parser.add_argument("--install", action="store_true", help="into the package")
    arguments = parser.parse_args()
    out = arguments.out
    cache = ["--cache", arguments.cache] if arguments.cache else []
    student = out / "student"
    if not (student / "record.json").exists():
        _run(
            sys.executable, HERE / "distil.py", arguments.data, "--teacher", arguments.teacher,
            "--out", student, "--epochs", arguments.epochs, *cache,
        )  # fmt: skip
    for name, before, settings in STEPS:
        run = out / name
        begun = ("--encoder", student / "encoder") if before is None else ("--init", out / before)
        resume = ("--resume",) if (run / "settings.json").exists() else ()
        _regard(
            "train", arguments.data, *begun, "--config", CONFIGS / settings, "--out", run,
            *cache, *resume,
        )  # fmt: skip
    box = out / regard.DEFAULT_MODEL
    _round(out / STEPS[-1][0] / "model", box)
    evaluated = {}
    for name, search in SEARCHES.items():
        file = out / f"{name.replace(',', '').replace(' ', '-')}.json"
        _regard("evaluate", arguments.data, "--model", box, *search, *cache, "--json", file)
        evaluated[name] = json.loads(file.read_text())
    _describe(box, evaluated, out)
    if arguments.install:
        with replaced_folder(IN_THE_BOX) as beside:
            shutil.copytree(box, beside, dirs_exist_ok=True)


def _round(model: Path, box: Path) -> None:
    """A model folder with its matrices in bfloat16, which decoder and encoder compute in."""
    tensors = load_file(model / WEIGHTS)
    rounded = {
        name: value.bfloat16() if value.is_floating_point() and value.ndim > 1 else value
        for name, value in tensors.items()
    }
    with replaced_folder(box) as beside:
        shutil.copytree(model, beside, dirs_exist_ok=True)
        save_file(rounded, beside / WEIGHTS)
        (beside / WEIGHTS).chmod(0o644)
        described = json.loads((beside / "config.json").read_text())
        # The encoder is in the folder; where it was made is nobody's business.
        described["encoder"]["id"] = described["settings"]["encoder"]["id"] = regard.DEFAULT_MODEL
        described["settings"].pop("captioner", None)
        described["weights"] = hash_file(beside / WEIGHTS)
        write_json(beside / "config.json", described)


def _describe(box: Path, evaluated: dict[str, dict[str, Any]], out: Path) -> None:
    """Scores into config.json, and the card."""
    described = json.loads((box / "config.json").read_text())
    first, *_ = evaluated.values()
    settings = first["settings"]
    measured = {"split": settings["split"], "beam": settings["decoding"]["beam"]}
    write_json(box / "config.json", described | {"scores": measured | first["scores"]})
    lines = [
        f"| regard-small, {name} | "
        + " | ".join(f"{found['scores'].get(score, float('nan')):.3f}" for score in SCORES)
        + f" | {found['diagnosis']['repeated']:.1%} |"
        for name, found in evaluated.items()
    ]
    table = "\n".join([*lines, *OTHERS])
    hours, rows = 0.0, []
    for name, columns in (("student", "marks.csv"), *((n, "log/epochs.csv") for n, *_ in STEPS)):
        epochs = read_log(out / name / columns)
        seconds = sum(row["seconds"] for row in epochs)
        hours += seconds / 3600
        rows.append(f"| {PARTS[name]} | {len(epochs)} | {seconds / 60:.0f} min |")
    machine = describe_machine()
    known = json.loads((out / "student" / "record.json").read_text())
    processor, cores = machine["machine"]["processor"], machine["machine"]["cores"]
    card = Template((HERE / "small-card.md").read_text(encoding="utf-8")).substitute(
        parameters=f"{_parameters(box) / 1e6:.1f}",
        megabytes=f"{(box / WEIGHTS).stat().st_size / 1e6:.1f}",
        encoder=f"{known['parameters'] / 1e6:.1f}",
        channels=", ".join(map(str, known["channels"])),
        measured=f"{settings['data']}, {settings['split']}, {settings['number_of_photos']} photos",
        heads=" | ".join((*SCORES, "repeated")),
        rule="---|" * (len(SCORES) + 2),
        scores=table,
        trainings="\n".join(rows),
        hours=f"{hours:.1f}",
        machine=f"{cores} cores ({processor}), torch {machine['versions']['torch']}",
        explained=f"{read_log(out / 'student' / 'marks.csv')[-1]['explained']:.0%}",
        care=CARE,
    )
    (box / "README.md").write_text(card, encoding="utf-8")


def _parameters(box: Path) -> int:
    return sum(value.numel() for value in load_file(box / WEIGHTS).values())


def _regard(*arguments: object) -> None:
    _run(Path(sys.executable).with_name("regard"), *arguments)


def _run(*command: object) -> None:
    if code := subprocess.run([*map(str, command)], check=False).returncode:
        sys.exit(code)


if __name__ == "__main__":
    main()
