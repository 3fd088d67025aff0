"""Shards: any tar reader opens them, offsets are exact, bytes depend on content alone, nothing half-written stays."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from components.images.shards import ShardWriter
from components.storage import open_store

MEMBERS = [(f"key{i:03d}", "jpg" if i % 2 else "png", bytes([i]) * (i * 97 % 1500)) for i in range(40)]


def write(folder: Path, max_bytes: int = 8192) -> tuple[ShardWriter, list[object]]:
    with ShardWriter(open_store(str(folder)), "000007", max_bytes) as writer:
        places = [writer.add(*member) for member in MEMBERS]
    return writer, places


def test_python_tarfile_and_offsets_read_the_same(tmp_path: Path) -> None:
    writer, places = write(tmp_path)
    store = open_store(str(tmp_path))
    assert len(writer.shards) > 1
    found = {}
    for name, facts in writer.shards.items():
        content = (tmp_path / name).read_bytes()
        assert facts == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        with tarfile.open(tmp_path / name) as tar:
            found |= {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
    assert found == {f"{key}.{extension}": data for key, extension, data in MEMBERS}
    for (_, _, data), place in zip(MEMBERS, places, strict=True):
        assert store.read(place.shard, place.offset, place.length) == data


def test_a_shard_stays_below_its_size_unless_one_image_is_larger(tmp_path: Path) -> None:
    writer, _ = write(tmp_path, 8192)
    # tarfile pads a whole file to 10,240 bytes; the members themselves stay below the cap
    assert all(int(str(facts["bytes"])) <= 10_240 for facts in writer.shards.values())
    with ShardWriter(open_store(str(tmp_path / "b")), "0", 1024) as big:
        place = big.add("k", "jpg", bytes(50_000))
    assert open_store(str(tmp_path / "b")).read(place.shard, place.offset, place.length) == bytes(50_000)


def test_same_content_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "a")[0].shards == write(tmp_path / "b")[0].shards


def test_a_failed_block_commits_nothing_of_the_open_shard(tmp_path: Path) -> None:
    writer = ShardWriter(open_store(str(tmp_path)), "x", 1 << 20)
    writer.add("k", "jpg", b"data")
    writer.__exit__(RuntimeError, RuntimeError(), None)
    assert writer.shards == {}
    assert list(tmp_path.rglob("*")) == []


def test_a_name_too_long_for_its_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="100"), ShardWriter(open_store(str(tmp_path)), "x", 1 << 20) as writer:
        writer.add("k" * 100, "jpg", b"")
