"""First pass: what the sources hold. WARC files give links, responses and robots.txt; WAT files and tables give links.

One work item is one file; what it yields goes to Parquet files in the work folder, a batch of rows in memory at a time,
and only their paths travel.
"""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from components.errors import VitrailError
from components.images.sandbox import SandboxParams
from components.params import Strict
from components.storage import ObjectUnreadable, Store, atomic_file, is_remote, of_one_file
from components.tables.schemas import LINKS, PARQUET_FAULTS
from components.web.formats.charset import decode_text
from components.web.formats.content_type import PAGE_TYPES
from components.web.formats.links import ImageLink, Page, is_vector
from components.web.formats.opt_out import headers_said
from components.web.formats.pages import read_page
from components.web.formats.urls import origin, resolve
from components.web.formats.warc import Faults, Response, is_wat, read_warc
from components.web.formats.wat import parse_wat
from components.web.rules.policy import PolicyParams
from components.web.rules.robots import heard
from components.web.sources.link_table import RowWriter, first_position, storable
from components.web.sources.listing import shown

_REDIRECTS = (301, 302, 303, 307, 308)

RESPONSES = pa.schema(
    [("position", pa.int64()), ("url", pa.string()), ("status", pa.int32()), ("location", pa.string()),
     ("file", pa.binary()), ("offset", pa.int64()), ("length", pa.int64()), ("cut", pa.bool_()),
     ("opt_out", pa.bool_()), ("said", pa.string())]
)  # fmt: skip  # position: as a link's, unique over all files of a run; file: its name may be no UTF-8
ROBOTS = pa.schema(
    [("position", pa.int64()), ("origin", pa.string()), ("status", pa.int32()), ("body", pa.binary())]
)  # fmt: skip


class TableColumns(Strict):
    """The columns of a Parquet table of addresses; "" where the table has none such."""

    url: str = "url"
    alt: str = ""
    licence: str = ""


@dataclass(frozen=True)
class ScanItem:
    """One file to scan: WARC, WAT, or a Parquet table of addresses, by its name."""

    store: Store
    name: str
    out: Path  # stem of the files written
    policy: PolicyParams
    max_page_bytes: int
    number: int = 0  # of the file in its run
    columns: TableColumns = field(default_factory=TableColumns)
    sandbox: SandboxParams = field(default_factory=SandboxParams)  # for pages


@dataclass
class ScanResult:
    """What came of one file; the tables are beside ``out``."""

    name: str
    links: Path
    responses: Path
    robots: Path  # the answers to robots.txt
    counts: dict[str, int]


def scan_file(item: ScanItem) -> ScanResult:
    """Scan one file; skipped if its result is in the work folder."""
    done = item.out.with_suffix(".json")
    if done.exists():
        content = json.loads(done.read_text())
        links, responses, robots = (Path(content[name]) for name in ("links", "responses", "robots"))
        return ScanResult(content["name"], links, responses, robots, content["counts"])
    links, responses, robots = (Path(f"{item.out}.{name}.parquet") for name in ("links", "responses", "robots"))
    result = ScanResult(item.name, links, responses, robots, {})
    with ExitStack() as stack:
        path = _opened(item, stack)
        writer = stack.enter_context(RowWriter(result.links, LINKS))
        named = _Links(writer, first_position(item.number), shown(item.name))
        answers = _Answers(
            item, stack.enter_context(RowWriter(result.responses, RESPONSES)),
            stack.enter_context(RowWriter(result.robots, ROBOTS)),
        )  # fmt: skip
        if path is None:
            result.counts = {"responses": 0, "pages": 0, "warc-unreadable": 1}
        elif item.name.lower().endswith(".parquet"):
            _scan_table(item, path, named, result)
        elif is_wat(item.name):
            _scan_wat(item, path, named, result)
        else:
            _scan_warc(item, path, named, answers, result)
    with atomic_file(done, "w") as handle:
        json.dump(asdict(result), handle, default=str)
    return result


def _opened(item: ScanItem, stack: ExitStack) -> Path | None:
    """The item's file as a local path; None where it cannot be read."""
    try:
        path = stack.enter_context(local_file(item.store, item.name))
        open(path, "rb").close()
    except ObjectUnreadable:
        return None
    except OSError as fault:
        if not of_one_file(fault):
            raise
        return None
    return path


class _Links:
    """Appends a page's links to the table."""

    def __init__(self, writer: RowWriter, position: int, source: str) -> None:
        self._writer, self._next, self._source = writer, position, source

    def page(self, url: str, page: Page, said: str, offset: int) -> None:
        for link in page.images:
            self.add(link, url, page.licence, said, offset)

    def add(self, link: ImageLink, page: str, licence: str, said: str = "", offset: int = -1) -> None:
        row = {"position": self._next, "url": link.url, "page": page, "alt": storable(link.alt)}
        row |= {"licence": storable(licence), "reason": link.reason, "opt_out": bool(said), "said": said}
        self._writer.add(row | {"source": self._source, "source_offset": offset})
        self._next += 1


