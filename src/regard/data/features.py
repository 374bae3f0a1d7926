"""The feature cache: every photo goes through a frozen encoder once, ever.

A cache root holds one directory for each encoder, preparation and precision, named after the
three::

    ROOT/fingerprints.jsonl                     what content each photo had, by path, size and time
    ROOT/resnet50-3f0c.../manifest.json         the encoder in words
    ROOT/resnet50-3f0c.../shards/*.safetensors
    ROOT/resnet50-3f0c.../claims                empty; processes at work hold locks on it

Photos are known by a hash of their content, so a renamed photo is found again and a changed one is
encoded anew. A shard carries its own table of contents and a checksum for each photo. It is written
beside its place and renamed into it, so a process killed at any moment leaves no half shard and
loses at most the two it was at work on: one being written, the next being computed. Several
processes may fill one cache: each claims photos with file locks, which die with their holder.
"""

import io
import json
import os
import shutil
import sys
import time
import zlib
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from regard.data.fingerprints import content_hash, fingerprint_photos
from regard.data.shards import Features, Place, Shard, write_shard
from regard.errors import CacheError, DataError, ModelError, PhotoError
from regard.files import write_whole
from regard.images import VIEWS, Preparation, View, Viewed, open_photo
from regard.models.lanes import lanes

if sys.platform != "win32":
    import fcntl

Precision = Literal["bf16", "float32"]
Prepared = NDArray[np.float32]

FORMAT = 1
"""Version of the layout; a cache of another version is not read."""

PHOTOS_PER_SHARD = 256
"""50 MB of ResNet-50 features: large enough to read well, small enough to lose to a kill."""


class FeatureEncoder(Protocol):
    """What the cache asks of an encoder."""

    @property
    def preparation(self) -> Preparation | Viewed:
        """How a photo becomes the input of the encoder."""

    def describe(self) -> dict[str, Any]:
        """The encoder for the manifest: id, architecture, width, grid and weights_hash at least."""

    def fast_precision(self) -> Precision:
        """The precision that this machine computes fastest."""

    def fast(
        self, precision: Precision, *, photos: int, batch_size: int
    ) -> Callable[[Tensor], Tensor]:
        """A function from prepared photos (B, 3, height, width) to regions (B, L, D).

        Threads share it. It will be given so many photos in all, at most a batch at a time.
        """


def cache_dir(
    root: Path | None, encoder: FeatureEncoder, *, precision: Precision | Literal["auto"] = "auto"
) -> Path:
    """The directory of an encoder's features; it need not exist.

    Args:
        root: where all caches are; without it ``$REGARD_CACHE``, else ``~/.cache/regard/features``.
        encoder: the encoder, whose weights and preparation decide the name.
        precision: of the computation; ``auto`` is the fastest on this machine.
    """
    return _Cache(root, encoder, precision).directory


