"""A student learns a teacher's regions: it does learn them, goes on where it stopped, is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from regard.data.batches import CachedRegions
from regard.data.features import build_features, build_views
from regard.images import VIEWS, Preparation
from regard.models.encoders import Encoder, encoder_from_description, load_encoder
from regard.models.processors import ImageStatistics
from regard.models.resnet import ResNet
from regard.models.sources import write_resnet
from regard.training.distil import Class, Lessons, Marks, distil

SIDE = 64
LESSONS = Lessons(epochs=4, views=2, batch_size=8, learning_rate=1e-2)
CPU = torch.device("cpu")


def slim(seed: int) -> ResNet:
    torch.manual_seed(seed)
    return ResNet(depth=18, channels=(8, 8, 12, 16))


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Class, Class]:
    """Photos of two colours each, and what a random ResNet sees of two views of them."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    paths = []
    for i in range(40):
        pixels = np.repeat(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8), 32, axis=0)
        Image.fromarray(np.repeat(pixels, 32, axis=1)).save(folder / f"{i}.png")
        paths.append(folder / f"{i}.png")
    torch.manual_seed(1)
    teacher = Encoder(
        id="teacher", backbone=ResNet(depth=18, channels=(16, 16, 16, 24)),
        preparation=Preparation((SIDE, SIDE)), frozen=True, precision="float32",
    )  # fmt: skip
    whole = build_features(paths, teacher, folder / "cache")
    others = build_views(paths, teacher, folder / "cache", views=2)
    prepared = Preparation((SIDE, SIDE))

    def some(chosen: list[Path]) -> Class:
        return Class(chosen, prepared, CachedRegions([whole, *others], chosen))

    return some(paths[:32]), some(paths[32:])


def taught(
    classes: tuple[Class, Class], lessons: Lessons, state: Path, student: ResNet | None = None
) -> tuple[ResNet, list[Marks]]:
    marks: list[Marks] = []
    student = student or slim(0)
    distil(student, *classes, lessons, device=CPU, state_file=state, on_epoch=marks.append)
    return student, marks


def test_a_student_learns_what_the_teacher_sees(classes, tmp_path):
    lessons = replace(LESSONS, epochs=20)
    student, marks = taught(classes, lessons, tmp_path / "state.pt")
    assert [m.epoch for m in marks] == list(range(1, 21))
    assert marks[-1].loss < 0.7 * marks[0].loss
    assert marks[-1].explained > 0.2  # of photos that it was not taught
    assert not student.training


def test_going_on_is_as_not_having_stopped(classes, tmp_path):
    whole, marks = taught(classes, LESSONS, tmp_path / "whole.pt")

    class Killed(Exception):
        pass

    def kill(mark: Marks) -> None:
        if mark.epoch == 2:
            raise Killed

    state = tmp_path / "state.pt"
    with pytest.raises(Killed):
        distil(slim(0), *classes, LESSONS, device=CPU, state_file=state, on_epoch=kill)
    again, rest = taught(classes, LESSONS, state, slim(5))  # its own weights do not matter any more
    assert [m[:3] for m in rest] == [m[:3] for m in marks[2:]]
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_small_photos_come_first_and_teach(classes, tmp_path):
    """A student of patches that sees quarters of the photos at first, with one region of each."""
    torch.manual_seed(0)
    student = ResNet(depth=18, channels=(8, 8, 12, 16), patches=True)
    seen: list[tuple[int, ...]] = []
    student.register_forward_hook(
        lambda _, photos, out: seen.append((*photos[0].shape[2:], *out.shape[2:]))
    )
    lessons = replace(LESSONS, epochs=30, growth=((0.5, 32), (0.8, 48)))
    _, marks = taught(classes, lessons, tmp_path / "state.pt", student)
    shapes = [(32, 32, 1, 1), (48, 48, 2, 2), (64, 64, 2, 2)]
    assert sorted(set(seen)) == shapes
    assert seen == sorted(seen)  # growing
    assert [seen.count(shape) for shape in shapes] == [75, 45, 30]  # four batches, one that judges
    assert marks[-1].explained > 0.1


def test_the_loss_of_seeing_nothing_is_one(classes, tmp_path):
    """The teacher's channels all count: a student that gives their means has a loss of 1."""
    learnt, _ = classes
    lessons = replace(LESSONS, epochs=1, learning_rate=1e-12, colours=0.0)
    student = slim(0)
    torch.nn.init.zeros_(student.layer4[-1].bn2.weight)
    for parameter in student.layer4.parameters():
        torch.nn.init.zeros_(parameter)
    _, marks = taught((learnt, learnt), lessons, tmp_path / "state.pt", student)
    torch.manual_seed(LESSONS.seed)
    bias = torch.nn.Linear(16, 24).bias.square().mean().item()  # what the head says of nothing
    assert marks[0].loss == pytest.approx(1 + bias, abs=0.15)


@pytest.mark.parametrize("patches", [False, True])
def test_a_student_is_kept_as_a_folder_that_encoders_are_read_from(classes, tmp_path, patches):
    torch.manual_seed(0)
    student = ResNet(depth=18, channels=(8, 8, 12, 16), patches=patches)
    taught(classes, replace(LESSONS, epochs=1), tmp_path / "state.pt", student)
    write_resnet(tmp_path / "student", student, ImageStatistics())
    encoder = load_encoder(str(tmp_path / "student"), image_size=SIDE)
    photos = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = student(photos).flatten(2).transpose(1, 2)
    torch.testing.assert_close(encoder(photos), expected)  # the student is channels-last
    description = encoder.describe()
    assert description["channels"] == [8, 8, 12, 16]
    assert description.get("patches", False) == patches
    again = encoder_from_description(description, frozen=True)
    again.load_state_dict(encoder.state_dict())
    assert again.weights_hash == encoder.weights_hash
    torch.testing.assert_close(again(photos), expected)


def test_views_are_drawn_from_all(classes, tmp_path, monkeypatch):
    learnt, judged = classes
    asked: set[tuple[int, ...]] = set()
    read = learnt.regions.read

    def watched(indices, views=None):
        asked.update(zip(indices, views or [0] * len(indices), strict=True))
        return read(indices, views)

    monkeypatch.setattr(learnt.regions, "read", watched)
    taught((learnt, judged), replace(LESSONS, epochs=6), tmp_path / "state.pt")
    assert {view for _, view in asked} == {0, 1}
    assert len(asked) > 1.5 * learnt.size
    assert len(VIEWS) >= 12
