"""Pages a second and core from WARC to link table: the scan of curation beside warcio with BeautifulSoup over lxml.

    pip install --require-hashes --no-deps -r requirements/perf.lock && python -m perf links

Real pages: those of two Debian documentation packages, fetched by ``apt-get download`` (or unpacked already below
``VITRAIL_PERF_PAGES``), written as a WARC of one gzip member a record; and ../shared/data/example.warc.gz, a crawl as
it came, where that lies.

"ours" is :func:`components.web.sources.scan.scan_file`, as the stage calls it for a file: records read, bodies decoded,
text decoded, links by every rule (srcset, lazy attributes, base), addresses normalised and without repeats on a page,
robots.txt bodies, robots meta elements, X-Robots-Tag and TDM-Reservation, licences, and the table of links written and
synced. What the stage does once for all files comes after it and is outside: repeats over all pages, and the judgement
of each address by robots.txt and domain lists. "theirs" is the shortest program of its kind: warcio's iterator,
``BeautifulSoup(body, "lxml")``, and ``urljoin`` of every ``img[src]``; it writes nothing. "floor" is FastWARC and
selectolax alone, with ``src`` of every ``img``.

Rates are pages a second of processor time, the best of rounds that take turns. The links of both are compared: those
that only one of them has are listed by cause.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin

from components.storage import open_store
from components.web.formats.urls import resolve
from components.web.formats.warc import WarcWriter
from components.web.rules.policy import PolicyParams
from components.web.sources.link_table import iter_rows
from components.web.sources.scan import ScanItem, scan_file

PACKAGES = {"debian-handbook": 800, "python3.11-doc": 150}  # Debian package: pages of it, evenly spread
ROUNDS = 3
MAX_PAGE = 10_000_000  # bytes, as in params/curate.yaml
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "example.warc.gz"
SHORT_OF = 15.0


def main() -> dict[str, object]:
    """Rates, their ratios, and the links that only one side found."""
    warnings.filterwarnings("ignore", module="bs4")
    figures: dict[str, object] = {"target": SHORT_OF}
    with tempfile.TemporaryDirectory(dir=".") as folder:
        for path in warcs(Path(folder)):
            figures[path.name] = _compared(path, Path(folder))
    return figures


def _compared(path: Path, folder: Path) -> dict[str, object]:
    ours_links: dict[str, list[str]] = {}
    theirs_links: dict[str, list[str]] = {}

    def ours() -> int:
        return _scanned(path, folder, ours_links)

    def theirs() -> int:
        theirs_links.clear()
        return sum(1 for _ in _with_beautifulsoup(path, theirs_links))

    rates = interleaved({"ours": ours, "theirs": theirs, "floor": lambda: _floor(path)})
    return {
        "pages_per_core_second": {name: round(rate, 1) for name, rate in rates.items()},
        "times_theirs": round(rates["ours"] / rates["theirs"], 1),
        "floor_times_theirs": round(rates["floor"] / rates["theirs"], 1),
        "links": _differences(ours_links, theirs_links),
    }


def _scanned(path: Path, folder: Path, links: dict[str, list[str]]) -> int:
    """One pass of the product; ``links`` takes the table's addresses by page, after the clock has been read."""
    with tempfile.TemporaryDirectory(dir=folder) as out:
        item = ScanItem(
            open_store(str(path.parent)), path.name, Path(out, "scan"), PolicyParams(token="vitrail"), MAX_PAGE
        )
        began = time.process_time()
        result = scan_file(item)
        spent = time.process_time() - began
        links.clear()
        for row in iter_rows(result.links):
            links.setdefault(str(row["page"]), []).append(str(row["url"]))
    _Clock.reading += time.process_time() - began - spent
    return result.counts["pages"]


class _Clock:
    """Processor seconds that reading results back took: no part of what is measured."""

    reading = 0.0


