"""Ray, started quietly: no telemetry, no dashboard, no chatter; each unit the work of one call."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from regard.errors import ConfigError, MissingExtraError, RegardError

_TRIES = 3
"""Workers that may die of one unit."""
_MOST_BLOCKS = 20_000


@dataclass(frozen=True, slots=True)
class Workers:
    """Who does the work."""

    count: int | None = None
    """Processes, each with the model loaded once; none: as many as there is room for."""
    cpus: float = 1.0
    """Of each worker; torch has as many threads."""
    gpus: float = 0.0
    """Of each worker."""
    address: str | None = None
    """Of the cluster; none: ``$RAY_ADDRESS``, or this machine alone."""


class Worker(Protocol):
    """What is made once in each process, and then called with one unit at a time."""

    def __call__(self, unit: Any) -> Any:
        """What came of a unit."""


@contextmanager
def cluster(workers: Workers) -> Iterator[int]:
    """A cluster to work on, and how many workers it has room for.

    Raises:
        MissingExtraError: Ray is not installed.
        ConfigError: there is no such cluster, or it has no room for a single worker.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # deaths are told here, in one line
    ray = _ray()
    try:
        ray.init(
            address=workers.address, include_dashboard=None if workers.address else False,
            log_to_driver=False, logging_level=logging.ERROR, configure_logging=True,
        )  # fmt: skip
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"The cluster at {workers.address or os.environ.get('RAY_ADDRESS')} cannot be reached: "
            f"{error}. Give the address that `ray start --head` printed, or leave --address out to "
            "work on this machine."
        ) from error
    try:
        room = ray.cluster_resources()
        yield _room(workers, room)
    finally:
        ray.shutdown()


def run(
    worker: type[Worker],
    options: Mapping[str, Any],
    units: Sequence[Any],
    workers: Workers,
    count: int,
) -> Iterator[Any]:
    """Have a worker see to each unit; what comes of them, in the order in which it does.

    A unit whose worker dies is given to another one, twice at most.

    Args:
        worker: is made in every process.
        options: that it is made with.
        units: at least one; each can be pickled.
        workers: who.
        count: processes, from :func:`cluster`.

    Raises:
        RegardError: as a worker raised it; or workers died again and again.
    """
    ray = _ray()
    data = importlib.import_module("ray.data")
    context = data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    tries = ray.remote(num_cpus=0)(_Tries).remote()
    waiting = data.from_items(
        [{"unit": pickle.dumps(unit)} for unit in units],
        override_num_blocks=min(len(units), _MOST_BLOCKS),
    )
    results = waiting.map_batches(
        _Called,
        fn_constructor_kwargs={
            "worker": worker,
            "options": dict(options),
            "tries": tries,
            "here": str(Path.cwd()),
            "threads": max(1, int(workers.cpus)),
        },
        compute=data.ActorPoolStrategy(size=min(count, len(units))),
        batch_size=1,
        num_cpus=workers.cpus,
        num_gpus=workers.gpus or None,
    )
    try:
        for row in results.iter_rows():
            result = pickle.loads(row["result"])  # of our own worker
            if isinstance(result, _Deadly):
                raise _stopped(str(result))
            if isinstance(result, RegardError):
                raise result
            yield result
    except ray.exceptions.RayError as error:
        raise _stopped(_last_line(error)) from error


class _Deadly(RegardError):
    """Workers die of a unit."""


class _Tries:
    """Counts how often each unit was begun. Ray gives a unit to worker after worker, for ever."""

    def __init__(self) -> None:
        self._begun: Counter[int] = Counter()

    def begin(self, unit: int) -> int:
        """How often, this time among them."""
        self._begun[unit] += 1
        return self._begun[unit]


class _Called:
    """A worker as Ray Data calls it."""

    def __init__(
        self, worker: type[Worker], options: dict[str, Any], tries: Any, here: str, threads: int
    ) -> None:
        import torch

        torch.set_num_threads(threads)
        logging.getLogger().setLevel(logging.ERROR)
        with suppress(OSError):  # relative paths mean the same, where machines share the folder
            os.chdir(here)
        self._tries = tries
        try:
            self._worker: Worker | RegardError = worker(**options)
        except RegardError as error:
            self._worker = error

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        result: Any = self._worker
        if not isinstance(result, RegardError):
            try:
                unit: bytes = batch["unit"][0]
                if _ray().get(self._tries.begin.remote(zlib.crc32(unit))) > _TRIES:
                    raise _Deadly(
                        f"{_TRIES} workers died of the same photos, most likely for want of memory"
                    )
                result = result(pickle.loads(unit))
            except RegardError as error:
                result = error
        return {"result": [pickle.dumps(result)]}


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise MissingExtraError("--engine ray", "cluster") from error


def _room(workers: Workers, room: Mapping[str, float]) -> int:
    """How many workers fit, at most as many as are wanted."""
    cpus, gpus = room.get("CPU", 0.0), room.get("GPU", 0.0)
    fit = int(cpus // workers.cpus) if workers.cpus else 1_000_000
    if workers.gpus:
        fit = min(fit, int(gpus // workers.gpus))
    if not fit:
        raise ConfigError(
            f"There is no room for a worker with {workers.cpus:g} CPUs and {workers.gpus:g} GPUs: "
            f"the cluster has {cpus:g} and {gpus:g}. Ask for less, or for a larger cluster."
        )
    return fit if workers.count is None else min(fit, workers.count)


def _stopped(why: str) -> RegardError:
    return RegardError(
        f"The workers cannot go on: {why}. What was finished is kept: the same command goes on "
        "from there. If a worker ran out of memory, have fewer of them on each machine: fewer "
        "--workers, or more --worker-cpus for each."
    )


def _last_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip().rstrip(".") if lines else type(error).__name__