def build_features(
    photos: Sequence[Path],
    encoder: FeatureEncoder,
    root: Path | None = None,
    *,
    precision: Precision | Literal["auto"] = "auto",
    batch_size: int = 8,
    workers: int | None = None,
    verify: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> "FeatureStore":
    """Encode the photos that are not in the cache yet, repair it where it is damaged, and open it.

    Args:
        photos: the photo files.
        encoder: the encoder; it is used as it is now, so it should be frozen.
        root: as for ``cache_dir``.
        precision: as for ``cache_dir``.
        batch_size: photos that go through the encoder at a time.
        workers: threads that each decode a batch and encode it; if not given, as many as torch
            computes with.
        verify: read back what the cache has of these photos and compare checksums; damaged shards
            are computed again. Without it, damage is found when a photo is first read.
        on_progress: called with the photos done and all photos, after every batch.
        on_message: called with a sentence for each repair.

    Raises:
        DataError: if photos could not be read; all others are in the cache then.
        CacheError: if the cache belongs to another encoder, or the disk is too small.
    """
    say = on_message or (lambda message: None)
    cache = _Cache(root, encoder, precision)
    cache.prepare(say)
    with lanes(workers) as threads:
        fingerprints, failures = cache.fingerprint(photos, threads)
        cache.refresh()
        cache.drop_damaged(say)
        verified = cache.verify(set(fingerprints.values()), say) if verify else set()
        _Work(cache, encoder, threads, batch_size, fingerprints, failures, on_progress).run()
    if failures:
        raise DataError(_describe_failures(failures, total=len(photos)))
    return cache.open(fingerprints, verified)


def build_views(
    photos: Sequence[Path],
    encoder: FeatureEncoder,
    root: Path | None = None,
    *,
    views: int,
    batch_size: int = 8,
    on_progress: Callable[[int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
) -> list["FeatureStore"]:
    """The features of :data:`regard.images.VIEWS` beyond the whole photo, each in its own cache.

    Args:
        photos: the photo files.
        encoder: as for :func:`build_features`.
        root: likewise.
        views: how many there are, with the whole photo, of which the features are not given.
        batch_size: likewise.
        on_progress: as for :func:`build_features`.
        on_message: likewise.
    """
    return [
        build_features(
            photos, _ViewEncoder(encoder, view), root,
            batch_size=batch_size, on_progress=on_progress, on_message=on_message,
        )
        for view in VIEWS[1:views]
    ]  # fmt: skip


class _ViewEncoder:
    """An encoder that sees one view of each photo."""

    def __init__(self, encoder: FeatureEncoder, view: View) -> None:
        assert isinstance(encoder.preparation, Preparation)  # not a view already
        self.preparation = Viewed(encoder.preparation, view)
        self.describe, self.fast = encoder.describe, encoder.fast
        self.fast_precision = encoder.fast_precision


def open_features(
    photos: Sequence[Path],
    encoder: FeatureEncoder,
    root: Path | None = None,
    *,
    precision: Precision | Literal["auto"] = "auto",
) -> "FeatureStore":
    """Open the features of photos that are all in the cache; nothing is computed.

    Raises:
        CacheError: if some are missing, or the cache is damaged or belongs to another encoder.
    """
    cache = _Cache(root, encoder, precision)
    cache.check_manifest()
    with ThreadPoolExecutor(2) as threads:
        fingerprints, failures = cache.fingerprint(photos, threads)
    if failures:
        raise DataError(_describe_failures(failures, total=len(photos)))
    cache.refresh()
    missing = sum(fingerprint not in cache.places for fingerprint in fingerprints.values())
    if missing:
        damaged = "".join(
            f" Shard {path} is damaged: {why}." for path, why in sorted(cache.damaged.items())
        )
        raise CacheError(
            f"{missing} of {len(fingerprints)} photos have no features of encoder {cache.id} in "
            f"{cache.directory}: they are new, or have changed.{damaged} {cache.remedy}"
        )
    return cache.open(fingerprints, set())


class FeatureStore:
    """The features of a set of photos, read from disk as they are asked for.

    Threads may share a store, and a process may be handed one: it holds no open file.

    Args:
        grid: H and W, the rows and columns of regions.
        width: D, the feature width of a region.
        places: for each photo's absolute path, the shard and the row that hold it.
        verified: rows whose checksum has been compared already.
        remedy: what a person does about damage, in a sentence.
    """

    def __init__(
        self,
        *,
        grid: tuple[int, int],
        width: int,
        places: dict[str, Place],
        verified: set[Place],
        remedy: str,
    ) -> None:
        self.grid = grid
        self.width = width
        self._places = places
        self._verified = verified
        self._remedy = remedy

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, photo: Path) -> bool:
        return str(photo.absolute()) in self._places

    def read(self, photos: Sequence[Path]) -> Features:
        """The features of the photos, in their order: float16 (B, L, D).

        Raises:
            CacheError: if a photo is not in the store, or its shard was damaged since.
        """
        rows, columns = self.grid
        features = np.empty((len(photos), rows * columns, self.width), np.float16)  # (B, L, D)
        for i, photo in enumerate(photos):
            place = self._places.get(str(photo.absolute()))
            if place is None:
                raise CacheError(
                    f"{photo} is not among the {len(self)} photos that these features were opened "
                    "for. Open them again with all photos of the data set."
                )
            try:
                place.shard.load(place.row, features[i])
            except (OSError, ValueError) as error:
                raise CacheError(
                    f"Shard {place.shard.path} is damaged: {error}. {self._remedy}"
                ) from error
            if place not in self._verified:
                if zlib.crc32(features[i]) != place.shard.checksums[place.row]:
                    raise CacheError(
                        f"Shard {place.shard.path} is damaged: the features of {photo} do not "
                        f"match their checksum. {self._remedy}"
                    )
                self._verified.add(place)
        return features


# --- the cache of one encoder -----------------------------------------------------------------


class _Cache:
    """The directory of one encoder: its manifest, and the shards seen in it so far."""

    def __init__(
        self,
        root: Path | None,
        encoder: FeatureEncoder,
        precision: Precision | Literal["auto"],
    ) -> None:
        self.root = root or _default_root()
        self.precision = encoder.fast_precision() if precision == "auto" else precision
        self.encoder = encoder.describe()
        self.id = str(self.encoder["id"])
        rows, columns = self.encoder["grid"]
        self.grid = (int(rows), int(columns))
        self.width = int(self.encoder["width"])
        decisive = {
            "format": FORMAT,
            "weights_hash": self.encoder["weights_hash"],
            "preparation": encoder.preparation.as_dict(),
            "precision": self.precision,
            # Left out where there is none: caches from before it was a setting stay good.
            **{name: self.encoder[name] for name in ("pooled",) if name in self.encoder},
        }
        self.key = content_hash(json.dumps(decisive, sort_keys=True).encode())
        self.directory = self.root / f"{self.encoder['architecture']}-{self.key[:16]}"
        self.shards = self.directory / "shards"
        self.remedy = (
            f"`regard features PATH --encoder {self.id}`, with your data in place of PATH, "
            "verifies and repairs the cache."
        )
        self.places: dict[str, Place] = {}
        self.damaged: dict[Path, str] = {}
        self._seen: dict[Path, Shard] = {}

    def prepare(self, say: Callable[[str], None]) -> None:
        """Make the directory, or make sure that it is of this encoder; clear away old remains."""
        manifest = self.directory / "manifest.json"
        try:
            self.shards.mkdir(parents=True, exist_ok=True)
            if not manifest.exists():
                self._write_manifest()
            if self._read_manifest() is None:
                say(f"{manifest} is damaged and was written again.")
                self._write_manifest()
            self.check_manifest()
            for remains in self.shards.glob(".*.tmp"):
                # Of a process that was killed; a living one needs seconds to write a shard.
                if time.time() - remains.stat().st_mtime > 3600:
                    remains.unlink(missing_ok=True)
        except OSError as error:
            raise CacheError(
                f"The feature cache {self.root} cannot be used: {error}. Choose another place with "
                "the environment variable REGARD_CACHE."
            ) from error

    def check_manifest(self) -> None:
        """Refuse a directory that is not this encoder's."""
        path = self.directory / "manifest.json"
        if not path.exists():
            raise CacheError(
                f"There are no features of encoder {self.id} yet in {self.directory}. "
                f"`regard features PATH --encoder {self.id}` computes them."
            )
        manifest = self._read_manifest()
        if manifest is None:
            raise CacheError(f"{path} is damaged. {self.remedy}")
        if manifest.get("key") != self.key:
            other = manifest.get("encoder", {})
            raise CacheError(
                f"{self.directory} holds features of another encoder, preparation or precision: "
                f"{other.get('id')} with weights {other.get('weights_hash')} in "
                f"{manifest.get('precision')}, not {self.id} with weights "
                f"{self.encoder['weights_hash']} in {self.precision}. Move that directory away, or "
                "choose another place with the environment variable REGARD_CACHE."
            )

    def fingerprint(
        self, photos: Sequence[Path], threads: ThreadPoolExecutor
    ) -> tuple[dict[str, str], dict[str, str]]:
        """The fingerprint of each absolute path, and for unreadable photos the reason."""
        return fingerprint_photos(photos, memory=self.root / "fingerprints.jsonl", threads=threads)

    def refresh(self) -> None:
        """Take note of shards that were added since the last call, by anyone."""
        for path in sorted(self.shards.glob("*.safetensors")):
            if path in self._seen or path in self.damaged:
                continue
            regions = self.grid[0] * self.grid[1]
            try:
                shard = Shard.read(path, key=self.key, regions=regions, width=self.width)
            except FileNotFoundError:
                continue  # removed by another process that found it damaged
            except ValueError as error:
                self.damaged[path] = str(error)
                continue
            self._seen[path] = shard
            for row, fingerprint in enumerate(shard.fingerprints):
                self.places.setdefault(fingerprint, Place(shard, row))

    def verify(self, fingerprints: set[str], say: Callable[[str], None]) -> set[Place]:
        """Compare the checksums of photos that are in the cache, and drop the damaged shards.

        Returns:
            The places whose checksum is right.
        """
        right: set[Place] = set()
        by_shard: dict[Shard, list[Place]] = {}
        for fingerprint in fingerprints & self.places.keys():
            place = self.places[fingerprint]
            by_shard.setdefault(place.shard, []).append(place)
        for shard, places in by_shard.items():
            try:
                wrong = [place for place in places if not self._is_right(place)]
            except (OSError, ValueError) as error:
                self.damaged[shard.path] = str(error)
                continue
            if wrong:
                self.damaged[shard.path] = (
                    f"the features of {len(wrong)} of its {len(shard.fingerprints)} photos do not "
                    "match their checksums"
                )
            else:
                right.update(places)
        self.drop_damaged(say)
        return right

    def drop_damaged(self, say: Callable[[str], None]) -> None:
        """Remove damaged shards, so that their photos count as missing."""
        for path, why in sorted(self.damaged.items()):
            path.unlink(missing_ok=True)
            say(f"Shard {path} was damaged and removed: {why}. Its photos are computed again.")
            self._seen.pop(path, None)
        if self.damaged:
            self.damaged = {}
            self.places = {}
            for shard in self._seen.values():
                for row, fingerprint in enumerate(shard.fingerprints):
                    self.places.setdefault(fingerprint, Place(shard, row))

    def require_space(self, photos: int) -> None:
        """Refuse to start on a disk that cannot hold the features of so many more photos."""
        rows, columns = self.grid
        needed = int(photos * rows * columns * self.width * 2 * 1.01)
        free = shutil.disk_usage(self.directory).free
        if needed > free:
            raise CacheError(
                f"The features of {photos:,} photos need {needed:,} bytes, and the disk of "
                f"{self.root} has {free:,} free. Free some space, or choose another disk with the "
                "environment variable REGARD_CACHE."
            )

    def _is_right(self, place: Place) -> bool:
        features = np.empty(place.shard.shape[1:], np.float16)  # (L, D)
        place.shard.load(place.row, features)
        return zlib.crc32(features.data) == place.shard.checksums[place.row]

    @contextmanager
    def claims(self) -> Iterator["_Claims"]:
        """Claims on photos for as long as the context lasts."""
        with (self.directory / "claims").open("ab") as file:
            yield _Claims(file.fileno())

    def open(self, fingerprints: dict[str, str], verified: set[Place]) -> FeatureStore:
        """A store of photos, given the fingerprint of each absolute path."""
        return FeatureStore(
            grid=self.grid,
            width=self.width,
            places={path: self.places[value] for path, value in fingerprints.items()},
            verified=verified,
            remedy=self.remedy,
        )

    def _read_manifest(self) -> dict[str, Any] | None:
        try:
            manifest = json.loads((self.directory / "manifest.json").read_text(encoding="utf-8"))
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) else None

    def _write_manifest(self) -> None:
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "precision": self.precision,
            "encoder": self.encoder,
        }
        content = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.directory / "manifest.json", content.encode())


