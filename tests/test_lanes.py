"""Lanes: each computes with one thread, and the caller's number is left as it was."""

import threading
from collections.abc import Iterator

import pytest
import torch

from regard.models.lanes import lanes


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_each_lane_computes_alone_and_the_caller_as_before() -> None:
    meet = threading.Barrier(3)

    def look(_: int) -> tuple[int, int]:
        meet.wait(10)  # three lanes at once, or this fails
        return threading.get_ident(), torch.get_num_threads()

    with lanes() as threads:
        assert torch.get_num_threads() == 3
        seen = list(threads.map(look, range(3)))
        assert torch.get_num_threads() == 3
    assert len({thread for thread, _ in seen}) == 3
    assert {number for _, number in seen} == {1}
    assert torch.get_num_threads() == 3


def test_threads_started_later_compute_with_the_callers_number() -> None:
    with lanes(2):
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
        thread.start()
        thread.join()
    assert found == [3]


def test_what_waits_is_cancelled_when_the_lanes_are_left() -> None:
    release = threading.Event()
    with lanes(1) as threads:
        first = threads.submit(release.wait, 10)
        second = threads.submit(int)
        threading.Timer(0.1, release.set).start()
    assert first.result()
    assert second.cancelled()