def _with_beautifulsoup(path: Path, links: dict[str, list[str]]) -> Iterator[str]:
    from bs4 import BeautifulSoup
    from warcio.archiveiterator import ArchiveIterator

    with open(path, "rb") as file:
        for record in ArchiveIterator(file):
            if record.rec_type != "response" or record.http_headers is None:
                continue
            kind = (record.http_headers.get_header("Content-Type") or "").partition(";")[0].strip().lower()
            if record.http_headers.get_statuscode() != "200" or kind not in ("text/html", "application/xhtml+xml"):
                continue
            page = record.rec_headers.get_header("WARC-Target-URI")
            soup = BeautifulSoup(record.content_stream().read(), "lxml")
            found = links.setdefault(page, [])
            for image in soup.find_all("img"):
                with contextlib.suppress(ValueError):
                    if source := image.get("src"):
                        found.append(urljoin(page, source))
            yield page


def _floor(path: Path) -> int:
    from fastwarc.warc import ArchiveIterator, WarcRecordType
    from selectolax.lexbor import LexborHTMLParser

    pages = 0
    with open(path, "rb") as file:
        for record in ArchiveIterator(file, record_types=WarcRecordType.response):
            answer = record.http_headers
            if answer is not None and answer.status_code == 200 and "html" in (answer.get("Content-Type") or ""):
                tree = LexborHTMLParser(record.reader.read())
                pages += bool([node.attributes.get("src") for node in tree.css("img")]) or 1
    return pages


def _differences(ours: dict[str, list[str]], theirs: dict[str, list[str]]) -> dict[str, object]:
    """How many (page, address) pairs both found, and the causes of the rest."""
    theirs = {resolve("", page): urls for page, urls in theirs.items()}
    both, causes = 0, Counter[str]()
    examples: dict[str, str] = {}
    for page in sorted({*ours, *theirs}):
        normal = {resolve("", url): url for url in theirs.get(page, ())}
        mine = set(ours.get(page, ()))
        both += len(mine & set(normal))
        for url in mine ^ set(normal):
            cause = "not http(s)" if not url else "only theirs" if url in normal else "only ours"
            causes[cause] += 1
            examples.setdefault(cause, f"{page}: {url or normal[url]}")
    return {"same_on_a_page": both, **causes, "examples": examples}


def interleaved(todo: dict[str, Callable[[], int]]) -> dict[str, float]:
    """Pages a second of processor time: the best of rounds that take turns, after one round that does not count."""
    rates: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(ROUNDS + 1):
        for name, work in todo.items():
            _Clock.reading, began = 0.0, time.process_time()
            pages = work()
            if turn:
                rates[name].append(pages / (time.process_time() - began - _Clock.reading))
    return {name: max(found) for name, found in rates.items()}


def warcs(folder: Path) -> Iterator[Path]:
    """WARC files of real pages, made below ``folder``."""
    for package, count in PACKAGES.items():
        if (pages := documentation(package, folder)) is not None:
            yield write_warc(sorted(pages.rglob("*.html")), pages, folder / f"{package}.warc.gz", count)
    if SHARED.exists():
        yield SHARED


def documentation(package: str, folder: Path) -> Path | None:
    """The files of a Debian package; None, and a line that says so, where it cannot be had."""
    given = os.environ.get("VITRAIL_PERF_PAGES")
    if given and Path(given, package).is_dir():
        return Path(given, package)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        print(f"{package}: left out, there is no apt-get here; unpack it below VITRAIL_PERF_PAGES")
        return None
    fetched = subprocess.run(["apt-get", "download", "-qq", package], cwd=folder, capture_output=True, text=True)
    packed = next(folder.glob(f"{package}_*.deb"), None)
    if packed is None:
        print(f"{package}: left out, apt-get download says: {fetched.stderr.strip()[:200]}")
        return None
    unpacked = folder / package
    subprocess.run(["dpkg-deb", "-x", str(packed), str(unpacked)], check=True)
    return unpacked


def write_warc(files: list[Path], root: Path, path: Path, count: int) -> Path:
    """``count`` of ``files``, evenly spread, as responses of one host."""
    files = [file for file in files if file.is_file() and not file.is_symlink()]
    with open(path, "wb") as file:
        writer = WarcWriter(file, "2026-01-01T00:00:00Z")
        writer.info({"software": "vitrail"})
        for page in files[:: max(1, len(files) // count)]:
            url = f"http://docs.example/{page.relative_to(root).as_posix()}"
            writer.response(url, 200, "OK", [("Content-Type", "text/html")], page.read_bytes())
    return path


if __name__ == "__main__":
    print(main())
