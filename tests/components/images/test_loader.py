from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from patience import PATIENCE

from components.errors import VitrailError
from components.images.dataset import Address
from components.images.decode import DecodeLimits, decode, encode_jpeg
from components.images.loader import Batch, Loader, LoaderParams, ManifestDataset, Stream
from components.images.quarantine import read_quarantine
from components.images.shards import Shards, ShardWriter
from components.storage import StorageParams, open_store
from components.tables.parts import PartWriter, read_table, write_table
from components.tables.schemas import MANIFEST


class Pair:
    """A transform that can travel to a worker: the image's level and a random number."""

    def __call__(self, source: bytes | np.ndarray, generator: np.random.Generator) -> tuple[int, float]:
        pixels = decode(source, DecodeLimits()) if isinstance(source, bytes) else source
        return int(pixels.flat[0]), float(generator.random())


def make_set(
    folder: Path,
    images: int,
    corrupt: tuple[int, ...] = (),
    weights: list[float] | None = None,
    storage: StorageParams | None = None,
    damage: Callable[[bytes], bytes] = lambda data: b"no image",
) -> ManifestDataset:
    """A curated set of flat images, image i of level i, in shards of a few images."""
    curated = folder / "curate"
    base = storage.root if storage else ""
    store = open_store(storage) if storage else open_store(str(curated / "shards"))
    rows: list[dict[str, object]] = []
    with ShardWriter(store, "s", 8 * 2048) as writer:
        for i in range(images):
            data = encode_jpeg(np.full((24, 20, 3), i, np.uint8), 95)
            at = writer.add(f"k{i:03d}", "jpg", damage(data) if i in corrupt else data)
            rows.append(
                {"key": f"k{i:03d}", "shard": at.shard, "offset": at.offset, "length": at.length}
                | {"width": 20, "height": 24, "weight": weights[i] if weights else 1.0, "reason": "pool"}
            )
    curated.mkdir(parents=True, exist_ok=True)
    Shards(base, writer.shards).save(curated)
    write_table(folder / "manifest", rows, MANIFEST)
    return ManifestDataset(curated, folder / "manifest", storage or StorageParams(root=str(folder)))


def take(loader: Loader, count: int) -> list[Batch]:
    return list(itertools.islice(loader, count))


def flat(batches: list[Batch]) -> list[tuple[str, int, float]]:
    return [(k, *d) for b in batches for k, d in zip(b.keys, b.data, strict=True)]


