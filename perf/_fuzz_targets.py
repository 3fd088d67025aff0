"""The parsers that read strangers' bytes, each with valid seeds and the faults that it may raise by its own word."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from components.errors import VitrailError

ROOT = Path(__file__).resolve().parents[1]
TOKEN = "vitrail"


@dataclass(frozen=True)
class Target:
    """One parser."""

    parse: Callable[[bytes, Path], object]  # the input, and a file that holds the same bytes
    seeds: tuple[bytes, ...]
    raises: tuple[type[Exception], ...] = ()  # said in its docstring; anything else is a crash
    words: tuple[bytes, ...] = ()  # of its grammar, for the mutator


PAGE = b"""<!doctype html><html><head><base href="/a/"><meta name="robots" content="noai"><link rel="license" href="x">
</head><body><picture>
<source srcset="a.avif 1x, b.avif 2x" type="image/avif"><img src="c.jpg" alt="t" width=3></picture>
<img data-src=d.png srcset="e.png 100w, f.png 200w"><a href="//h.test/p?q#f">x</a>
<template><img src=g></template></body>"""
ROBOTS = b"""# all\nUser-agent: *\nDisallow: /private/\nAllow: /*.png$\nCrawl-delay: 2\n\nUser-agent: vitrail\n"""
WARC_WORDS = (b"WARC/1.1\r\n", b"Content-Length: ", b"\r\n\r\n", b"9" * 20, b"-1", b"\x1f\x8b\x08")
SRCSET = b"a.png 1x, b.png 2.5x, data:image/png;base64,AA== 3x, c.png 100w, (d) e.png 1e2w 5h,,"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=x\r\nX-Robots-Tag: noai,\r\n noindex\r\n\r\nbody"
YAML = b"root: s3://bucket/prefix\nendpoint_url: null\nregion: &r eu\nmax_attempts: 3\nconnect_timeout: 1e1\n"


def _warc() -> bytes:
    from components.web.formats.warc import WarcWriter

    file = io.BytesIO()
    writer = WarcWriter(file, "2020-01-01T00:00:00Z", gzip=False)
    writer.info({"software": "x"})
    writer.response("http://h.test/robots.txt", 200, "OK", [("Content-Type", "text/plain")], ROBOTS)
    writer.response("http://h.test/", 200, "OK", [("Content-Type", "text/html")], PAGE)
    writer.response("http://h.test/x.png", 200, "OK", [("Content-Encoding", "gzip")], gzip.compress(b"x"), "length")
    return file.getvalue()


def _wat() -> bytes:
    links = [{"path": "IMG@/src", "url": "x.png", "alt": "x"}, {"path": "A@/href", "url": "/y"}]
    head = {
        "Base": "/b/",
        "Metas": [{"name": "robots", "content": "noindex"}],
        "Link": [{"rel": "license", "url": "l"}],
    }
    html = {"HTML-Metadata": {"Head": head, "Links": links}, "Headers": {"X-Robots-Tag": "noai"},
            "Response-Message": {"Status": "200"}}  # fmt: skip
    about = {"WARC-Type": "response", "WARC-Target-URI": "http://h.test/"}
    envelope = {"WARC-Header-Metadata": about, "Payload-Metadata": {"HTTP-Response-Metadata": html}}
    return json.dumps({"Envelope": envelope}).encode()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (
            ("a.png", _png()),
            ("a.json", b'{"url": "http://h.test/a.png"}'),
            ("ä" * 60 + ".jpg", b"\xff"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def _picture(kind: str) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (24, 16), (9, 99, 200)).save(file, kind)
    return file.getvalue()


def _png() -> bytes:
    return _picture("PNG")


def _index() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from components.tables.schemas import INDEX

    rows = INDEX.empty_table()
    file = io.BytesIO()
    pq.write_table(pa.Table.from_batches(rows.to_batches(), INDEX), file, compression="zstd")
    return file.getvalue()


def _parse_page(data: bytes, _: Path) -> object:
    from components.web.formats.links import parse_page

    return parse_page(data.decode("utf-8", "replace"), "http://h.test/p", TOKEN)


def _parse_robots(data: bytes, _: Path) -> object:
    from components.web.rules.robots import parse

    return parse(data, TOKEN).verdict("http://h.test/private/a.png?b=%C3%A4")


def _parse_srcset(data: bytes, _: Path) -> object:
    from components.web.formats.links import parse_srcset

    return parse_srcset(data.decode("utf-8", "replace"))


def _parse_head(data: bytes, _: Path) -> object:
    from components.web.formats.http_head import read_head

    return read_head(data, whole=len(data) % 2 == 0)


def _parse_warc(_: bytes, path: Path) -> object:
    from components.web.formats.warc import Faults, read_warc

    return sum(len(response.body) for response in read_warc(path, Faults(), 1 << 20))


def _parse_wat(data: bytes, _: Path) -> object:
    from components.web.formats.wat import parse_wat

    return parse_wat(data, TOKEN)


def _parse_tar(_: bytes, path: Path) -> object:
    from components.web.sources.tars import samples

    return list(samples(path, Counter()))


def _parse_index(_: bytes, path: Path) -> object:
    from components.tables.parts import iter_batches
    from components.tables.schemas import INDEX

    return sum(len(batch) for batch in iter_batches(path, INDEX))


def _parse_header(data: bytes, _: Path) -> object:
    from components.images import headers
    from components.images.decode import looks_like_image

    looks_like_image(data)
    return headers.jpeg_tables(data), headers.webp_size(data), headers.gif_frames(data, 100), headers.is_raw_tiff(data)


def _parse_params(_: bytes, path: Path) -> object:
    from components.params import load_params
    from components.storage import StorageParams

    return load_params(path, StorageParams)


def targets() -> dict[str, Target]:
    """Every parser by name."""
    pictures = tuple(_picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"))
    return {
        "page": Target(_parse_page, (PAGE,), (), (b"<img ", b"srcset=", b"<base href=", b"<!--", b"</", b"&#x", b'"')),
        "robots": Target(_parse_robots, (ROBOTS,), (), (b"User-agent:", b"Disallow:", b"*", b"$", b"%2", b"\xef\xbb")),
        "srcset": Target(_parse_srcset, (SRCSET,), (), (b",", b" 2x", b"1e999w", b"(", b")", b"\x0c", b"-1x")),
        "head": Target(_parse_head, (HEAD,), (ValueError,), (b"\r\n", b"\n\n", b"HTTP/", b":", b" 999 ")),
        "warc": Target(_parse_warc, (_warc(), gzip.compress(_warc())), (), WARC_WORDS),
        "wat": Target(_parse_wat, (_wat(),), (ValueError,), (b"{", b"[", b"null", b'"Links":', b"\\ud800", b"1e999")),
        "tar": Target(_parse_tar, (_tar(),), (), (b"ustar\x0000", b"ustar  \x00", b"\x80\xff", b"../", b"7777777")),
        "index": Target(_parse_index, (_index(),), (VitrailError,), (b"PAR1", b"\xff\xff\xff\x7f", b"\x15\x00")),
        "image-header": Target(_parse_header, pictures, (), (b"\xff\xd8", b"\xff\xdb", b"RIFF", b"VP8X", b"\x21\xf9")),
        "params": Target(
            _parse_params, (YAML,), (VitrailError,), (b"*r", b"&r", b"<<: ", b"- ", b"!!python/", b"\x00")
        ),
    }
