"""Tar shards as a source: agreement with Python's tarfile, hostile tars, and a curation from them."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
from components.web.sources.tars import members, samples

ROOT = Path(__file__).resolve().parents[4]


def png(seed: int, side: int = 80) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def tar(files: list[tuple[str, bytes]], **options: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **options) as file:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def listed(data: bytes) -> tuple[list[tuple[str, bytes]], Counter[str]]:
    counts: Counter[str] = Counter()
    found = members(io.BytesIO(data), len(data), counts)
    return [(m.name, data[m.offset : m.offset + m.length]) for m in found], counts


NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N")), min_size=1, max_size=150)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=5),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_members_as_tarfile_lists_them(files: list[tuple[str, bytes]], kind: int) -> None:
    data = tar(files, format=kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as file:
        expected = [(m.name, file.extractfile(m).read()) for m in file.getmembers()]  # type: ignore[union-attr]
    assert listed(data) == (expected, Counter())


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_tars_end_and_stay_inside(data: st.DataObject) -> None:
    content = bytearray(tar([("a.png", bytes(700)), ("b" * 120, b"x"), ("c.txt", b"words")]))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    counts: Counter[str] = Counter()
    cut = content[: data.draw(st.integers(0, len(content)))]
    for member in members(io.BytesIO(cut), len(cut), counts):
        assert 0 <= member.offset <= member.offset + member.length <= len(cut)


def test_unsafe_members_are_counted_and_left() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("../../etc/passwd.png", "/etc/x.png", "a/../../b.png", "c:\\x.png", "ok.png", "bad\x1bname.png"):
            file.addfile(tarfile.TarInfo(name))
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dev.png", tarfile.CHRTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            file.addfile(info)
    found, counts = listed(buffer.getvalue())
    assert [name for name, _ in found] == ["ok.png"]
    assert counts == {"tar-unsafe-member": 8}


def test_links_inside_a_tar_are_members_and_sparse_files_are_not() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, kind, target in (
            ("d/early.png", tarfile.SYMTYPE, "../a.png"), ("a.png", tarfile.REGTYPE, ""),
            ("h" * 150, tarfile.LNKTYPE, "a.png"), ("s.png", tarfile.SYMTYPE, "./d/early.png"),
            ("round.png", tarfile.SYMTYPE, "round.png"), ("out.png", tarfile.SYMTYPE, "../../a.png"),
            ("lost.png", tarfile.LNKTYPE, "zz.png"), ("b.png", tarfile.REGTYPE, ""),
        ):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            info.size = 3 if kind == tarfile.REGTYPE else 0
            file.addfile(info, io.BytesIO(b"abc"))
    found, counts = listed(buffer.getvalue())
    assert found == [(name, b"abc") for name in ("a.png", "h" * 150, "b.png", "d/early.png", "s.png")]
    assert counts == {"tar-unsafe-member": 3}
    sparse = tarfile.TarInfo("holes.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    head = bytearray(sparse.tobuf(tarfile.GNU_FORMAT))
    head[482] = 1  # the map goes on in a block of its own
    head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:512]))
    data = bytes(head) + b"\1" * 504 + bytes(8) + b"\2" * 512 + tar([("after.png", b"x")])
    assert listed(data) == ([("after.png", b"x")], Counter({"tar-sparse-member": 1}))


def test_tars_put_together_by_cat_are_read_whole() -> None:
    both = tar([("a.png", b"1")]) + tar([("b.png", b"2")])
    assert listed(both) == ([("a.png", b"1"), ("b.png", b"2")], Counter())


def test_names_that_are_not_utf8_are_members() -> None:
    odd = b"caf\xe9\xe2\x80\x8d.png".decode("utf-8", "surrogateescape")
    for kind in (tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT):
        assert listed(tar([(odd, b"x")], format=kind, errors="surrogateescape")) == ([(odd, b"x")], Counter())


def test_members_of_one_sample_may_lie_apart(tmp_path: Path) -> None:
    def facts(number: int) -> bytes:
        return json.dumps({"url": f"http://h.test/{number}.png"}).encode()

    files = [("2.json", facts(2)), ("._1.jpg", b"\0\5\x16\7"), (".jpg", png(7)), ("1.jpg", png(1)),
             ("d/1.jpg", png(2)), ("2.jpg", b"old"), ("2.txt", b"two"), ("p.a.jpg", png(3)), ("p.b.jpg", png(4)),
             ("plain", png(5)), ("p.b.json", facts(4)), ("1.cls", b"7"), ("d/1.jpg.json", facts(6)),
             ("empty.png", b""), ("page.html", b"<p>"), ("2.jpg", png(8)),
             ("1.json", b"\xef\xbb\xbf" + facts(1))]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar(files))
    counts: Counter[str] = Counter()
    found = {s.member.name: (s.url, s.alt) for s in samples(tmp_path / "a.tar", counts)}
    assert found == {
        ".jpg": ("", ""), "1.jpg": ("http://h.test/1.png", ""), "d/1.jpg": ("http://h.test/6.png", ""),
        "p.a.jpg": ("", ""), "p.b.jpg": ("http://h.test/4.png", ""), "plain": ("", ""),
        "2.jpg": ("http://h.test/2.png", "two"),
    }  # fmt: skip
    assert counts == {"tar-repeated-name": 1, "left-appledouble": 1, "left-empty": 1, "left-other": 2}


def test_sizes_that_lie_and_tars_that_end_early() -> None:
    data = tar([("a.png", bytes(1000)), ("b.png", bytes(1000))])
    second = 512 + 1024
    assert listed(data[: second + 600])[1] == {"tar-truncated": 1}
    assert len(listed(data[: second + 600])[0]) == 1
    info = tarfile.TarInfo("huge.png")
    info.size = 8 << 30
    assert listed(info.tobuf() + bytes(2048)) == ([], Counter({"tar-truncated": 1}))
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 20
    assert listed(long.tobuf() + bytes(1 << 20))[1] == {"tar-corrupt": 1}  # a name of a megabyte


def test_texts_and_addresses_stand_beside_images(tmp_path: Path) -> None:
    facts = {"url": "HTTP://H.test/x.png", "caption": "from JSON", "license": "CC-BY\ud800", "width": 3}
    files = [("000.jpg", b"j"), ("000.txt", b" words \n"), ("000.json", json.dumps(facts).encode()),
             ("d/001.png", b"p"), ("d/001.json", b"[" * 50_000), ("002.txt", b"alone")]  # fmt: skip
    (tmp_path / "a.tar").write_bytes(tar(files))
    counts: Counter[str] = Counter()
    found = list(samples(tmp_path / "a.tar", counts))
    assert [(s.member.name, s.url, s.alt, s.licence) for s in found] == [
        ("000.jpg", "http://h.test/x.png", "words", "CC-BY?"),
        ("d/001.png", "", "", ""),
    ]
    assert not counts


def test_curated_from_shards_by_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def run(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", run)
    (tmp_path / "in").mkdir()
    named = json.dumps({"url": "http://ads.restricted.test/x.png"}).encode()
    same = json.dumps({"url": "http://h.test/same.png"}).encode()
    first = tar([("0.png", png(0)), ("0.txt", b"zero"), ("1.png", png(1)), ("1.json", named), ("../2.png", png(2)),
                 ("3.png", b"text"), ("4.png", png(4)), ("4.json", same)])  # fmt: skip
    (tmp_path / "in/a.tar").write_bytes(first)
    (tmp_path / "in/b.tar").write_bytes(tar([("5.png", png(0)), ("6.png", png(4)), ("6.json", same)])[:-10_000])
    arguments = ["--source", str(tmp_path / "in"), "--out", str(tmp_path / "crawl")]
    main(["run", "--params", str(ROOT / "params/crawl.yaml"), *arguments])
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0",
                "nsfw.enabled=false", "faces.enabled=false"]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, overlays)
    context = StageContext(StorageParams(root="data"), None, tmp_path / "r.json")
    report = stage.run(params, stage.CurateInputs(tmp_path / "crawl"), tmp_path / "out", context)
    rows = {row["url"]: row for row in read_table(tmp_path / "out/index", INDEX).to_pylist()}
    assert {url: row["reason"] for url, row in rows.items()} == {
        "file:a.tar/0.png": "", "http://ads.restricted.test/x.png": "restricted-domain",
        "file:a.tar/3.png": "not-an-image", "http://h.test/same.png": "", "file:b.tar/5.png": "exact-duplicate",
    }  # fmt: skip
    assert (rows["file:a.tar/0.png"]["alt"], rows["file:a.tar/0.png"]["source"]) == ("zero", "a.tar")
    assert (report["tar-unsafe-member"], report["tar-repeated-address"]) == (1, 1)
    assert report["tar-truncated"] == 1