def test_every_epoch_holds_every_image_once_in_another_order(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 30)
    drawn = flat(take(Loader(dataset, Pair(), Stream(6, seed=1)), 15))
    epochs = [[k for k, _, _ in drawn[i : i + 30]] for i in (0, 30, 60)]
    assert all(sorted(e) == [f"k{i:03d}" for i in range(30)] for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert all(level == int(key[1:]) for key, level, _ in drawn)
    assert len({random for _, _, random in drawn}) == 90


def test_seed_decides(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 12)
    one, same, other = (flat(take(Loader(dataset, Pair(), Stream(4, seed=s)), 5)) for s in (1, 1, 2))
    assert one == same != other


@pytest.mark.parametrize("stop", [1, 4, 7])
def test_resumes_exactly_with_another_world(tmp_path: Path, stop: int) -> None:
    """Global batch of 12: as 1 x 12, then resumed as 3 x 4; the union of the ranks goes on as if nothing happened."""
    dataset = make_set(tmp_path, 17)
    whole = take(Loader(dataset, Pair(), Stream(12, seed=3)), 10)
    first = Loader(dataset, Pair(), Stream(12, seed=3))
    assert flat(take(first, stop)) == flat(whole[:stop])
    state = first.state_dict()
    assert state["consumed"] == 12 * stop
    assert state["epoch"] * 17 + state["position"] == 12 * stop
    ranks = []
    for rank in range(3):
        loader = Loader(dataset, Pair(), Stream(4, 3, rank, world=3))
        loader.load_state_dict(state)
        ranks.append(take(loader, 10 - stop))
        assert loader.state_dict()["consumed"] == 120
    assert [flat(list(step)) for step in zip(*ranks, strict=True)] == [flat([b]) for b in whole[stop:]]


class Noted(Pair):
    """A :class:`Pair` that leaves a file behind for every sample it makes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def __call__(self, source: bytes | np.ndarray, generator: np.random.Generator) -> tuple[int, float]:
        made = super().__call__(source, generator)
        (self.folder / f"{made[1]}").touch()
        return made


def test_state_counts_what_was_handed_out_not_what_was_prepared(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 10)
    noted = Noted(tmp_path / "made")
    loader = Loader(dataset, noted, Stream(3, seed=0), params=LoaderParams(workers=1, prefetch=4))
    with contextlib.closing(iter(loader)) as iterator:  # ends the worker, whatever fails
        next(iterator)
        until = time.monotonic() + PATIENCE
        while len(list(noted.folder.iterdir())) < 12:  # the worker goes on to prepare: three batches ahead at least
            assert time.monotonic() < until
            time.sleep(0.02)
        state = loader.state_dict()
        assert state["consumed"] == 3
        second = next(iterator)
    resumed = Loader(dataset, Pair(), Stream(3, seed=0))
    resumed.load_state_dict(state)
    assert flat(take(resumed, 1)) == flat([second])


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    state = Loader(make_set(tmp_path / "a", 10), Pair(), Stream(3, seed=0)).state_dict()
    with pytest.raises(VitrailError, match="seed 0, this run 1"):
        Loader(make_set(tmp_path / "b", 10), Pair(), Stream(3, seed=1)).load_state_dict(state)
    with pytest.raises(VitrailError, match="rows 10, this run 11"):
        Loader(make_set(tmp_path / "c", 11), Pair(), Stream(3, seed=0)).load_state_dict(state)


def test_workers_change_nothing(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 20, corrupt=(3, 11))
    alone = Loader(dataset, Pair(), Stream(4, seed=5), quarantine=tmp_path / "q0")
    expected = take(alone, 12)
    loader = Loader(dataset, Pair(), Stream(4, seed=5), params=LoaderParams(workers=2), quarantine=tmp_path / "q2")
    assert flat(take(loader, 12)) == flat(expected)
    assert loader.state_dict() == alone.state_dict()
    assert read_quarantine(tmp_path / "q2") == read_quarantine(tmp_path / "q0")


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: b"<html>", lambda d: d[: len(d) // 2]])
def test_corrupt_images_are_replaced_and_reported(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    bad = (0, 7, 8)
    dataset = make_set(tmp_path, 12, corrupt=bad, damage=damage)
    drawn = flat(take(Loader(dataset, Pair(), Stream(4, seed=2), quarantine=tmp_path / "q"), 9))
    assert len(drawn) == 36
    assert not {key for key, _, _ in drawn} & {f"k{i:03d}" for i in bad}
    entries = read_quarantine(tmp_path / "q")
    assert [e.key for e in entries] == [f"k{i:03d}" for i in bad]
    assert all(e.reason and e.shard.endswith(".tar") for e in entries)
    assert drawn == flat(take(Loader(dataset, Pair(), Stream(4, seed=2)), 9))


def test_all_corrupt_ends_with_one_line(tmp_path: Path) -> None:
    loader = Loader(make_set(tmp_path, 3, corrupt=(0, 1, 2)), Pair(), Stream(2, seed=0))
    with pytest.raises(VitrailError, match="100 images in a row could not be decoded, the last k00"):
        take(loader, 1)


def test_all_corrupt_in_workers_ends_too(tmp_path: Path) -> None:
    loader = Loader(make_set(tmp_path, 3, corrupt=(0, 1, 2)), Pair(), Stream(2, seed=0), params=LoaderParams(workers=1))
    before = set(multiprocessing.active_children())
    with pytest.raises(VitrailError, match=r"100 images in a row could not be decoded[^\n]*$") as fault:
        take(loader, 1)
    # Deaf to SIGTERM, a worker that a traceback kept alive would keep this process from ever ending.
    assert not set(multiprocessing.active_children()) - before, fault


def test_missing_shard_is_an_error_not_a_corrupt_image(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 9)
    for shard in (tmp_path / "curate" / "shards").iterdir():
        shard.unlink()
    with pytest.raises(VitrailError, match="the shard is not there"):
        take(Loader(dataset, Pair(), Stream(2, seed=0)), 1)


def test_weights_are_expected_draws(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 4, weights=[1.0, 3.0, 0.0, 0.5])
    drawn = [k for k, _, _ in flat(take(Loader(dataset, Pair(), Stream(9, seed=0)), 40))]
    counts = np.array([drawn.count(f"k{i:03d}") for i in range(4)])
    assert counts[2] == 0
    assert np.abs(counts / counts[0] - [1, 3, 0, 0.5]).max() < 0.2


def test_cache_gives_pixels_once_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = make_set(tmp_path, 6)
    reads: list[str] = []
    original = ManifestDataset.read

    def read(self: ManifestDataset, address: Address) -> bytes:
        reads.append(address.key)
        return original(self, address)

    monkeypatch.setattr(ManifestDataset, "read", read)
    shapes: list[tuple[int, ...]] = []

    def transform(pixels: np.ndarray, generator: np.random.Generator) -> int:
        shapes.append(pixels.shape)
        return 0

    params = LoaderParams(cache_decoded=True, cache_side=16)
    take(Loader(dataset, transform, Stream(6, seed=0), params=params), 3)
    assert sorted(reads) == [f"k{i:03d}" for i in range(6)]
    assert set(shapes) == {(19, 16)}  # 24 x 20 gray pixels, the shorter side 16


def test_reads_from_s3_by_range(tmp_path: Path, s3_endpoint: str) -> None:
    storage = StorageParams(root="s3://vitrail-test/loader", endpoint_url=s3_endpoint)
    remote = make_set(tmp_path / "remote", 14, storage=storage)
    local = make_set(tmp_path / "local", 14)
    asked: list[tuple[str, str]] = []
    received: list[int] = []

    def note(request: Any, **_: Any) -> None:
        asked.append((request.method, bytes(request.headers["Range"]).decode()))

    def note_size(http_response: Any, **_: Any) -> None:
        received.append(int(http_response.headers["Content-Length"]))

    remote.read(remote.addresses([0])[0])  # opens the store
    events = remote._store._client.meta.events
    events.register("before-send.s3", note)
    events.register("after-call.s3", note_size)
    assert flat(take(Loader(remote, Pair(), Stream(7, seed=4)), 3)) == flat(
        take(Loader(local, Pair(), Stream(7, seed=4)), 3)
    )
    wanted = [(a.offset, a.offset + a.length - 1) for a in remote.addresses(range(14))]
    assert len(asked) == 21  # a request an image, and nothing else: no listing, no whole shard
    assert set(asked) == {("GET", f"bytes={first}-{last}") for first, last in wanted}
    assert set(received) == {last - first + 1 for first, last in wanted}


def test_more_shards_than_handles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.images.dataset.OPEN_SHARDS", 2)
    dataset = make_set(tmp_path, 60)
    assert len({a.shard for a in dataset.addresses(range(60))}) > 4
    assert len({k for k, _, _ in flat(take(Loader(dataset, Pair(), Stream(10, seed=0)), 6))}) == 60
    assert len(dataset._handles) == 2
    dataset.close()


def test_bad_arguments(tmp_path: Path) -> None:
    dataset = make_set(tmp_path, 3)
    with pytest.raises(VitrailError, match="rank 2 of 2"):
        Loader(dataset, Pair(), Stream(1, seed=0, rank=2, world=2))
    with pytest.raises(VitrailError, match="batch size 0"):
        Loader(dataset, Pair(), Stream(0, seed=0))
    write_table(tmp_path / "manifest", pa.table({n: [] for n in MANIFEST.names}), MANIFEST)
    with pytest.raises(VitrailError, match="holds no image"):
        Loader(ManifestDataset(tmp_path / "curate", tmp_path / "manifest", dataset.storage), Pair(), Stream(1, seed=0))


@pytest.mark.parametrize(("part_rows", "kept"), [(7, 3), (10, 100), (64, 1)])
def test_a_long_manifest_is_read_by_the_parts_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_rows: int, kept: int
) -> None:
    whole = make_set(tmp_path, 50)
    expected = whole.addresses(range(50))
    table = read_table(tmp_path / "manifest", MANIFEST)
    with PartWriter(tmp_path / "parts", MANIFEST, part_rows) as writer:
        writer.write(table)
    monkeypatch.setattr("components.images.dataset.RUN", 4)
    monkeypatch.setattr("components.images.dataset.RUNS", min(kept, 12))  # fewer than there are: never read whole
    parts = ManifestDataset(tmp_path / "curate", tmp_path / "parts", whole.storage)
    assert len(parts) == 50
    assert parts.weights() is None  # all are 1: nothing an image is held
    assert parts.addresses(range(50)) == expected
    rows = [49, 3, 17, 3, 0, 48, 30]
    assert parts.addresses(rows) == [expected[row] for row in rows]
    assert parts._whole is None
    assert len(parts._runs) <= kept
    assert flat(take(Loader(parts, Pair(), Stream(7, seed=4)), 9)) == flat(
        take(Loader(whole, Pair(), Stream(7, seed=4)), 9)
    )