class _Answers:
    """Appends what servers answered to the tables of responses and of robots.txt."""

    def __init__(self, item: ScanItem, responses: RowWriter, robots: RowWriter) -> None:
        self._responses, self._robots, self._file = responses, robots, os.fsencode(item.name)
        self._next = first_position(item.number)

    def robots(self, site: str, status: int, body: bytes) -> None:
        self._robots.add({"position": self._next, "origin": site, "status": status, "body": body})
        self._next += 1

    def response(self, row: dict[str, object]) -> None:
        self._responses.add({"position": self._next, "file": self._file} | row)
        self._next += 1


def _scan_warc(item: ScanItem, path: Path, links: _Links, answers: _Answers, result: ScanResult) -> None:
    faults, token = Faults(), item.policy.token
    counts = {"responses": 0, "pages": 0, "links-skipped": 0, "pages-cut": 0, "pages-too-costly": 0, "bad-addresses": 0}
    for response in read_warc(path, faults, item.max_page_bytes):
        counts["responses"] += 1
        url = resolve("", response.url)
        if not url:  # dns: records, and addresses that are none
            counts["bad-addresses"] += 1
        elif url.endswith("/robots.txt") and url == f"{origin(url)}/robots.txt":
            answers.robots(origin(url), *heard(response))
        elif response.status == 200 and response.content_type in PAGE_TYPES:
            counts["pages"] += 1
            page = read_page(decode_text(response), url, token, item.sandbox, anchors=False)
            if page is None:
                counts["pages-too-costly"] += 1
                continue
            counts["pages-cut"] += page.cut or response.cut
            counts["links-skipped"] += page.skipped
            links.page(url, page, page.said or _headers_said(response, token), response.offset)
        else:
            said = _headers_said(response, token)
            location = response.headers.get("location", "") if response.status in _REDIRECTS else ""
            answers.response(
                {
                    "url": url,
                    "status": response.status,
                    "location": resolve(url, location),
                    "offset": response.offset,
                    "length": response.length,
                    # The cap here is the pages'; a body longer than that was not cut by the crawl.
                    "cut": response.cut and len(response.body) < item.max_page_bytes,
                    "opt_out": bool(said),
                    "said": said,
                }
            )
    result.counts = counts | faults.counts


def _scan_wat(item: ScanItem, path: Path, links: _Links, result: ScanResult) -> None:
    faults = Faults()
    counts = {"responses": 0, "pages": 0, "links-skipped": 0, "wat-unreadable": 0}
    for record in read_warc(path, faults, item.max_page_bytes, wat=True):
        counts["responses"] += 1
        try:
            found = parse_wat(record.body, item.policy.token)
        except ValueError:
            counts["wat-unreadable"] += 1
            continue
        if found is not None:
            url, page = found
            counts["pages"] += 1
            counts["links-skipped"] += page.skipped
            links.page(url, page, page.said, record.offset)
    result.counts = counts | faults.counts


def _scan_table(item: ScanItem, path: Path, links: _Links, result: ScanResult) -> None:
    """A Parquet table of addresses, with alternative texts and licences where ``columns`` names them."""
    where = f"{item.store.root}/{item.name}"
    wanted = [name for name in (item.columns.url, item.columns.alt, item.columns.licence) if name]
    counts = {"rows": 0, "links-skipped": 0, "table-unreadable": 0}
    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:
            held = set(file.schema_arrow.names)
            if missing := [name for name in wanted if name not in held]:
                raise VitrailError(
                    f"{where}: no column {missing[0]!r}, there are: {', '.join(sorted(held))}; name it under `columns`"
                )
            for batch in file.iter_batches(8192, columns=wanted):
                texts = {name: _texts(batch.column(name)) for name in wanted}
                for number in range(batch.num_rows):
                    counts["rows"] += 1
                    url = resolve("", texts[item.columns.url][number])
                    if not url:
                        counts["links-skipped"] += 1
                        continue
                    alt, licence = (
                        texts[name][number] if name else "" for name in (item.columns.alt, item.columns.licence)
                    )
                    links.add(ImageLink(url, alt, "vector" if is_vector(url) else ""), "", licence)
    except PARQUET_FAULTS:
        counts["table-unreadable"] += 1  # what came before the damage is used
    result.counts = counts


def _texts(column: pa.Array) -> list[str]:
    """A column's values as text; of strings that are not UTF-8, which Parquet files may hold, what is."""
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = column.cast(pa.large_binary())
    return [v.decode("utf-8", "replace") if isinstance(v, bytes) else str(v or "") for v in column.to_pylist()]


def _headers_said(response: Response, token: str) -> str:
    return headers_said(response.values("x-robots-tag"), response.values("tdm-reservation"), token)


class local_file:
    """The file ``name`` of ``store`` as a local path; fetched aside for as long as needed when it is remote."""

    def __init__(self, store: Store, name: str) -> None:
        self._store, self._name = store, name
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def __enter__(self) -> Path:
        if not is_remote(self._store.root):
            return Path(self._store.root, self._name)
        self._folder = tempfile.TemporaryDirectory(prefix="vitrail-warc-")
        path = Path(self._folder.name, "file")
        self._store.get_file(self._name, path)
        return path

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            self._folder.cleanup()
