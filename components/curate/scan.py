"""First pass: what the sources hold. WARC files give links, responses and robots.txt; folders give files.

One work item is one file; what it yields goes to a Parquet file in the work folder and only that path travels.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.curate.links import header_opts_out, parse_page
from components.curate.policy import PolicyParams, origin
from components.curate.robots import MAX_BYTES
from components.curate.warc import Faults, Response, decode_text, read_warc
from components.storage import Store, atomic_file, is_remote

_PAGE_TYPES = ("text/html", "application/xhtml+xml")
_REDIRECTS = (301, 302, 303, 307, 308)

LINKS = pa.schema(
    [
        ("url", pa.string()),
        ("page", pa.string()),
        ("alt", pa.string()),
        ("reason", pa.string()),
        ("opt_out", pa.bool_()),
    ]
)
RESPONSES = pa.schema(
    [("url", pa.string()), ("status", pa.int32()), ("location", pa.string()), ("offset", pa.int64()),
     ("length", pa.int64()), ("cut", pa.bool_()), ("opt_out", pa.bool_())]
)  # fmt: skip


@dataclass(frozen=True)
class ScanItem:
    """One WARC file to scan."""

    store: Store
    name: str
    out: Path  # stem of the files written
    policy: PolicyParams
    max_page_bytes: int


@dataclass
class ScanResult:
    """What came of one file; the tables stand beside ``out``."""

    name: str
    links: Path
    responses: Path
    robots: dict[str, tuple[int, str]]  # origin -> (status, body as Latin-1)
    counts: dict[str, int]


def scan_warc(item: ScanItem) -> ScanResult:
    """Scan one WARC file; done already when its result stands in the work folder."""
    from urllib.parse import urljoin

    done = item.out.with_suffix(".json")
    if done.exists():
        content = json.loads(done.read_text())
        known = {site: (int(status), body) for site, (status, body) in content["robots"].items()}
        return ScanResult(content["name"], Path(content["links"]), Path(content["responses"]), known, content["counts"])
    faults = Faults()
    links: list[dict[str, object]] = []
    responses: list[dict[str, object]] = []
    robots: dict[str, tuple[int, str]] = {}
    counts = {"responses": 0, "pages": 0, "links-skipped": 0}
    token = item.policy.token
    with _local(item.store, item.name) as path:
        for response in read_warc(path, faults, item.max_page_bytes):
            counts["responses"] += 1
            url = response.url.partition("#")[0]
            if url.endswith("/robots.txt") and url == f"{origin(url)}/robots.txt":
                robots[origin(url)] = (response.status, response.body[:MAX_BYTES].decode("latin-1"))
                continue
            if response.status == 200 and response.content_type in _PAGE_TYPES:
                counts["pages"] += 1
                page = parse_page(decode_text(response), url, token)
                counts["links-skipped"] += page.skipped
                opt_out = page.opt_out or _headers_opt_out(response, token)
                links += [
                    {"url": link.url, "page": url, "alt": link.alt, "reason": link.reason, "opt_out": opt_out}
                    for link in page.images
                ]
                continue
            location = response.headers.get("location", "") if response.status in _REDIRECTS else ""
            # The cap here is the pages'; a body longer than that was not cut by the crawl.
            responses.append(
                {
                    "url": url,
                    "status": response.status,
                    "location": urljoin(url, location) if location else "",
                    "offset": response.offset,
                    "length": response.length,
                    "cut": response.cut and len(response.body) < item.max_page_bytes,
                    "opt_out": _headers_opt_out(response, token),
                }
            )
    counts.update(faults.counts)
    result = ScanResult(
        item.name, Path(f"{item.out}.links.parquet"), Path(f"{item.out}.responses.parquet"), robots, counts
    )
    for file, rows, schema in ((result.links, links, LINKS), (result.responses, responses, RESPONSES)):
        with atomic_file(file) as handle:
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), handle)
    with atomic_file(done, "w") as handle:
        json.dump({**asdict(result), "links": str(result.links), "responses": str(result.responses)}, handle)
    return result


def key_of(url: str) -> str:
    """An index row's key: the first 20 hex digits of the address's SHA-256."""
    return hashlib.sha256(url.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def _headers_opt_out(response: Response, token: str) -> bool:
    return header_opts_out(response.headers.get("x-robots-tag", ""), response.headers.get("tdm-reservation", ""), token)


class _local:
    """The file ``name`` of ``store`` as a local path; fetched aside for as long as needed when it is remote."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if not is_remote(self._store.root):
            return Path(self._store.root, self._name)
        self._folder = tempfile.TemporaryDirectory(prefix="vitrail-warc-")
        path = Path(self._folder.name, "file.warc.gz")
        self._store.get_file(self._name, path)
        return path

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()


def iter_rows(path: Path) -> Iterator[dict[str, object]]:
    """Rows of a Parquet file, a batch in memory at a time."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(8192):
            yield from batch.to_pylist()
