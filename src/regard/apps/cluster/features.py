"""`regard features --engine ray`: workers fill one cache, which all of them reach.

The cache is as safe with many processes as with one: a shard is there whole or not at all, and what
is there is not computed again. Its locks need a file system that has them; without, workers may do
the same work twice, never a wrong one. A unit is no more than a stretch of the photos.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from regard.apps.cluster.workers import Workers, cluster, run
from regard.build import build_encoder
from regard.config import EncoderConfig
from regard.data.features import PHOTOS_PER_SHARD, FeatureEncoder, build_features
from regard.errors import DataError
from regard.models.devices import find_device


def features_on_cluster(
    photos: Sequence[Path],
    encoder: EncoderConfig,
    root: Path | None,
    *,
    device: str,
    workers: Workers,
    on_progress: Callable[[int, int], None],
) -> None:
    """Fill the cache with the features of photos; those that cannot be read are left out.

    ``build_features`` then verifies what is there and says which photos are not.

    Args:
        photos: files that every worker reaches by these paths.
        encoder: its settings.
        root: of the cache, that every worker reaches.
        device: of each worker.
        workers: who does the work.
        on_progress: called with the photos done and all photos, after every unit.

    Raises:
        ConfigError: there is no such cluster.
        RegardError: the encoder cannot be had, or the cache cannot be written.
    """
    paths = [photo.absolute() for photo in photos]
    size = 4 * PHOTOS_PER_SHARD
    units = [paths[i : i + size] for i in range(0, len(paths), size)]
    done = 0
    with cluster(workers) as count:
        options = {
            "encoder": encoder, "root": None if root is None else root.absolute(),
            "device": device, "expected": len(paths) // count,
        }  # fmt: skip
        for seen in run(FeatureWorker, options, units, workers, count):
            done += seen
            on_progress(done, len(paths))


class FeatureWorker:
    """A process of the cluster with its encoder.

    Args:
        encoder: its settings.
        root: of the cache.
        device: where it runs.
        expected: photos that it will see, about.
    """

    def __init__(
        self, encoder: EncoderConfig, root: Path | None, device: str, expected: int
    ) -> None:
        self._encoder = _Once(build_encoder(encoder).to(find_device(device)), expected)
        self._root = root

    def __call__(self, unit: Sequence[Path]) -> int:
        """Fill the cache with a unit; how many photos it has."""
        with suppress(DataError):  # unreadable photos are named in the end, all of them together
            build_features(unit, self._encoder, self._root, verify=False)
        return len(unit)


class _Once:
    """An encoder whose fast form is made once, for all units of a worker."""

    def __init__(self, encoder: FeatureEncoder, expected: int) -> None:
        self.preparation, self.describe = encoder.preparation, encoder.describe
        self.fast_precision = encoder.fast_precision
        self._encoder, self._expected = encoder, expected
        self._made: dict[tuple[Any, ...], Callable[[Tensor], Tensor]] = {}

    def fast(self, precision: Any, *, photos: int, batch_size: int) -> Callable[[Tensor], Tensor]:
        """That of the encoder, for as many photos as the worker will see."""
        key = precision, batch_size
        if key not in self._made:
            self._made[key] = self._encoder.fast(
                precision, photos=max(photos, self._expected), batch_size=batch_size
            )
        return self._made[key]
