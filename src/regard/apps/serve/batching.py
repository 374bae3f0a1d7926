"""Requests that wait at the same time are captioned as one batch.

Nothing waits for others to come: while a batch is computed the next one gathers. Alone, a photo is
captioned at once; under load, batches are as large as the load makes them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread

from regard.captioner import AnyCaptioner, PhotoCaption, Prepared
from regard.describe import Decoding


class QueueFullError(Exception):
    """So many photos wait that another one would wait too long."""


@dataclass(slots=True)
class _Waiting:
    photo: Prepared
    decoding: Decoding
    future: Future[PhotoCaption] = field(default_factory=Future)


class Batcher:
    """One captioner, one thread that computes, and the photos that wait for it.

    Args:
        captioner: what captions.
        most: photos of a batch.
        room: photos that may wait.
        on_batch: told the size of each batch.
    """

    def __init__(
        self,
        captioner: AnyCaptioner,
        *,
        most: int = 16,
        room: int = 64,
        on_batch: Callable[[int], None] = lambda size: None,
    ) -> None:
        self.captioner = captioner
        self._most, self._room, self._on_batch = most, room, on_batch
        self._waiting: deque[_Waiting] = deque()
        self._changed = Condition()
        self._closed = False
        self._thread = Thread(target=self._work, name="regard-batches", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Photos that wait."""
        return len(self._waiting)

    @property
    def alive(self) -> bool:
        """Whether it still works."""
        return self._thread.is_alive()

    def submit(self, photo: Prepared, decoding: Decoding) -> Future[PhotoCaption]:
        """Let a photo wait for its caption; a future that is cancelled in time is not computed.

        Raises:
            QueueFullError: too many wait.
        """
        with self._changed:
            if self._closed or len(self._waiting) >= self._room:
                raise QueueFullError
            one = _Waiting(photo, decoding)
            self._waiting.append(one)
            self._changed.notify()
        return one.future

    def close(self) -> None:
        """Finish the batch that is computed; what waits is cancelled."""
        with self._changed:
            self._closed = True
            for one in self._waiting:
                one.future.cancel()
            self._waiting.clear()
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            self._on_batch(len(batch))
            try:
                found = self.captioner.caption_prepared(
                    [one.photo for one in batch], batch[0].decoding
                )
            except Exception as error:
                for one in batch:
                    one.future.set_exception(error)
            else:
                for one, caption in zip(batch, found, strict=True):
                    one.future.set_result(caption)

    def _next(self) -> list[_Waiting]:
        """The photo that has waited longest, and those with its settings; none when closed."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return []
                batch: list[_Waiting] = []
                rest: deque[_Waiting] = deque()
                decoding = self._waiting[0].decoding
                for one in self._waiting:
                    if len(batch) == self._most or one.decoding != decoding:
                        rest.append(one)
                    elif one.future.set_running_or_notify_cancel():
                        batch.append(one)
                self._waiting = rest
                if batch:
                    return batch
