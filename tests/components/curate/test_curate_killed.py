"""Crawl and curate as commands, killed (SIGKILL) five times while they work, against one run that nobody disturbs."""

from __future__ import annotations

import contextlib
import io
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
from patience import PATIENCE
from PIL import Image

from components import tracking
from components.crawl.demo.server import Resource, serve
from components.crawl.fetch_images import OUTCOMES_NAME
from components.crawl.run import main as crawl_main
from components.curate.run import main
from components.images.shards import Shards
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import INDEX
from components.web.formats.warc import WarcWriter

ROOT = Path(__file__).resolve().parents[3]
HOSTS = ("one.test", "two.test", "three.test")
GOOD, CHUNK, SEED = 110, 8, 2026
COMMAND = [sys.executable, "-m"]
# Where a record stands in its WARC is up to the order in which servers answer; nothing else may be.
OF_ARRIVAL = ("source", "source_offset")


def png(seed: int, side: int = 72) -> bytes:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def images() -> dict[tuple[str, str], Resource]:
    """Good images, copies of some, and one of each of many faults, on three hosts."""
    contents: list[Resource] = [Resource(png(i), "image/png") for i in range(GOOD)]
    contents += [Resource(png(i), "image/png") for i in range(8)]  # exact copies
    contents += [Resource(png(i, 90), "image/png") for i in range(8, 14)]  # larger copies
    contents += [
        Resource(png(900)[:2000], "image/png"), Resource(b"<html>" * 99, "image/png"),
        Resource(png(1, 20), "image/png"), Resource(b"", "text/plain", 404),
        Resource(b"", "text/plain", 302, (("Location", "/0.png"),)),
        Resource(b"", "text/plain", 302, (("Location", "http://10.0.0.1/"),)),
        Resource(png(901), "image/png", headers=(("X-Robots-Tag", "noai"),)),
    ]  # fmt: skip
    return {(HOSTS[i % 3], f"/{i}.png"): resource for i, resource in enumerate(contents)}


class Trap(dict[tuple[str, str], Resource]):
    """A site that at the request number ``at`` kills the process ``target`` before it answers."""

    asked, at, target = 0, 0, 0
    lock = threading.Lock()

    def get(self, key: Any, default: Any = None) -> Any:
        with self.lock:
            self.asked += 1
            if self.at and self.asked == self.at:
                os.kill(self.target, signal.SIGKILL)
        return super().get(key, default)


def prepare(folder: Path, address: str) -> None:
    """Write pages and parameters below ``folder``."""
    (folder / "in").mkdir()
    names = [f"http://{host}{path}" for host, path in images()] + ["http://ads.restricted.test/x.png"]
    with open(folder / "in/pages.warc.gz", "wb") as file:
        writer = WarcWriter(file)
        for start in range(0, len(names), 20):
            html = "".join(f'<img src="{name}" alt="{name[-9:]}">' for name in names[start : start + 25])
            writer.response(f"http://pages.test/{start}", 200, "OK", [("Content-Type", "text/html")], html.encode())
    hosts = ", ".join(f"{host}: '{address}'" for host in HOSTS)
    text = (ROOT / "params/crawl.yaml").read_text()
    for old, new in {"delay: 1.0": "delay: 0.0", "resolve: {}": f"resolve: {{{hosts}}}", "backoff: 0.5": "backoff: 0.0",
                     "in_flight: 64": "in_flight: 4", "workers: 2 ": "workers: 1 "}.items():  # fmt: skip
        assert old in text
        text = text.replace(old, new)
    (folder / "crawl.yaml").write_text(text)
    (folder / "site.yaml").write_text(f"kind: fetch\nsource: {folder}/in\n")


def crawl(folder: Path) -> list[str]:
    above = folder.parent
    return [
        "components.crawl",
        "run",
        "--params",
        f"{above}/crawl.yaml",
        "--source",
        f"{above}/site.yaml",
        "--out",
        f"{folder}/crawl",
    ]


def curate(folder: Path, workers: int = 1) -> list[str]:
    sets = [f"chunk={CHUNK}", "nsfw.enabled=false", "faces.enabled=false", "pca_hash.radius=8"]
    return ["components.curate", "run", "--params", "params/curate.yaml", "--crawl", f"{folder}/crawl",
            "--out", f"{folder}/curate", "--report", f"{folder}/report.json",
            *(word for one in sets for word in ("--set", one)),
            "--set", f"executor.workers={workers}"]  # fmt: skip


