"""Lanes: threads that each compute alone, so that every core has a batch of its own.

Two cores that share a batch wait for each other at the end of every layer, and longer where one of
them has to decode a photo in between. In a lane one thread decodes a batch and encodes it, from end
to end; while one lane decodes, others compute, and no core waits.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Barrier, Lock

import torch

_STARTING = Lock()  # the number of threads is torch's global while lanes start


@contextmanager
def lanes(count: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Threads in which torch computes with one thread each; what is left undone is cancelled.

    Args:
        count: how many; as many as torch computes with in the caller's thread, if not given.
    """
    with _STARTING:
        threads = torch.get_num_threads()
        count = count or threads
        started = Barrier(count + 1)

        def compute_alone() -> None:
            torch.set_num_threads(1)
            # A thread takes over torch's number when it first asks for it, and never again.
            torch.get_num_threads()
            started.wait()

        pool = ThreadPoolExecutor(count, initializer=compute_alone)
        for _ in range(count):
            pool.submit(int)  # a pool starts its threads as it is given work
        started.wait()
        torch.set_num_threads(threads)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
