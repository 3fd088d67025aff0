"""Sources as strangers keep them: nothing that lies there ends the run, and nothing is left out without a word."""

from __future__ import annotations

import gzip
import io
import json
import os
import socket
import tarfile
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from components.errors import VitrailError
from components.storage import StorageParams, open_store
from components.web.formats.warc import WarcWriter
from components.web.sources.kinds import HEAD, KINDS, LEFT, what_is
from components.web.sources.listing import shown
from components.web.sources.sources_json import Sources, register

HERE = StorageParams(root="data")


def picture(kind: str = "PNG", seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 40, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def tiff(tags: dict[int, int], order: Literal["little", "big"] = "little") -> bytes:
    """A TIFF's head: its first directory alone, each value a LONG."""
    entries = b"".join(
        tag.to_bytes(2, order) + (4).to_bytes(2, order) + (1).to_bytes(4, order) + value.to_bytes(4, order)
        for tag, value in sorted(tags.items())
    )
    mark = b"II*\0" if order == "little" else b"MM\0*"
    return mark + (8).to_bytes(4, order) + len(tags).to_bytes(2, order) + entries + bytes(4)


def boxed(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands[1:])
    return (8 + len(body)).to_bytes(4, "big") + b"ftyp" + body + bytes(100)


def tarred(names: list[str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 3
            file.addfile(info, io.BytesIO(b"abc"))
    return buffer.getvalue()


def warc(gzipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    WarcWriter(buffer, "2026-01-01T00:00:00Z", gzipped).response("http://h.test/", 200, "OK", [], b"<img src=a.png>")
    return buffer.getvalue()


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.jpg", "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "head", "what"),
    [
        ("a", picture("JPEG"), "images"), ("a.jfif", picture("JPEG"), "images"), ("a.txt", picture(), "images"),
        ("a.jpe", b"cut", "images"), ("a.mpo", b"cut", "images"), ("a.heic", picture("JPEG"), "images"),
        ("a.jpg", picture("AVIF"), "images"), ("a.jpg", picture("WEBP"), "images"), ("a", picture("BMP"), "images"),
        ("BMW.md", b"BMW is a maker of cars", "other"), ("a.jpg", tarred(["x"]), "tars"), ("a.tar", b"rubbish", "tars"),
        ("a", warc(), "warc"), ("a.jpg", warc(False), "warc"), ("a.warc.wat.gz", warc(), "links"),
        ("a.warc.gz", b"rubbish", "warc"), ("a.parquet", b"PAR1 but cut", "links"), ("a", b"PAR1", "links"),
        ("a.tar.gz", gzip.compress(tarred(["x"]), mtime=0), "compressed-tar"), ("a.tgz", b"rubbish", "compressed-tar"),
        ("a.jpg", gzip.compress(tarred(["x"]), mtime=0), "compressed-tar"),
        ("a.txt.gz", gzip.compress(b"words", mtime=0), "other"),
        ("._a.jpg", b"\0\5\x16\7" + bytes(60), "appledouble"), ("a.jpg", b"", "empty"),
        ("a.jpg", boxed(b"heic", b"mif1", b"heic"), "images"), ("a", boxed(b"mif1", b"heic"), "images"),
        ("a", boxed(b"mif1", b"avif"), "images"), ("a", boxed(b"crx ", b"isom"), "camera-raw"),
        ("a.jpg", boxed(b"isom", b"mp42"), "video"), ("a.mov", boxed(b"qt  "), "video"),
        ("a", tiff({0xFE: 0, 0x10F: 9, 0xC612: 1}), "camera-raw"), ("a.nef", tiff({0x100: 9}), "camera-raw"),
        ("a.jpg", tiff({0xFE: 1, 0x10F: 9, 0x14A: 9}, "big"), "camera-raw"), ("a.tif", tiff({0x100: 9}), "images"),
        ("a.tif", tiff({0xFE: 0, 0x10F: 9, 0x14A: 9}), "images"), ("a", b"II*\0\x10\0\0\0CR\2\0", "camera-raw"),
        ("a.jpg", b"FUJIFILMCCD-RAW 0201", "camera-raw"), ("a.cr2", b"rubbish", "camera-raw"),
        ("a.svg", b"<svg xmlns=", "svg"), ("a.jpg", b"\xef\xbb\xbf<?xml version='1.0'?>\n<svg ", "svg"),
        ("a.zip", zipped(), "archive"), ("a.jpg", b"8BPS\0\1", "other-image"), ("a.json", b"{}", "text"),
        ("README.md", b"# words", "other"), ("noise", bytes(range(200, 256)), "other"), ("zeros", bytes(600), "other"),
    ],
)  # fmt: skip
def test_first_bytes_decide_what_a_file_is(name: str, head: bytes, what: str) -> None:
    assert what_is(name, head[:HEAD]) == what


@settings(max_examples=300, deadline=None)
@given(
    st.text(max_size=20), st.binary(max_size=80), st.sampled_from([b"", b"II*\0", b"MM\0*", b"\x1f\x8b\x08", b"RIFF"])
)
def test_any_bytes_are_something(name: str, data: bytes, magic: bytes) -> None:
    assert what_is(name, magic + data) in (*KINDS, *LEFT)


def test_a_strangers_folder_is_read_and_every_thing_left_is_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    top = tmp_path / "in"
    (top / "deep/er").mkdir(parents=True)
    for name in ("a.jpg", "b.jfif", "c.jpe", "d.mpo", "no suffix", "deep/er/e.JPEG", "wrong.tar"):
        (top / name).write_bytes(picture("JPEG", len(name)))
    odd = os.fsdecode(b"caf\xe9\n.png")
    (top / odd).write_bytes(picture())
    (top / ("n" * 251 + ".png")).write_bytes(picture())
    (top / "not.jpg").write_bytes(b"<html>")
    (top / "empty.jpg").touch()
    (top / "._a.jpg").write_bytes(b"\0\5\x16\7" + bytes(60))
    (top / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (top / ".git").mkdir()
    (top / ".git/x.png").write_bytes(picture())
    (top / "gone.jpg").symlink_to("nowhere.jpg")
    (top / "loop.jpg").symlink_to("loop.jpg")
    (top / "round.png").symlink_to("dnuor.png")
    (top / "dnuor.png").symlink_to("round.png")
    os.mkfifo(top / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as plug:
        plug.bind(str(top / "s.jpg"))
    (top / "up").symlink_to("..")  # above the source: other things of its owner's
    (top / "deep/again").symlink_to("..")
    (top / "z-same").symlink_to("deep")
    (tmp_path / "album").mkdir()
    (tmp_path / "album/one.png").write_bytes(picture())
    (top / "album").symlink_to("../album")
    (top / "also").symlink_to("../album")
    (top / "x.heic").write_bytes(boxed(b"heic"))
    (top / "x.nef").write_bytes(tiff({0x100: 9}))
    (top / "notes.md").write_text("# notes")
    (top / "a.txt").write_text("a caption")
    (top / "other.txt").write_text("of no image")

    found = register(str(top), HERE)
    images = [file.path for file in found.of("images")]
    assert set(images) == {
        "a.jpg", "b.jfif", "c.jpe", "d.mpo", "no suffix", "deep/er/e.JPEG", "wrong.tar", odd, "n" * 251 + ".png",
        "not.jpg", "album/one.png", "x.heic",
    }  # fmt: skip
    assert len(images) == len(set(images))
    assert [file.path for file in found.of("text")] == ["a.txt"]
    expected = {
        "empty": 1, "appledouble": 1, "hidden": 2, "dangling-link": 1, "looping-link": 3, "special": 2,
        "linked-twice": 4, "camera-raw": 1, "other": 2,
    }  # fmt: skip
    assert found.left == expected
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("left out: ")]
    assert len(lines) == len(found.left)
    assert "left out: dangling-link 1 (gone.jpg): symbolic links to nothing" in lines
    found.save(tmp_path)
    assert Sources.load(tmp_path) == found
    assert open_store(str(top)).read(odd) == picture()


def test_what_may_not_be_read_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir()
    for name in ("a.png", "b.png", "shut/c.png"):
        (tmp_path / name).write_bytes(picture())
    (tmp_path / "t.tar").write_bytes(tarred(["x"]))
    opened, scanned = os.open, os.scandir

    def no_open(path: str, flags: int) -> int:
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied", path)
        return opened(path, flags)

    def no_scan(path: str) -> object:
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", path)
        return scanned(path)

    monkeypatch.setattr(os, "open", no_open)
    monkeypatch.setattr(os, "scandir", no_scan)
    found = register(str(tmp_path), HERE)
    assert [(file.path, file.kind) for file in found.files] == [("a.png", "images"), ("t.tar", "tars")]
    assert found.left == {"unreadable": 1, "unreadable-folder": 1}


def test_a_source_that_cannot_be_read_at_all_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_scan(path: str) -> object:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", no_scan)
    with pytest.raises(VitrailError, match="Permission denied; mend its permissions"):
        register(str(tmp_path), HERE)


def test_folders_as_others_write_them_are_taken(tmp_path: Path) -> None:
    shards, pool, crawl = tmp_path / "img2dataset", tmp_path / "imagefolder", tmp_path / "warcs"
    for folder in (shards, pool / "cat", pool / "dog", crawl):
        folder.mkdir(parents=True)
    (shards / "00000.tar").write_bytes(tarred(["000000000.jpg", "000000000.json"]))
    (shards / "00000.parquet").write_bytes(b"PAR1 and so on")
    (shards / "00000_stats.json").write_text("{}")
    found = register(str(shards), HERE)
    assert [(file.path, file.kind) for file in found.files] == [("00000.tar", "tars")]
    assert found.left == {"table": 1, "other": 1}
    for name in ("cat/1.jpg", "dog/1.jpg"):
        (pool / name).write_bytes(picture("JPEG"))
    for name in ("metadata.csv", "dog/metadata.jsonl", "metadata.parquet"):
        (pool / name).write_bytes(b"file_name,text\ncat/1.jpg,a cat\n")
    (pool / "README.md").write_text("# a data set")
    found = register(str(pool), HERE)
    assert [file.path for file in found.of("images")] == ["cat/1.jpg", "dog/1.jpg"]
    assert {file.path for file in found.of("text")} == {"metadata.csv", "dog/metadata.jsonl", "metadata.parquet"}
    assert all(file.sha256 for file in found.of("text"))  # their change is a change of the source
    assert found.left == {"other": 1}
    (crawl / "a.warc.gz").write_bytes(warc())
    (crawl / "stray.png").write_bytes(picture())
    (crawl / "cdx.json").write_text("{}")
    (crawl / "a.warc.wat.gz").write_bytes(warc())
    found = register(str(crawl), HERE)
    assert [(file.path, file.kind) for file in found.files] == [("a.warc.gz", "warc"), ("stray.png", "images")]
    assert found.left == {"addresses": 1, "other": 1}
    found = register(str(crawl), HERE, ("warc", "links"))
    assert [file.path for file in found.files] == ["a.warc.gz", "a.warc.wat.gz"]
    assert found.left == {"unasked": 1, "other": 1}


def test_tables_that_hold_images_are_named_as_that(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [{"bytes": picture(), "path": "a.png"}], "label": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"jpg": [picture("JPEG")]}), tmp_path / "b.parquet")
    pq.write_table(pa.table({"url": ["http://h.test/a.png"]}), tmp_path / "c.parquet")
    (tmp_path / "d.parquet").write_bytes(b"PAR1 and rubbish")
    with pytest.raises(VitrailError, match=r"addresses 2, image-table 2|kind: fetch"):
        register(str(tmp_path), HERE)
    for name in ("c.parquet", "d.parquet"):
        (tmp_path / name).unlink()
    with pytest.raises(VitrailError, match=r"2 files, none of them .*\(image-table 2\)"):
        register(str(tmp_path), HERE)
    (tmp_path / "e.png").write_bytes(picture())
    assert register(str(tmp_path), HERE).left == {"image-table": 2}


def test_lists_take_what_is_there_and_count_the_rest(tmp_path: Path) -> None:
    odd = b"d/caf\xe9.png"
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a b.png").write_bytes(picture())
    (tmp_path / os.fsdecode(odd)).write_bytes(picture())
    (tmp_path / "d/own folder.png").mkdir()
    content = b"\xef\xbb\xbf# mine\r\nd/a b.png\r\n" + odd + b"\nd/gone.png\nd/a b.png\nd/own folder.png\n"
    for name, data in (("l.txt", content), ("l.txt.gz", gzip.compress(content))):
        (tmp_path / name).write_bytes(data)
        found = register(str(tmp_path / name), HERE)
        assert [file.path for file in found.files] == ["a b.png", os.fsdecode(odd[2:])]
        assert found.left == {"listed-twice": 1, "missing": 1, "special": 1}
    (tmp_path / "l.txt").write_bytes("d/a b.png".encode("utf-16"))
    with pytest.raises(VitrailError, match="write it as UTF-8"):
        register(str(tmp_path / "l.txt"), HERE)


def test_objects_as_buckets_hold_them(s3_endpoint: str, tmp_path: Path) -> None:
    lake = StorageParams(root="s3://vitrail-test/strange", endpoint_url=s3_endpoint)
    store = open_store(lake)
    objects = {
        "a/1.jpg": picture("JPEG"), "a/no suffix": picture(), "a/._1.jpg": b"\0\5\x16\7" + bytes(60), "a/b.bin": b"",
        "a/.hidden": b"x", "a/r.dat": boxed(b"crx "), "a/empty": b"", "t": tarred(["x"]), "a/1.json": b"{}",
    }  # fmt: skip
    for name, data in objects.items():
        store.write(name, data)
    store._client.put_object(Bucket="vitrail-test", Key="strange/a/", Body=b"")  # type: ignore[attr-defined]
    found = register("s3://vitrail-test/strange", lake)
    assert [(file.path, file.kind) for file in found.files] == [
        ("a/1.jpg", "images"), ("a/no suffix", "images"), ("t", "tars"), ("a/1.json", "text"),
    ]  # fmt: skip
    assert found.left == {"appledouble": 1, "camera-raw": 1, "empty": 2, "hidden": 1}
    assert store.read("a/empty", 0, 10) == b""


@given(st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name and b"/" not in name))
def test_any_name_can_be_shown_and_stored(name: bytes) -> None:
    text = shown(os.fsdecode(name))
    assert text.encode().decode() == text
    assert not any(c < " " or c == "\x7f" for c in text)
    assert json.loads(json.dumps(os.fsdecode(name))) == os.fsdecode(name)
