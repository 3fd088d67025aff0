"""Images a second fetched from loopback on two cores by ``crawl`` of ``kind: fetch``; memory; and beside img2dataset.

    python -m perf fetch                       # VITRAIL_PERF_URLS=100000 for the run over many addresses

A table of addresses on 64 hosts is fetched by the stage's own code: the table read, links made unique, judged and
spread over two partitions, two processes that resolve, check robots.txt, fetch, sniff and write WARC and ledger. nginx
runs beside it on the same two cores. Memory is that of the largest process, read from the system twice a second.

Fetch, decode and shard together, beside img2dataset where that can be imported (``VITRAIL_PERF_IMG2DATASET`` may name
the folder it is in; its requirements clash with ours): the same addresses of photographs with 256 pixels on the shorter
side, two processes each; there 64 threads a process, each image decoded and encoded again at 256 pixels, as it does by
default; here fetch, decode, hashes, duplicates and shards, bytes stored as they came, without the NSFW and face models,
which img2dataset has not, and without the stage's report, quality suites and MLflow record. Turns alternate.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from components.crawl import fetch_images
from components.crawl.spider import CrawlParams
from components.params import load_params
from components.storage import StorageParams
from perf._loopback import serving

HOSTS = 64
URLS = int(os.environ.get("VITRAIL_PERF_URLS", "20000"))
TOGETHER = 8000  # addresses of the comparison: every photograph turned and mirrored, for copies would be dropped
ROUNDS = 2
ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data" / "imagenet-sample-1k-256px.parquet"
THEIRS = """
import sys
sys.path.insert(0, sys.argv[3])
from img2dataset import download
if __name__ == "__main__":
    download(url_list=sys.argv[1], input_format="parquet", url_col="url", output_folder=sys.argv[2], processes_count=2,
             thread_count=64, image_size=256, output_format="webdataset", number_sample_per_shard=1000, retries=0)
"""


def main() -> dict[str, object]:
    """Images a second, memory along the way, and the ratio to img2dataset."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        return {"target": 1000, "small": _small(Path(folder))} | _beside(Path(folder))


def _small(folder: Path) -> dict[str, object]:
    """Addresses of small images (about 2 kB) fetched: rate and memory."""
    place = folder / "small"
    place.mkdir()
    with serving([_jpeg(seed) for seed in range(100)], place) as port:
        table = _table(place, URLS, 100, port)
        watch = _Watch()
        began = time.perf_counter()
        with watch:
            counts = fetch(table, port, place / "out")
        seconds = time.perf_counter() - began
    return {
        "addresses": URLS,
        "lost": URLS - counts["image-ok"],
        "images_per_second": round(URLS / seconds, 1),
        "megabytes_along_the_way": watch.tenths(),
    }


def fetch(table: Path, port: int, out: Path) -> dict[str, int]:
    """The stage's fetch of a table of addresses; counts."""
    params = load_params(ROOT / "params/crawl.yaml", CrawlParams)
    hosts = {f"h{number}.test": f"127.0.0.1:{port}" for number in range(HOSTS)}
    manners = params.fetch.model_copy(update={"delay": 0.0, "resolve": hosts})
    site = fetch_images.NamedImages(kind="fetch", source=str(table))
    with _quiet():
        counts = fetch_images.run(site, manners, params.images, out, StorageParams(root="data"))
    return dict(counts)


def _beside(folder: Path) -> dict[str, object]:
    """Fetch, decode and shard: ours and img2dataset's rates, in turn."""
    if not SHARED.exists():
        return {"together": "left out: no photographs"}
    packages = os.environ.get("VITRAIL_PERF_IMG2DATASET", "")
    rates: dict[str, list[float]] = {"ours": [], "img2dataset": []}
    place = folder / "together"
    place.mkdir()
    jpegs = _turned(pq.read_table(SHARED, columns=["image"])["image"].to_pylist())
    with serving(jpegs, place) as port:
        table = _table(place, TOGETHER, len(jpegs), port)
        direct = _table(place / "direct", TOGETHER, len(jpegs), port, direct=True)
        for turn in range(ROUNDS):
            began = time.perf_counter()
            kept = _ours(table, port, place / f"ours-{turn}")
            rates["ours"].append(kept / (time.perf_counter() - began))
            began = time.perf_counter()
            done = _theirs(direct, place / f"theirs-{turn}", packages)
            rates["img2dataset"].append(done / (time.perf_counter() - began))
            if not done:
                return {"together": {"ours_images_per_second": rates["ours"], "img2dataset": "could not be run"}}
    return {
        "together": {
            "images_per_second": {name: [round(rate, 1) for rate in found] for name, found in rates.items()},
            "times_img2dataset": round(max(rates["ours"]) / max(rates["img2dataset"]), 2),
        }
    }


