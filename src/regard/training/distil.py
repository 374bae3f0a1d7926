"""A small encoder learns to see what a large one sees.

The student is to give the teacher's regions, place by place, through a linear map that is thrown
away afterwards (the hints of Romero et al., "FitNets", 2015, section 2.2). With f a value of the
teacher, m and s the mean and the deviation of its channel over the training photos::

    t    = (f - m) / s
    loss = mean over regions and channels of (W a + b - t)^2

so that every channel counts, and at the full size of the photos a loss of 1 is that of a student
which sees nothing. Both look at the same views of each photo, and the teaching is long (Beyer et
al., "Knowledge distillation: a good teacher is patient and consistent", 2022). The teacher's
regions come from the feature cache: it looks at each view once. The student's view has other
colours each time, which the teacher's regions, taken from the view as it is, tell it to see
through.

Small photos teach most of it, several times as fast: the student may see them smaller at first
(Howard, "fast.ai DAWNBench", 2018; Tan and Le, "EfficientNetV2", 2021, section 4). What the teacher
saw is then averaged to the student's coarser grid.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from regard.data.batches import CachedRegions, PreparedPhotos, read_ahead
from regard.images import Preparation
from regard.models.devices import fast_precision
from regard.models.resnet import ResNet
from regard.training.loop import TrainingError, read_state, write_state


@dataclass(frozen=True)
class Lessons:
    """How a student is taught."""

    epochs: int
    """Passes over the photos, one view of each at a time."""
    views: int
    """Views of each photo."""
    batch_size: int = 64
    """Photos in a batch."""
    learning_rate: float = 2e-3
    """Highest rate of AdamW; it rises over a fortieth of the iterations and falls as a cosine."""
    weight_decay: float = 0.05
    """Of the convolutions."""
    colours: float = 0.2
    """Deviation of the factor and of the shift of each colour of a photo, after preparation."""
    growth: tuple[tuple[float, int], ...] = ()
    """Until which part of the epochs, in 0..1, photos have which side in pixels; in the rest they
    are as the student's preparation has them."""
    seed: int = 0
    """Of weights, order, views and colours."""


class Class(NamedTuple):
    """Photos with what the teacher sees of them."""

    paths: Sequence[Path]
    """Which."""
    preparation: Preparation
    """As the student takes them."""
    regions: CachedRegions
    """The teacher's, ``(B, L, D)``, of the same views, over the grid that the student has too."""

    @property
    def size(self) -> int:
        """How many."""
        return len(self.paths)

    def photos(self, side: int | None) -> PreparedPhotos:
        """The photos, perhaps smaller than the student takes them in the end."""
        size = self.preparation.size if side is None else (side, side)
        return PreparedPhotos(replace(self.preparation, size=size), self.paths)


class Marks(NamedTuple):
    """How a student does after an epoch."""

    epoch: int
    """Epochs that are done."""
    loss: float
    """Mean loss of the epoch; 1 is seeing nothing of photos of full size, less of smaller ones."""
    explained: float
    """Share of the variance of the teacher's regions of the judged photos that the student has, at
    the side of the epoch's photos."""
    seconds: float
    """The epoch took."""