@contextlib.contextmanager
def started(words: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    with open(log, "ab") as file:
        process = subprocess.Popen([*COMMAND, *words], cwd=ROOT, stderr=file, stdout=file)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def killed(words: list[str], log: Path, at_work: Callable[[subprocess.Popen[bytes]], bool]) -> None:
    """Start the command and kill it as soon as ``at_work``; its worker processes end with it."""
    with started(words, log) as process:
        family: set[psutil.Process] = set()
        while process.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                family |= set(psutil.Process(process.pid).children(recursive=True))
            if at_work(process):
                process.kill()
                break
            time.sleep(0.005)
        assert process.wait() == -signal.SIGKILL, log.read_text()[-2000:]
        assert family
    _, alive = psutil.wait_procs(family, timeout=PATIENCE)
    assert not alive


def whole(words: list[str], log: Path) -> None:
    with started(words, log) as process:
        assert process.wait(PATIENCE) == 0, log.read_text()[-2000:]


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows = read_table(folder / "curate/index", INDEX).to_pylist()
    return [{k: repr(v) for k, v in row.items() if k not in OF_ARRIVAL} for row in rows]  # repr: NaN is NaN


def test_killed_five_times_and_carried_on_equals_the_undisturbed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dice = random.Random(SEED)
    site = Trap(images())
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    calm.mkdir()
    struck.mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(ROOT)
    log = tmp_path / "log"

    def stands(pattern: str, at_least: int) -> Callable[[subprocess.Popen[bytes]], bool]:
        return lambda _: len(list(struck.glob(pattern))) >= at_least

    with serve(site) as address:
        prepare(tmp_path, address)
        # Twice in the fetch, at the request for the n-th image of those that are left.
        fetched = 0
        for _ in range(2):
            left = len(site) - fetched

            def sprung(process: subprocess.Popen[bytes]) -> bool:
                site.target = process.pid
                return False  # the server does it

            site.asked, site.at = 0, 3 + dice.randrange(5, left // 2)  # three robots.txt
            killed(crawl(struck), log, sprung)
            site.at = 0
            fetched = sum(path.read_bytes().count(b"\n") for path in struck.glob(".crawl.work/*/*.ledger"))
            assert 0 < fetched < len(site)
        site.asked = 0
        whole(crawl(struck), log)
        assert site.asked < len(site) - fetched + 10  # what had its line was not asked for again
        assert crawl_main(crawl(calm)[1:]) == 0

    # Thrice in the curation: among the chunks decoded, among those stored, and while the output is put in place.
    chunks = GOOD // CHUNK
    killed(curate(struck), log, stands(".curate.work/*/examined-*.parquet", dice.randrange(1, chunks)))
    killed(curate(struck), log, stands(".curate.work/*/stored-*.parquet", dice.randrange(1, chunks)))
    assert not list(struck.glob("curate"))
    examined = {path: path.stat().st_mtime_ns for path in struck.glob(".curate.work/*/examined-*.parquet")}
    killed(
        curate(struck), log, stands(".curate.????????.partial", 1)
    )  # the output; not the lock, which has a longer name
    assert {path: path.stat().st_mtime_ns for path in examined} == examined  # not done again
    whole(curate(struck), log)

    with monkeypatch.context() as patch:
        patch.setattr(tracking, "run", lambda *_: contextlib.nullcontext(tracking.null_run()))
        assert main(curate(calm, workers=0)[1:]) == 0
    assert rows_of(struck) == rows_of(calm)
    reasons = {row["reason"].strip("'") for row in rows_of(calm)}
    assert reasons >= {"", "exact-duplicate", "near-duplicate", "truncated", "too-small", "http-error", "opt-out",
                       "not-an-image", "refused-address", "restricted-domain"}  # fmt: skip
    assert Shards.load(struck / "curate") == Shards.load(calm / "curate")  # names and SHA-256
    storage = StorageParams(root="data")
    for name in Shards.load(calm / "curate").shards:
        both = [Shards.load(folder / "curate").store(folder / "curate", storage) for folder in (calm, struck)]
        assert both[0].read(name) == both[1].read(name)
    outcomes = [sorted(pq.read_table(f / "crawl" / OUTCOMES_NAME).to_pylist(), key=str) for f in (calm, struck)]
    assert outcomes[0] == outcomes[1]
    assert not list(struck.glob(".*"))  # nothing is left behind
