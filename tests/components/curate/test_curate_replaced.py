"""Files and objects that are replaced under their name, size and time: seen, and never mixed with what was there."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from components.curate import passes
from components.storage import StorageParams, open_store
from components.web.sources.sources_json import Sources, register
from tests.components.curate.test_curate_sources import curated, untracked

__all__ = ["untracked"]  # a fixture, which pytest finds by its name here
HERE = StorageParams(root="data")


def padded(seed: int, size: int = 24_000) -> bytes:
    """A picture in exactly ``size`` bytes: what follows a PNG's end is no part of it."""
    from tests.components.curate.test_curate_sources import picture

    data = picture(seed)
    assert len(data) < size
    return data + bytes(size - len(data))


def replaced(path: Path, data: bytes) -> None:
    """New bytes under the old name, size and time of change."""
    stat = path.stat()
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (stat.st_size, stat.st_mtime_ns)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    for number in range(4):
        (tmp_path / f"in/{number}.png").write_bytes(padded(number))
    return tmp_path / "in"


def test_sources_json_changes_with_the_bytes_of_local_files(source: Path, tmp_path: Path) -> None:
    before = register(str(source), HERE)
    (tmp_path / "list.txt").write_text("in/0.png\nin/2.png\n")
    listed = register(str(tmp_path / "list.txt"), HERE)
    assert register(str(source), HERE) == before
    os.utime(source / "0.png")  # a copy of the same bytes is the same source
    assert register(str(source), HERE) == before
    replaced(source / "2.png", padded(90))
    assert register(str(source), HERE) != before
    assert register(str(tmp_path / "list.txt"), HERE) != listed


def test_sources_json_changes_with_objects_on_s3(s3_endpoint: str, tmp_path: Path) -> None:
    lake = StorageParams(root="s3://vitrail-test/replaced", endpoint_url=s3_endpoint)
    store = open_store(lake)
    for number in range(3):
        store.write(f"{number}.png", padded(number))
    (tmp_path / "list.txt").write_text(f"{lake.root}/0.png\n{lake.root}/1.png\n")
    for source, name in ((lake.root, "2.png"), (str(tmp_path / "list.txt"), "1.png")):
        before = register(source, lake)
        assert all(file.version for file in before.files)
        assert register(source, lake) == before
        versions = before.versions(before.store(tmp_path, lake))
        store.write(name, padded(91))
        after = register(source, lake)
        assert after != before
        assert [file.bytes for file in after.files] == [file.bytes for file in before.files]
        assert before.versions(before.store(tmp_path, lake)) != versions
    store.delete("1.png")
    assert "missing" in before.versions(before.store(tmp_path, lake))


def as_stored(rows: dict[str, dict[str, Any]], out: Path) -> dict[str, str]:
    """Digest of the stored bytes by name; the index must say the same."""
    found = {}
    for url, row in rows.items():
        data = (out / "curate/shards" / row["shard"]).read_bytes()[row["offset"] : row["offset"] + row["length"]]
        found[url.removeprefix("file:")] = hashlib.sha256(data).hexdigest()
        assert row["sha256"] == row["stored_sha256"] == found[url.removeprefix("file:")]
    return found


def test_an_interrupted_curation_does_not_meet_new_bytes_with_old_digests(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(passes, "store", interrupt)
        with pytest.raises(KeyboardInterrupt):
            curated(source, tmp_path)
    replaced(source / "2.png", padded(92))
    monkeypatch.setattr("tests.components.curate.test_curate_sources.registered", lambda *_: None)  # crawl is not rerun
    rows, _ = curated(source, tmp_path)
    expected = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in source.iterdir()}
    assert as_stored(rows, tmp_path) == expected


def test_a_file_that_is_replaced_while_it_is_curated_is_dropped_with_its_reason(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = passes.store

    def late(*given: Any) -> Any:
        replaced(source / "1.png", padded(93))
        return honest(*given)

    monkeypatch.setattr(passes, "store", late)
    rows, report = curated(source, tmp_path)
    assert {url: row["reason"] for url, row in rows.items()} == {
        "file:0.png": "", "file:1.png": "changed", "file:2.png": "", "file:3.png": "",
    }  # fmt: skip
    assert report["reasons"] == {"changed": 1}
    assert len(Sources.load(tmp_path / "crawl").files) == 4