def distil(
    student: ResNet,
    learnt: Class,
    judged: Class,
    lessons: Lessons,
    *,
    device: torch.device,
    state_file: Path,
    on_epoch: Callable[[Marks], None],
) -> None:
    """Teach a student, in place; goes on from the state of the last finished epoch.

    Args:
        student: with as many regions as the teacher; moved to the device.
        learnt: photos to learn from, with all views.
        judged: photos that judge, whole.
        lessons: how.
        device: where.
        state_file: where the state after each epoch is.
        on_epoch: told after each epoch.

    Raises:
        TrainingError: the loss is not a finite number, or the state is damaged.
    """
    torch.manual_seed(lessons.seed)
    mean, deviation = (x.to(device) for x in _statistics(learnt))  # (D,)
    student.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    head = nn.Linear(student.width, len(mean)).to(device)
    optimizer = torch.optim.AdamW(_groups(student, head, lessons), fused=True)
    steps = lessons.epochs * -(-learnt.size // lessons.batch_size)
    first = 0
    if state_file.exists():
        state = read_state(state_file, device)
        student.load_state_dict(state["student"])
        head.load_state_dict(state["head"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epochs"]
    precise = fast_precision(device) != "bf16"

    grid = student.grid(*learnt.preparation.size)

    def error(photos: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squares of what the student misses, and of all there is."""
        target = (regions.to(device).float() - mean) / deviation  # (B, L, D)
        with torch.autocast(device.type, torch.bfloat16, enabled=not precise):
            seen = student(photos.to(device, memory_format=torch.channels_last))  # (B, A, h, w)
            guess = head(seen.flatten(2).transpose(1, 2))  # (B, h w, D)
        if (smaller := seen.shape[2:]) != grid:
            target = target.transpose(1, 2).reshape(len(target), -1, *grid)  # (B, D, H, W)
            target = functional.adaptive_avg_pool2d(target, smaller).flatten(2).transpose(1, 2)
        return (guess.float() - target).square().mean(), target.square().mean()

    for epoch in range(first, lessons.epochs):
        began = time.perf_counter()
        side = next((s for until, s in lessons.growth if epoch < until * lessons.epochs), None)
        student.train()
        total, step = 0.0, epoch * (steps // lessons.epochs)
        for photos, regions in _batches(learnt, lessons, epoch, side):
            for group in optimizer.param_groups:
                group["lr"] = lessons.learning_rate * _rate(step, steps)
            torch.manual_seed(lessons.seed * steps + step)
            loss, _ = error(_recoloured(photos, lessons.colours), regions)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(value := loss.item()):
                raise TrainingError(
                    f"While the student was taught, the loss became {value} at iteration {step}: "
                    "it must be a finite number. Begin again with a smaller learning rate."
                )
            total += value * len(photos)
            step += 1
        student.eval()
        with torch.no_grad():
            squares = [
                torch.stack(error(*pair)) * len(pair[0])
                for pair in _in_order(judged, lessons, side)
            ]
        missed, whole = torch.stack(squares).sum(0).tolist()
        write_state(
            {
                "student": student.state_dict(),
                "head": head.state_dict(),
                "optimizer": optimizer.state_dict(),
                "epochs": epoch + 1,
            },
            state_file,
        )
        seconds = time.perf_counter() - began
        on_epoch(Marks(epoch + 1, total / learnt.size, 1 - missed / whole, seconds))
    student.eval()


def _statistics(learnt: Class, photos: int = 1024) -> tuple[Tensor, Tensor]:
    """Mean and deviation of each channel of the teacher, ``(D,)``, over the first photos."""
    sums = squares = torch.zeros(())
    count = 0
    for i in range(0, min(photos, learnt.size), 64):
        regions = learnt.regions.read(range(i, min(i + 64, learnt.size))).double().flatten(0, 1)
        sums, squares = sums + regions.sum(0), squares + regions.square().sum(0)
        count += len(regions)
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp_min(1e-8).sqrt()
    return mean.float(), deviation.float()


def _groups(student: ResNet, head: nn.Module, lessons: Lessons) -> list[dict[str, object]]:
    weights = [*student.parameters(), *head.parameters()]
    return [
        {"params": [p for p in weights if p.ndim > 1], "weight_decay": lessons.weight_decay},
        {"params": [p for p in weights if p.ndim <= 1], "weight_decay": 0.0},
    ]


def _rate(step: int, steps: int) -> float:
    warm = max(1, steps // 40)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _recoloured(photos: Tensor, deviation: float) -> Tensor:
    """Photos ``(B, 3, H, W)`` with each colour scaled and shifted at random."""
    factor, shift = deviation * torch.randn(2, len(photos), 3, 1, 1)
    recoloured: Tensor = photos * (1 + factor) + shift
    return recoloured


Pairs = Iterator[tuple[Tensor, Tensor]]


def _batches(learnt: Class, lessons: Lessons, epoch: int, side: int | None) -> Pairs:
    """The photos in the order of an epoch, one view of each; a function of seed and epoch."""
    rng = np.random.default_rng([lessons.seed, epoch])
    order = rng.permutation(learnt.size).tolist()
    views = rng.integers(lessons.views, size=learnt.size).tolist()
    size = lessons.batch_size
    batches = [order[i : i + size] for i in range(0, len(order), size)]
    return _read_ahead(learnt, batches, views, side)


def _in_order(judged: Class, lessons: Lessons, side: int | None) -> Pairs:
    size = lessons.batch_size
    batches = [range(i, min(i + size, judged.size)) for i in range(0, judged.size, size)]
    return _read_ahead(judged, batches, [0] * judged.size, side)


def _read_ahead(
    known: Class, batches: Sequence[Sequence[int]], views: Sequence[int], side: int | None
) -> Pairs:
    """Photos and regions of batches."""
    photos = known.photos(side)

    def read(batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        seen = [views[i] for i in batch]
        return photos.read(batch, seen), known.regions.read(batch, seen)

    return read_ahead(map(read, batches))