def _ours(table: Path, port: int, out: Path) -> int:
    """Addresses fetched, decoded, hashed, made unique and stored in shards; how many images were stored."""
    from components.curate import passes, stage
    from components.curate.links.gather import gather
    from components.curate.links.judge import items, judge
    from components.curate.params import CurateParams
    from components.executor import kept_workers, map_shards
    from components.storage import open_store
    from components.web.sources.sources_json import Sources

    fetch(table, port, out / "crawl")
    params = load_params(ROOT / "params/curate.yaml", CurateParams, ["nsfw.enabled=false", "faces.enabled=false"])
    sources, storage, work = Sources.load(out / "crawl"), StorageParams(root="data"), out / "work"
    work.mkdir()
    run = passes.PassContext(params, sources.store(out / "crawl", storage), work, open_store(str(out / "shards")))
    with _quiet(), kept_workers(params.executor):
        met = gather(sources, stage.gathering(run, out / "crawl"))
        judged = list(map_shards(judge, items(met, params.policy, work, params.chunk), params.executor))
        examined = passes.decode(run, judged)
        facts = passes.facts(run, judged, examined)
        exact, _ = passes.exact(run, facts)
        _, hashed = passes.hashes(run, facts, exact, examined)
        near = passes.near_copies(run, hashed)
        stored, _ = passes.store(run, judged, facts, (exact, near) if near else (exact,))
    return sum(int(pq.read_metadata(path).num_rows) for files in stored for path in files)


def _theirs(table: Path, out: Path, packages: str) -> int:
    """Images that img2dataset stored; 0 where it cannot be run."""
    program = table.parent / "theirs.py"
    program.write_text(THEIRS)
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": packages}
    done = subprocess.run(
        [sys.executable, str(program), str(table), str(out), packages], env=environment, capture_output=True, text=True
    )
    if done.returncode:
        print(done.stderr[-500:])
        return 0
    return sum(pq.read_table(path)["status"].to_pylist().count("success") for path in out.glob("*.parquet"))


def _table(folder: Path, count: int, images: int, port: int, direct: bool = False) -> Path:
    """A Parquet table of ``count`` addresses on :data:`HOSTS` hosts, or ``direct`` on 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    hosts = [f"127.0.0.1:{port}"] if direct else [f"h{number}.test" for number in range(HOSTS)]
    urls = [f"http://{hosts[n % len(hosts)]}/{n // images}/{n % images}.jpg" for n in range(count)]
    path = folder / "urls.parquet"
    pq.write_table(pa.table({"url": urls}), path)
    return path


def _turned(jpegs: list[bytes]) -> list[bytes]:
    """Each photograph in all eight positions."""
    import simplejpeg

    found = []
    for data in jpegs:
        pixels = simplejpeg.decode_jpeg(data)
        for turn in range(8):
            turned = np.ascontiguousarray(np.rot90(pixels[:, ::-1] if turn >= 4 else pixels, turn % 4))
            found.append(simplejpeg.encode_jpeg(turned, quality=90, colorsubsampling="420"))
    return found


def _jpeg(seed: int) -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((96, 96)).save(buffer, "JPEG")
    return buffer.getvalue()


class _Watch:
    """Resident memory of the largest child process, twice a second."""

    def __init__(self) -> None:
        self._found: list[float] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        here = psutil.Process()
        while not self._stop.wait(0.5):
            sizes = []
            for child in here.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if "nginx" not in child.name():
                        sizes.append(child.memory_info().rss / 1e6)
            self._found.append(max(sizes, default=0.0))

    def tenths(self) -> list[int]:
        """At each tenth of the time, megabytes."""
        found = self._found
        return [round(found[min(len(found) - 1, len(found) * tenth // 10)]) for tenth in range(1, 11)] if found else []


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    with contextlib.redirect_stderr(io.StringIO()):
        yield


if __name__ == "__main__":
    print(main())
