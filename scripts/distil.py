"""Teach a small ResNet what a large encoder sees, from random weights: the eyes of regard-small.

    python scripts/distil.py DATA --teacher ENCODER --out FOLDER [--epochs N] [--channels A B C D]

FOLDER/encoder is a folder that every command takes as --encoder; FOLDER/marks.csv has a line an
epoch. The teacher's regions of some views of each training photo go to the feature cache first.
The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
from pathlib import Path

import torch

from regard.data.batches import CachedRegions
from regard.data.dataset import read_dataset
from regard.data.features import build_features, build_views
from regard.images import VIEWS, Preparation
from regard.models.devices import find_device
from regard.models.encoders import load_encoder
from regard.models.processors import ImageStatistics
from regard.models.resnet import ResNet
from regard.models.sources import write_resnet
from regard.training.distil import Class, Lessons, Marks, distil

GROWTH = ((0.7, 128), (0.9, 160))
"""Most epochs see photos of 128 pixels, then some of 160, the last those of the teacher's size."""


def main() -> None:
    """Cache, teach, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=52)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--channels", type=int, nargs=4, default=(32, 96, 192, 384))
    parser.add_argument("--views", type=int, default=6, help=f"at most {len(VIEWS)}")
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--device", default="auto")
    arguments = parser.parse_args()

    dataset = read_dataset(arguments.data)
    learnt, judged = ([p.path for p in dataset.split(name)] for name in ("train", "val"))
    teacher = load_encoder(arguments.teacher)
    cache = arguments.cache
    whole = build_features([*learnt, *judged], teacher, cache, on_message=print)
    others = build_views(learnt, teacher, cache, views=arguments.views, on_message=print)

    statistics = ImageStatistics()
    size = teacher.preparation.size
    preparation = Preparation(size=size, mean=statistics.mean, std=statistics.std)
    torch.manual_seed(arguments.seed)
    student = ResNet(depth=arguments.depth, channels=tuple(arguments.channels), patches=True)
    if student.grid(*size) != teacher.grid:
        parser.error(f"the teacher's grid is {teacher.grid}, the student's {student.grid(*size)}")
    lessons = Lessons(
        epochs=arguments.epochs, views=arguments.views, learning_rate=arguments.rate,
        growth=GROWTH, seed=arguments.seed,
    )  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    marks_file = arguments.out / "marks.csv"

    def on_epoch(marks: Marks) -> None:
        new = not marks_file.exists()
        with marks_file.open("a", newline="") as stream:
            writer = csv.writer(stream)
            if new:
                writer.writerow(Marks._fields)
            writer.writerow(marks)
        print(
            f"epoch {marks.epoch} of {lessons.epochs}: loss {marks.loss:.4f}, "
            f"explained {marks.explained:.4f}, {marks.seconds:.0f} s",
            flush=True,
        )

    distil(
        student,
        Class(learnt, preparation, CachedRegions([whole, *others], learnt)),
        Class(judged, preparation, CachedRegions([whole], judged)),
        lessons,
        device=find_device(arguments.device),
        state_file=arguments.out / "state.pt",
        on_epoch=on_epoch,
    )
    write_resnet(arguments.out / "encoder", student, statistics)
    record = {
        "teacher": teacher.describe(),
        "data": f"{dataset.name}, {len(learnt)} photos, {lessons.views} views of each",
        "lessons": vars(lessons),
        "channels": list(student.channels),
        "parameters": sum(p.numel() for p in student.parameters()),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }
    (arguments.out / "record.json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