class _Claims:
    """Locks on photos between processes: one byte of a file for each photo.

    A lock may lie far beyond the end of the file, so a photo's place can be its fingerprint: no
    process needs to know how another divides the work. The system drops the locks of a process
    that ends in any way. Where there are no such locks, processes may do the same work twice.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def take(self, fingerprint: str) -> bool:
        """Claim a photo, unless another process has."""
        if sys.platform != "win32":
            try:
                place = _claim_place(fingerprint)
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, place)
            except (BlockingIOError, PermissionError):
                return False
        return True

    def release(self, fingerprints: Iterable[str]) -> None:
        """Give photos up that were claimed here."""
        if sys.platform != "win32":
            for fingerprint in fingerprints:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _claim_place(fingerprint))


def _claim_place(fingerprint: str) -> int:
    return int(fingerprint[:15], 16)  # 60 bits: file offsets have 63


def _default_root() -> Path:
    if named := os.environ.get("REGARD_CACHE"):
        return Path(named).expanduser()
    return Path.home() / ".cache" / "regard" / "features"


# --- filling it -------------------------------------------------------------------------------


class _Encoded(NamedTuple):
    """What became of a batch."""

    names: list[str]
    """The fingerprints of its B photos that could be read."""
    features: Features
    """(B, L, D)."""
    failures: dict[str, str]
    """Of the others the reason."""


class _Work:
    """One process filling a cache with the photos that are missing from it.

    Every thread decodes a batch and encodes it. Two shards are under way at any time, so that the
    threads are at work on the second while the first is written.
    """

    def __init__(
        self,
        cache: _Cache,
        encoder: FeatureEncoder,
        threads: ThreadPoolExecutor,
        batch_size: int,
        fingerprints: dict[str, str],
        failures: dict[str, str],
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        self.cache = cache
        self.encoder = encoder
        self.threads = threads
        self.batch_size = batch_size
        self.failures = failures
        self.on_progress = on_progress
        self.total = len(fingerprints) + len(failures)
        # One path for each content that is missing, and how many photos have it where several do.
        self.paths: dict[str, str] = {}
        self.copies: Counter[str] = Counter()
        for path, name in fingerprints.items():
            if name in self.paths:
                self.copies[name] += 1
            elif name not in cache.places:
                self.paths[name] = path
        self.missing = deque(self.paths)
        self.done = self.total - len(self.paths) - self.copies.total()

    def run(self) -> None:
        """Encode until nothing is missing but what cannot be read."""
        self.cache.require_space(len(self.missing))
        self._report()
        if not self.missing:
            return
        encode = self.encoder.fast(
            self.cache.precision, photos=len(self.missing), batch_size=self.batch_size
        )
        under_way: deque[tuple[list[str], list[Future[_Encoded]]]] = deque()
        with self.cache.claims() as claims:
            while True:
                while len(under_way) < 2 and (chunk := self._claim(claims)):
                    batches = [
                        self.threads.submit(self._encode, chunk[i : i + self.batch_size], encode)
                        for i in range(0, len(chunk), self.batch_size)
                    ]
                    under_way.append((chunk, batches))
                if under_way:
                    chunk, batches = under_way.popleft()
                    self._write(batches)
                    claims.release(chunk)
                elif self.missing:
                    time.sleep(_PATIENCE_S)  # others are at work on all that is left
                else:
                    break

    def _claim(self, claims: "_Claims") -> list[str]:
        """A shard of missing photos for us alone, in their order; none if others have them all."""
        self.cache.refresh()
        claimed: list[str] = []
        taken: list[str] = []
        while self.missing and len(claimed) < PHOTOS_PER_SHARD:
            name = self.missing.popleft()
            if name in self.cache.places:
                self._count([name])
            else:
                (claimed if claims.take(name) else taken).append(name)
        self.missing.extend(taken)
        # Another process may have finished some between our look and our claim.
        self.cache.refresh()
        finished = [name for name in claimed if name in self.cache.places]
        claims.release(finished)
        self._count(finished)
        return [name for name in claimed if name not in self.cache.places]

    def _count(self, names: Iterable[str]) -> None:
        """Photos that are done with, and all that have the same content."""
        self.done += sum(1 + self.copies[name] for name in names)

    def _report(self) -> None:
        if self.on_progress:
            self.on_progress(self.done, self.total)

    def _write(self, batches: Sequence[Future[_Encoded]]) -> None:
        """Write the shard of some batches; the photos that cannot be read are set aside."""
        names: list[str] = []
        features: list[Features] = []
        for batch in batches:
            encoded = batch.result()
            names += encoded.names
            features.append(encoded.features)
            self.failures |= {self.paths[name]: why for name, why in encoded.failures.items()}
            self._count([*encoded.names, *encoded.failures])
            self._report()
        if not names:
            return
        try:
            write_shard(self.cache.shards, features, names, key=self.cache.key)
        except OSError as error:
            raise CacheError(
                f"Features could not be written to {self.cache.shards}: {error}. Make room or "
                "mend the disk and run again; what was written before is kept."
            ) from error

    def _encode(self, batch: Sequence[str], encode: Callable[[Tensor], Tensor]) -> _Encoded:
        """Decode and encode photos, in one thread."""
        names: list[str] = []
        images: list[Prepared] = []
        failures: dict[str, str] = {}
        for name in batch:
            try:
                images.append(self._prepare(name))
                names.append(name)
            except PhotoError as error:
                failures[name] = str(error)
        if not names:
            rows, columns = self.cache.grid
            return _Encoded(
                [], np.empty((0, rows * columns, self.cache.width), np.float16), failures
            )
        encoded = encode(torch.from_numpy(np.stack(images)))
        regions = encoded.half().contiguous().cpu().numpy()  # (B, L, D)
        self._require_finite(regions, names)
        return _Encoded(names, regions, failures)

    def _prepare(self, fingerprint: str) -> Prepared:
        """One photo as the encoder wants it: (3, height, width)."""
        path = Path(self.paths[fingerprint])
        try:
            content = path.read_bytes()
        except OSError as error:
            raise PhotoError(f"{path}: {error.strerror}") from error
        if content_hash(content) != fingerprint:
            raise PhotoError(f"{path}: changed while the features were computed; run again")
        try:
            return self.encoder.preparation(open_photo(io.BytesIO(content)))
        except PhotoError:
            # For a message that names the file.
            return self.encoder.preparation(open_photo(path))

    def _require_finite(self, regions: Features, batch: list[str]) -> None:
        for name, photo in zip(batch, regions, strict=True):
            if not np.isfinite(photo).all():
                raise ModelError(
                    f"Encoder {self.cache.id} gives features that float16 cannot hold (not a "
                    f"number, or beyond 65,504) for {self.paths[name]}. Check the encoder's "
                    "weights."
                )


_PATIENCE_S = 0.2


def _describe_failures(failures: dict[str, str], *, total: int) -> str:
    first = "".join(f"\n  {message}" for _, message in sorted(failures.items())[:5])
    more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
    return (
        f"{len(failures)} of {total} photos cannot be read:{first}{more}\n"
        "Replace these photos or take them out of the data set, and run again; what was computed "
        "of the others is kept."
    )
