"""Folders, lists and mixtures as strangers keep them, registered and curated: nothing ends the run, all is counted."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components import tracking
from components.context import StageContext
from components.crawl.run import main
from components.curate import stage
from components.curate.params import CurateParams
from components.params import load_params
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import INDEX
from components.web.formats.warc import WarcWriter

ROOT = Path(__file__).resolve().parents[3]
RESTRICTED = "http://ads.restricted.test/x.png"


def picture(seed: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (80, 80, 3), np.uint8)).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def run(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", run)


def curated(source: Path, out: Path) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """The index's rows by address, and the report, of ``source`` registered and curated."""
    registered(source, out)
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0",
                "nsfw.enabled=false", "faces.enabled=false", "sandbox.enabled=false"]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, overlays)
    context = StageContext(StorageParams(root="data"), None, out / "r.json")
    report = stage.run(params, stage.CurateInputs(out / "crawl"), out / "curate", context)
    rows = read_table(out / "curate/index", INDEX).to_pylist()
    return {row["url"]: row for row in rows}, report


def registered(source: Path, out: Path) -> None:
    main(["run", "--params", str(ROOT / "params/crawl.yaml"), "--source", str(source), "--out", str(out / "crawl")])


def test_a_strangers_folder_is_curated(tmp_path: Path) -> None:
    top = tmp_path / os.fsdecode(b"in \xe9")
    top.mkdir()
    for number, name in enumerate((os.fsdecode(b"caf\xe9.png"), "no suffix", "50% #1?.png", "shut.png", "gone.png")):
        (top / name).write_bytes(picture(number))
    (top / "not.png").write_bytes(b"<html>")
    (top / "empty.png").touch()
    os.mkfifo(top / "pipe.png")
    registered(top, tmp_path)
    assert json.loads((tmp_path / "crawl/crawl.json").read_text()) == {"files": 6, "left-empty": 1, "left-special": 1}
    rows, report = curated(top, tmp_path)
    assert {url: row["reason"] for url, row in rows.items()} == {
        "file:caf%E9.png": "", "file:no%20suffix": "", "file:50%25%20%231%3F.png": "", "file:shut.png": "",
        "file:gone.png": "", "file:not.png": "not-an-image",
    }  # fmt: skip
    assert rows["file:caf%E9.png"]["source"].endswith("in \\xe9")
    assert (report["left-empty"], report["left-special"], report["kept"]) == (1, 1, 5)


def test_files_that_fail_after_they_were_listed_are_rows_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    for number in range(3):
        (tmp_path / f"in/{number}.png").write_bytes(picture(number))
    gather = stage.gather

    def lose(*given: Any) -> Any:
        (tmp_path / "in/1.png").unlink()
        (tmp_path / "in/2.png").unlink()
        (tmp_path / "in/2.png").mkdir()
        return gather(*given)

    monkeypatch.setattr(stage, "gather", lose)
    rows, report = curated(tmp_path / "in", tmp_path)
    assert [rows[f"file:{n}.png"]["reason"] for n in range(3)] == ["", "unreadable", "unreadable"]
    assert report["reasons"] == {"unreadable": 2}


def test_shards_and_crawls_that_vanish_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").write_bytes(picture(1))
    for name in ("b.tar", "c.warc.gz"):
        (tmp_path / "in" / name).write_bytes(b"rubbish")
    gather = stage.gather

    def lose(*given: Any) -> Any:
        (tmp_path / "in/b.tar").unlink()
        (tmp_path / "in/c.warc.gz").unlink()
        (tmp_path / "in/c.warc.gz").mkdir()
        return gather(*given)

    monkeypatch.setattr(stage, "gather", lose)
    rows, report = curated(tmp_path / "in", tmp_path)
    assert list(rows) == ["file:a.png"]
    assert (report["tar-unreadable"], report["warc-unreadable"]) == (1, 1)


def test_texts_beside_images_give_captions_and_ask_policy(tmp_path: Path) -> None:
    """img2dataset's folders of files: 00000/000000000.jpg, .json and .txt."""
    top = tmp_path / "in/00000"
    top.mkdir(parents=True)
    for number, url in enumerate((RESTRICTED, "http://h.test/1.png", "http://h.test/1.png")):
        (top / f"{number}.png").write_bytes(picture(number))
        (top / f"{number}.json").write_text(json.dumps({"url": url, "caption": "c", "status": "success"}))
    (top / "1.txt").write_text("one")
    (top / "3.png").write_bytes(picture(3))
    rows, report = curated(tmp_path / "in", tmp_path)
    assert {url: (row["reason"], row["alt"]) for url, row in rows.items()} == {
        RESTRICTED: ("restricted-domain", "c"), "http://h.test/1.png": ("", "one"), "file:00000/3.png": ("", ""),
    }  # fmt: skip
    assert report["repeated-address"] == 1


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_an_image_folders_metadata_table_is_read(tmp_path: Path, kind: str) -> None:
    top = tmp_path / "in"
    (top / "cat").mkdir(parents=True)
    for number, name in enumerate(("cat/1.png", "2.png")):
        (top / name).write_bytes(picture(number))
    told = [
        {"file_name": "cat/1.png", "text": "a, cat", "url": ""},
        {"file_name": "./2.png", "text": "", "url": RESTRICTED},
    ]
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(told), top / "metadata.parquet")
    elif kind == "jsonl":
        (top / "metadata.jsonl").write_text("\n".join([*map(json.dumps, told), "[rubbish", "[1]", ""]))
    else:
        lines = ["file_name,text,url", 'cat/1.png,"a, cat",', f"./2.png,,{RESTRICTED}", "gone.png,none,"]
        (top / "metadata.csv").write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    rows, _ = curated(top, tmp_path)
    assert {url: (row["reason"], row["alt"]) for url, row in rows.items()} == {
        "file:cat/1.png": ("", "a, cat"), RESTRICTED: ("restricted-domain", ""),
    }  # fmt: skip


def test_a_mixture_is_read_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    top = tmp_path / "in"
    top.mkdir()
    (top / "a.png").write_bytes(picture(1))
    (top / "notes.md").write_text("# notes")
    (top / "empty.tar").write_bytes(bytes(10_240))
    with tarfile.open(top / "b.tar", "w") as file:
        info = tarfile.TarInfo("x.png")
        info.size = len(picture(2))
        file.addfile(info, io.BytesIO(picture(2)))
    with open(top / "c.warc.gz", "wb") as handle:
        writer = WarcWriter(handle, "2026-01-01T00:00:00Z")
        writer.response("http://h.test/", 200, "OK", [("Content-Type", "text/html")], b"<img src=i.png>")
        writer.response("http://h.test/i.png", 200, "OK", [("Content-Type", "image/png")], picture(3))
    rows, report = curated(top, tmp_path)
    assert {url: row["reason"] for url, row in rows.items()} == {
        "http://h.test/i.png": "", "file:b.tar/x.png": "", "file:a.png": "",
    }  # fmt: skip
    assert report["left-other"] == 1
    (top / "c.warc.gz").write_bytes(b"rubbish")
    (top / "b.tar").write_bytes(b"rubbish")
    rows, report = curated(top, tmp_path)
    assert {url: row["reason"] for url, row in rows.items()} == {"file:a.png": ""}
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert any("no HTTP response could be read" in line for line in warned)
    assert any("no image in 2 tar shards" in line for line in warned)
