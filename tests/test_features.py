"""The feature cache: computed once, never lost, never wrong.

Run as a program, this file is one more process that fills a cache (see ``main``).
"""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from regard.data import features
from regard.data.features import build_features, cache_dir, open_features
from regard.errors import CacheError, DataError, ModelError
from regard.images import Preparation, open_photo
from regard.models.encoders import Encoder
from regard.models.resnet import ResNet

SHARD = 4  # photos in a shard, in place of 256


class Averages:
    """An encoder of which everything is known: the mean colour of each quarter of a photo."""

    def __init__(self, *, weights: str = "one", delay_s: float = 0.0) -> None:
        self.preparation = Preparation(size=(8, 8))
        self.weights = weights
        self.delay_s = delay_s
        self.encoded = 0
        self.lock = Lock()

    def describe(self) -> dict[str, Any]:
        return {
            "id": f"averages-{self.weights}",
            "architecture": "averages",
            "width": 3,
            "grid": [2, 2],
            "preparation": self.preparation.as_dict(),
            "weights_hash": self.weights,
        }

    def fast_precision(self) -> Literal["float32"]:
        return "float32"

    def fast(
        self, precision: str, *, photos: int = 1, batch_size: int = 8
    ) -> Callable[[Tensor], Tensor]:
        def encode(images: Tensor) -> Tensor:
            time.sleep(self.delay_s)
            assert len(images) <= batch_size
            with self.lock:
                self.encoded += len(images)
            return torch.nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)

        return encode


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "PHOTOS_PER_SHARD", SHARD)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    return draw_photos(tmp_path / "photos", 10)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def draw_photos(folder: Path, count: int) -> list[Path]:
    folder.mkdir()
    colours = np.random.default_rng(0).integers(0, 256, (count, 6, 9, 3), dtype=np.uint8)
    paths = [folder / f"{i:03}.png" for i in range(count)]
    for path, pixels in zip(paths, colours, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


def direct(photos: list[Path]) -> np.ndarray:
    """The features without any cache."""
    encoder = Averages()
    encode = encoder.fast("float32")
    prepared = [torch.from_numpy(encoder.preparation(open_photo(photo))) for photo in photos]
    return torch.cat([encode(photo[None]) for photo in prepared]).half().numpy()


def shards_of(root: Path) -> list[Path]:
    return sorted(root.glob("*/shards/*.safetensors"))


def shard_holding(root: Path, photo: Path) -> tuple[Path, int]:
    """The shard that holds a photo, and the byte where its features begin."""
    name = features.content_hash(photo.read_bytes())
    for path in shards_of(root):
        content = path.read_bytes()
        start = 8 + int.from_bytes(content[:8], "little")
        names = json.loads(json.loads(content[8:start])["__metadata__"]["fingerprints"])
        if name in names:
            return path, start + names.index(name) * 4 * 3 * 2
    raise AssertionError(f"{photo} is in no shard")


def flip(path: Path, offset: int) -> None:
    """Damage one bit of a file."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


# --- reading ----------------------------------------------------------------------------------


def test_cached_features_equal_direct_ones_in_any_order(photos: list[Path], root: Path) -> None:
    built = build_features(photos, Averages(), root, batch_size=3)
    opened = open_features(photos, Averages(), root)
    order = [photos[i] for i in (7, 0, 9, 0)]
    for store in (built, opened):
        assert (len(store), store.grid, store.width) == (10, (2, 2), 3)
        found = store.read(order)
        assert found.dtype == np.float16
        assert np.array_equal(found, direct(order))
    assert len(shards_of(root)) == 3


def test_nothing_is_computed_twice(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    build_features(photos[:6], encoder, root)
    assert encoder.encoded == 6
    build_features(photos, encoder, root)
    build_features(photos, encoder, root, verify=False)
    assert encoder.encoded == 10


def test_a_photo_is_known_by_its_content(photos: list[Path], root: Path, tmp_path: Path) -> None:
    encoder = Averages()
    build_features(photos, encoder, root)
    renamed = tmp_path / "renamed.png"
    shutil.copy(photos[3], renamed)
    steps: list[tuple[int, int]] = []
    store = build_features(
        [*photos, renamed], encoder, root, on_progress=lambda *step: steps.append(step)
    )
    assert encoder.encoded == 10
    assert steps == [(11, 11)]
    assert np.array_equal(store.read([renamed]), direct([photos[3]]))


def test_relative_paths_are_found(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos[0].parent)
    store = build_features(photos, Averages(), root)
    assert Path(photos[1].name) in store
    assert np.array_equal(store.read([Path(photos[1].name)]), direct(photos[1:2]))


def test_a_store_holds_no_file_open_and_survives_pickling(photos: list[Path], root: Path) -> None:
    store = build_features(photos, Averages(), root)
    assert np.array_equal(store.read(photos), direct(photos))
    if HANDLES.is_dir():
        assert not [name for name in open_files() if str(root) in name]
    copy = pickle.loads(pickle.dumps(store))
    assert np.array_equal(copy.read(photos), direct(photos))


HANDLES = Path("/proc/self/fd")


def open_files() -> list[str]:
    return [str(handle.readlink()) for handle in HANDLES.iterdir() if handle.exists()]


def test_progress_counts_to_the_end(photos: list[Path], root: Path) -> None:
    steps: list[tuple[int, int]] = []
    build_features(
        photos, Averages(), root, batch_size=2, on_progress=lambda *step: steps.append(step)
    )
    assert steps == sorted(steps)
    assert set(steps) == {(done, 10) for done in (0, 2, 4, 6, 8, 10)}


def test_a_photo_that_was_not_asked_for_is_not_read(photos: list[Path], root: Path) -> None:
    build_features(photos, Averages(), root)
    store = open_features(photos[:4], Averages(), root)
    assert photos[4] not in store
    with pytest.raises(CacheError, match=r"004\.png is not among the 4 photos that these features"):
        store.read(photos)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_real_encoder_alone_and_in_a_batch(
    photos: list[Path], root: Path, batch_size: int
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = ResNet(depth=18)
    encoder = Encoder(
        id="random", backbone=backbone, preparation=Preparation(size=(64, 64)), frozen=True
    )
    store = build_features(photos, encoder, root, precision="float32", batch_size=batch_size)
    images = np.stack([encoder.preparation(open_photo(photo)) for photo in photos])
    expected = encoder(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(store.read(photos), expected, rtol=2e-3, atol=2e-3)


# --- places -----------------------------------------------------------------------------------


def test_the_root_is_the_argument_the_variable_or_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Averages()
    assert cache_dir(tmp_path, encoder).parent == tmp_path
    monkeypatch.setenv("REGARD_CACHE", str(tmp_path / "named"))
    assert cache_dir(None, encoder).parent == tmp_path / "named"
    monkeypatch.delenv("REGARD_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_dir(None, encoder).parent == tmp_path / ".cache" / "regard" / "features"


def test_weights_preparation_and_precision_have_places_of_their_own(root: Path) -> None:
    other_preparation = Averages()
    other_preparation.preparation = Preparation(size=(8, 8), interpolation="bicubic")
    places = {
        cache_dir(root, Averages()),
        cache_dir(root, Averages(weights="two")),
        cache_dir(root, other_preparation),
        cache_dir(root, Averages(), precision="bf16"),
    }
    assert len(places) == 4
    assert cache_dir(root, Averages(), precision="float32") in places


# --- photos that change or cannot be read -----------------------------------------------------


def test_a_changed_photo_is_computed_again(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    build_features(photos, encoder, root)
    shutil.copy(photos[0], photos[5])
    Image.new("RGB", (9, 6), "red").save(photos[0])
    with pytest.raises(CacheError, match="1 of 10 photos have no features of encoder averages-one"):
        open_features(photos, encoder, root)
    store = build_features(photos, encoder, root)
    assert encoder.encoded == 11
    assert np.array_equal(store.read(photos), direct(photos))


def test_photos_that_cannot_be_read_are_listed_and_the_others_kept(
    photos: list[Path], root: Path
) -> None:
    photos[2].write_text("no photo")
    missing = [photos[0].with_name(f"missing{i}.png") for i in range(5)]
    encoder = Averages()
    with pytest.raises(DataError) as refusal:
        build_features([*missing, *photos], encoder, root)
    message = str(refusal.value)
    assert message.startswith("6 of 15 photos cannot be read:")
    assert "002.png" in message
    assert "missing0.png: No such file or directory" in message
    assert "and 1 more" in message
    assert encoder.encoded == 9
    with pytest.raises(DataError, match="5 of 15 photos cannot be read"):
        open_features([*missing, *photos], encoder, root)
    store = build_features([*photos[:2], *photos[3:]], encoder, root)
    assert encoder.encoded == 9
    assert len(store) == 9


def test_a_photo_that_changes_under_our_hands_is_reported(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = features.fingerprint_photos

    def fingerprint_then_change(*args: Any, **kwargs: Any) -> Any:
        found = remember(*args, **kwargs)
        photos[1].write_bytes(photos[2].read_bytes())
        photos[3].unlink()
        return found

    monkeypatch.setattr(features, "fingerprint_photos", fingerprint_then_change)
    with pytest.raises(DataError, match=r"001\.png: changed while the features") as refusal:
        build_features(photos, Averages(), root)
    assert "003.png: No such file or directory" in str(refusal.value)


def test_features_beyond_float16_are_refused(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    encoder.fast = lambda precision, **_: lambda images: torch.full((len(images), 4, 3), 1e6)
    with pytest.raises(ModelError, match=r"averages-one gives features that float16.*000\.png"):
        build_features(photos, encoder, root)
    assert not shards_of(root)


# --- damage -----------------------------------------------------------------------------------


def test_a_flipped_bit_is_refused_on_reading_and_repaired(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    build_features(photos, encoder, root)
    store = open_features(photos, encoder, root)
    shard, start = shard_holding(root, photos[6])
    flip(shard, start + 5)
    assert np.array_equal(store.read(photos[:6]), direct(photos[:6]))
    with pytest.raises(CacheError) as refusal:
        store.read(photos)
    assert f"Shard {shard} is damaged: the features of {photos[6]} do not match" in str(
        refusal.value
    )
    assert "`regard features PATH --encoder averages-one`" in str(refusal.value)

    messages: list[str] = []
    repaired = build_features(photos, encoder, root, on_message=messages.append)
    assert np.array_equal(repaired.read(photos), direct(photos))
    assert encoder.encoded == 10 + SHARD
    assert messages == [
        f"Shard {shard} was damaged and removed: the features of 1 of its 4 photos do not match "
        "their checksums. Its photos are computed again."
    ]


def test_a_cut_shard_is_refused_and_repaired(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    before = build_features(photos, encoder, root)
    shard, _ = shard_holding(root, photos[0])
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(
        CacheError, match=r"damaged: it has .* bytes where .* belong\. `regard feat"
    ):
        before.read(photos)
    with pytest.raises(CacheError, match="4 of 10 photos have no features.* is damaged: it has "):
        open_features(photos, encoder, root)
    assert len(open_features(photos[4:], encoder, root)) == 6
    messages: list[str] = []
    repaired = build_features(photos, encoder, root, verify=False, on_message=messages.append)
    assert np.array_equal(repaired.read(photos), direct(photos))
    assert [str(shard) in message for message in messages] == [True]
    with pytest.raises(CacheError, match="is damaged: .*No such file"):
        before.read(photos)


def test_a_shard_that_vanishes_during_verification_is_computed_again(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Another process verifies too, and removes a damaged shard between our look and our reading.
    build_features(photos, Averages(), root)
    shard, _ = shard_holding(root, photos[0])
    refresh = features._Cache.refresh

    def refresh_then_lose(cache: features._Cache) -> None:
        refresh(cache)
        monkeypatch.undo()
        shard.unlink()

    monkeypatch.setattr(features._Cache, "refresh", refresh_then_lose)
    encoder = Averages()
    store = build_features(photos, encoder, root)
    assert encoder.encoded == SHARD
    assert np.array_equal(store.read(photos), direct(photos))


def test_shards_of_another_encoder_are_not_used(photos: list[Path], root: Path) -> None:
    build_features(photos, Averages(weights="two"), root)
    ours, theirs = cache_dir(root, Averages()), cache_dir(root, Averages(weights="two"))
    build_features([], Averages(), root)
    for shard in (theirs / "shards").iterdir():
        shutil.copy(shard, ours / "shards")
    with pytest.raises(CacheError, match="it belongs to another encoder or preparation"):
        open_features(photos, Averages(), root)
    encoder = Averages()
    messages: list[str] = []
    build_features(photos, encoder, root, on_message=messages.append)
    assert encoder.encoded == 10
    assert len(messages) == 3


def test_a_foreign_manifest_is_refused(photos: list[Path], root: Path) -> None:
    build_features(photos, Averages(weights="two"), root)
    cache_dir(root, Averages(weights="two")).rename(cache_dir(root, Averages()))
    for use in (build_features, open_features):
        with pytest.raises(CacheError) as refusal:
            use(photos, Averages(), root)
        message = str(refusal.value)
        assert "averages-two with weights two in float32, not averages-one with weights" in message
        assert "Move that directory away" in message


def test_a_damaged_manifest_is_refused_and_repaired(photos: list[Path], root: Path) -> None:
    encoder = Averages()
    build_features(photos, encoder, root)
    manifest = cache_dir(root, encoder) / "manifest.json"
    whole = manifest.read_text()
    for damage in ("", "[]", whole[:-9]):
        manifest.write_text(damage)
        with pytest.raises(CacheError, match=r"manifest\.json is damaged\. `regard features"):
            open_features(photos, encoder, root)
        messages: list[str] = []
        build_features(photos, encoder, root, on_message=messages.append)
        assert messages == [f"{manifest} is damaged and was written again."]
        assert manifest.read_text() == whole
    assert encoder.encoded == 10


def test_features_that_were_never_computed_are_refused(photos: list[Path], root: Path) -> None:
    with pytest.raises(CacheError, match="There are no features of encoder averages-one yet in"):
        open_features(photos, Averages(), root)
    assert not root.exists()


# --- disks ------------------------------------------------------------------------------------


def test_a_full_disk_is_refused_before_work(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Averages()
    build_features(photos[:5], encoder, root)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 9, 100))
    with pytest.raises(CacheError, match=r"features of 5 photos need 121 bytes, and .* 100 free"):
        build_features(photos, encoder, root)
    assert encoder.encoded == 5
    build_features(photos[:5], encoder, root)


def test_a_disk_that_fills_up_on_the_way_is_reported(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    build_features(photos[:SHARD], Averages(), root)
    monkeypatch.setattr(features, "write_shard", full)
    with pytest.raises(CacheError, match=r"could not be written to .*No space left.* run again"):
        build_features(photos, Averages(), root)
    assert len(open_features(photos[:SHARD], Averages(), root)) == SHARD


def test_a_root_that_cannot_be_used_is_refused(photos: list[Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"cache .*file cannot be used: .*Not a directory.*REGARD"):
        build_features(photos, Averages(), tmp_path / "file")


def test_remains_of_killed_processes_are_cleared_away(photos: list[Path], root: Path) -> None:
    build_features(photos, Averages(), root)
    shards = cache_dir(root, Averages()) / "shards"
    old, new = shards / ".a.safetensors.1.tmp", shards / ".b.safetensors.2.tmp"
    for path in (old, new):
        path.write_bytes(b"half a sh")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    build_features(photos, Averages(), root)
    assert (old.exists(), new.exists()) == (False, True)
    assert len(open_features(photos, Averages(), root)) == 10


# --- several processes ------------------------------------------------------------------------


LOCKS = Path("/proc/locks")


class Filler(NamedTuple):
    """Another process that fills the cache."""

    process: subprocess.Popen[str]

    def wait_for(self, word: str) -> list[str]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.split()[0] == word:
                return line.split()[1:]
        raise AssertionError(f"the process ended without a word of {word}")


@pytest.fixture
def start(root: Path, tmp_path: Path) -> Iterator[Callable[[float], Filler]]:
    fillers: list[Filler] = []

    def start(delay_s: float) -> Filler:
        command = [sys.executable, __file__, str(root), str(tmp_path / "photos"), str(delay_s)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        fillers.append(Filler(process))
        return fillers[-1]

    yield start
    for filler in fillers:
        filler.process.kill()
        filler.process.communicate()


def main() -> None:
    """Fill a cache, one photo at a time, and say what happens."""
    root, folder, delay_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    features.PHOTOS_PER_SHARD = SHARD
    encoder = Averages(delay_s=delay_s)
    print("ready", flush=True)
    input()

    def report(done: int, total: int) -> None:
        print(f"done {done} {encoder.encoded}", flush=True)

    build_features(sorted(folder.iterdir()), encoder, root, batch_size=1, on_progress=report)
    print(f"finished {encoder.encoded}", flush=True)


def go(*fillers: Filler) -> None:
    """Let them begin together: importing takes longer than the work."""
    for filler in fillers:
        filler.wait_for("ready")
    for filler in fillers:
        assert filler.process.stdin is not None
        filler.process.stdin.write("\n")
        filler.process.stdin.flush()


def test_work_goes_on_after_a_kill(
    photos: list[Path], root: Path, start: Callable[[float], Filler]
) -> None:
    filler = start(0.2)
    go(filler)
    while int(filler.wait_for("done")[0]) < SHARD + 2:
        pass
    filler.process.send_signal(signal.SIGKILL)
    filler.process.wait()
    kept = SHARD * len(shards_of(root))
    assert SHARD <= kept < len(photos)
    encoder = Averages()
    store = build_features(photos, encoder, root)
    assert encoder.encoded == len(photos) - kept
    assert np.array_equal(store.read(photos), direct(photos))


@pytest.mark.skipif(not LOCKS.exists(), reason=f"this system has no {LOCKS} to wait on")
def test_the_claims_of_a_killed_process_pass_to_the_living(
    photos: list[Path], root: Path, start: Callable[[float], Filler]
) -> None:
    filler = start(60)
    go(filler)
    assert filler.wait_for("done") == ["0", "0"]
    claims = cache_dir(root, Averages()) / "claims"
    while not (claims.exists() and is_claimed(claims)):
        time.sleep(0.01)
    encoder = Averages()

    def kill_when_only_its_share_is_left(done: int, total: int) -> None:
        if done == total - 2 * SHARD:
            filler.process.kill()

    store = build_features(photos, encoder, root, on_progress=kill_when_only_its_share_is_left)
    assert filler.process.wait(10) == -signal.SIGKILL
    assert encoder.encoded == len(photos)
    assert np.array_equal(store.read(photos), direct(photos))


def is_claimed(claims: Path) -> bool:
    inode = claims.stat().st_ino
    lines = LOCKS.read_text().splitlines()
    return sum(f":{inode} " in line for line in lines) >= SHARD


def test_what_another_finished_while_we_claimed_is_not_computed_again(
    photos: list[Path], root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take = features._Claims.take
    encoder, other = Averages(), Averages()

    def take_too_late(claims: features._Claims, fingerprint: str) -> bool:
        monkeypatch.undo()
        build_features(photos, other, root)
        return take(claims, fingerprint)

    monkeypatch.setattr(features._Claims, "take", take_too_late)
    store = build_features(photos, encoder, root)
    assert (encoder.encoded, other.encoded) == (0, len(photos))
    assert np.array_equal(store.read(photos), direct(photos))


def test_two_processes_share_the_work(
    root: Path, tmp_path: Path, start: Callable[[float], Filler]
) -> None:
    photos = draw_photos(tmp_path / "photos", 24)
    fillers = [start(0.05), start(0.05)]
    go(*fillers)
    shares = [int(filler.wait_for("finished")[0]) for filler in fillers]
    assert sum(shares) == len(photos)
    assert min(shares) >= SHARD
    assert len(shards_of(root)) == len(photos) // SHARD
    store = open_features(photos, Averages(), root)
    assert np.array_equal(store.read(photos), direct(photos))


if __name__ == "__main__":
    main()
