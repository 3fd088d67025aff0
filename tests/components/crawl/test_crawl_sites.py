"""A crawl of sites: killed and resumed without asking twice, silent hosts, caps, and the order of what it writes."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from raw_server import answer, raw_server

from components.crawl import stage
from components.crawl.fetch import Fetched, FetchParams
from components.crawl.journal import Journal
from components.crawl.spider import CrawlParams, crawl
from components.images.sandbox import SandboxParams
from components.web.formats.warc import Faults, Hop, read_warc
from components.web.rules.policy import PolicyParams

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
HTML = "Content-Type: text/html"
SEEDS = ["http://site.test/"]
HOSTS = frozenset(["site.test"])
PAGES = {
    "/": answer(b"<a href=1><a href=2><img src=0.png>", HTML),
    "/1": answer(b"<a href=3><img src=1.png><img src=0.png>", HTML),
    "/2": answer(b"<img src=2.png><img src=gone.png>", HTML),
    "/3": answer(b"<img src=3.png>", HTML),
    **{f"/{n}.png": answer(PNG) for n in range(4)},
}  # fmt: skip


def params(address: str, **changes: object) -> CrawlParams:
    hosts = dict.fromkeys(("site.test", *(f"h{n}.test" for n in range(128))), address)
    fetch = FetchParams(
        policy=PolicyParams(token="vitrail"), contact="a@b.test", resolve=hosts, backoff=0.0, retries=0, deadline=20.0
    )
    return CrawlParams(fetch=fetch, sandbox=SandboxParams(enabled=False), **changes)


def run(address: str, out: Path, journal: Path | None = None, **changes: object) -> dict[str, int]:
    date = "2020-01-01T00:00:00Z"
    return asyncio.run(crawl(SEEDS, HOSTS, params(address, **changes), out, date, journal))


def test_a_killed_crawl_asks_for_the_rest_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with raw_server(dict(PAGES)) as (raw, address):
        whole = run(address, tmp_path / "whole.warc.gz")
        once = Counter(raw.targets)
        raw.targets.clear()
        add = Journal.add
        for kills in (2, 3):
            left = iter(range(kills))

            def struck(self: Journal, url: str, fetched: Fetched, left: object = left) -> None:
                if next(left, None) is None:  # type: ignore[call-overload]
                    raise KeyboardInterrupt
                add(self, url, fetched)

            monkeypatch.setattr(Journal, "add", struck)
            with pytest.raises(KeyboardInterrupt):
                run(address, tmp_path / "x.warc.gz", tmp_path / "journal", in_flight=1)
        monkeypatch.setattr(Journal, "add", add)
        assert run(address, tmp_path / "x.warc.gz", tmp_path / "journal") == whole
        again = Counter(raw.targets)
    # What was under way when it was struck was not recorded; nothing that was is asked for again.
    assert sum(again.values()) - again["/robots.txt"] <= sum(once.values()) - once["/robots.txt"] + 2 * 3
    assert (tmp_path / "x.warc.gz").read_bytes() == (tmp_path / "whole.warc.gz").read_bytes()
    before = sum(again.values())
    with raw_server(dict(PAGES)) as (raw, address):
        run(address, tmp_path / "x.warc.gz", tmp_path / "journal")
        assert raw.targets == []
    assert before


def test_silent_hosts_keep_nobody_waiting(tmp_path: Path) -> None:
    served = threading.Event()

    def silent(connection: socket.socket) -> None:
        served.wait(15)  # until the image named last was asked for
        connection.sendall(answer(PNG))

    def last(connection: socket.socket) -> None:
        served.set()
        connection.sendall(answer(PNG))

    images = "".join(f"<img src=http://h{n}.test/silent.png>" for n in range(128)) + "<img src=last.png>"
    pages = {"/": answer(images.encode(), HTML), "/silent.png": silent, "/last.png": last}
    with raw_server(pages) as (_, address):
        counts = run(address, tmp_path / "x.warc.gz", in_flight=2)
    assert counts == {"image-ok": 129, "page-ok": 1}


def test_images_and_pages_are_capped_and_counted(tmp_path: Path) -> None:
    with raw_server(dict(PAGES)) as (raw, address):
        counts = run(address, tmp_path / "x.warc.gz", max_images=2, max_pages=3)
    assert counts == {"image-limit": 2, "image-ok": 2, "page-limit": 1, "page-ok": 3}
    assert sum(target.endswith(".png") for target in raw.targets) == 2


def test_records_stand_in_the_order_of_their_addresses(tmp_path: Path) -> None:
    with raw_server(dict(PAGES)) as (_, address):
        run(address, tmp_path / "x.warc.gz")
    urls = [
        response.url.removeprefix("http://site.test") for response in read_warc(tmp_path / "x.warc.gz", Faults(), 999)
    ]
    assert urls == ["/robots.txt", "/", "/1", "/2", "/3", "/0.png", "/1.png", "/2.png", "/gone.png", "/3.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["outcomes", "x.warc.gz"]


def test_the_stage_resumes_in_its_work_folder_and_removes_it(tmp_path: Path) -> None:
    site = stage.WebSite(kind="web", seeds=tuple(SEEDS))
    with raw_server(dict(PAGES)) as (_, address):
        settings = params(address)
        (tmp_path / ".crawl.1.partial").mkdir()
        place = stage._journal(site, settings, tmp_path / "crawl")
        slower = settings.model_copy(update={"fetch": settings.fetch.model_copy(update={"delay": 1.0}), "max_pages": 7})
        assert stage._journal(site, slower, tmp_path / "crawl") == place
        assert not (tmp_path / ".crawl.1.partial").exists()


ENTRIES = st.lists(
    st.tuples(st.sampled_from("abcdef"), st.binary(max_size=20), st.sampled_from(["ok", "timeout"])), max_size=6
)


@settings(max_examples=60, deadline=None)
@given(ENTRIES, st.integers(0, 400))
def test_a_journal_cut_anywhere_keeps_its_whole_entries(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, bytes, str]], cut: int
) -> None:
    path = tmp_path_factory.mktemp("journal") / "j"
    ends, expected = [], []
    with Journal(path) as journal:
        for url, body, outcome in entries:
            hop = Hop(url, 200, "OK", [("A", "é")], body, "time")
            journal.add(url, Fetched(url, outcome, [hop], {"o": hop, "p": None}))
            ends.append(path.stat().st_size)
            expected.append(Fetched(url, outcome, [hop], {"o": hop, "p": None}))
    data = path.read_bytes()[: max(0, (ends or [0])[-1] - cut)]
    path.write_bytes(data)
    left = {one.url: one for one, end in zip(expected, ends, strict=True) if end <= len(data)}
    with Journal(path) as journal:
        assert len(journal) == len(left)
        assert {url: journal.get(url) for url in left} == left
        journal.add("new", Fetched("new"))
    with Journal(path) as journal:
        assert len(journal) == len(left) + 1
