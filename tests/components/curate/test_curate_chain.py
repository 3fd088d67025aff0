"""Crawl and curate, end to end on a small demo site: every planted case ends where it should; faults and restarts."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from components import tracking
from components.context import StageContext
from components.crawl.run import main as crawl_main
from components.curate import passes, stage
from components.curate.params import CurateParams
from components.errors import VitrailError, run_cli
from components.images.decode import DecodeLimits, decode
from components.images.shards import Shards
from components.params import load_params
from components.storage import StorageParams, open_store
from components.tables.parts import digest, read_table
from components.tables.schemas import INDEX
from components.tracking import TrackingParams
from components.web.rules.keys import key_of

ROOT = Path(__file__).resolve().parents[3]
SITE = "kind: demo\ncells: 60\nper_page: 12\nexact: 6\nreencoded: 6\nresized: 6\ncropped: 6\n"
LOCAL = StorageParams(root="data")


def crawl(folder: Path, source: str) -> Path:
    storage = ["--storage", str(ROOT / "params/storage.yaml")]
    params = folder / "crawl.yaml"
    text = (ROOT / "params/crawl.yaml").read_text()
    params.write_text(text.replace("params/policy/", f"{ROOT}/params/policy/").replace("delay: 1.0", "delay: 0.0"))
    assert (
        crawl_main(["run", "--params", str(params), "--source", source, "--out", str(folder / "crawl"), *storage]) == 0
    )
    return folder / "crawl"


def curate_params(safety: bool = False, **changes: Any) -> CurateParams:
    off = [] if safety else ["nsfw.enabled=false", "faces.enabled=false"]
    overlays = [f'policy.restricted=["{ROOT}/params/policy/restricted-domains.txt"]', "executor.workers=0", *off]
    overlays += [f"{name.replace('__', '.')}={value}" for name, value in changes.items()]
    return load_params(ROOT / "params/curate.yaml", CurateParams, overlays)


def curate(crawled: Path, out: Path, storage: StorageParams = LOCAL, **changes: Any) -> dict[str, Any]:
    report = out.with_name(f"{out.name}.json")
    tracking = load_params(ROOT / "params/tracking.yaml", TrackingParams)
    context = StageContext(storage, tracking, report)
    return stage.run(curate_params(**changes), stage.CurateInputs(crawled), out, context)


def rows_of(out: Path) -> dict[str, dict[str, Any]]:
    return {row["url"]: row for row in read_table(out / "index", INDEX).to_pylist()}


@pytest.fixture(scope="module")
def crawled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    (folder / "demo.yaml").write_text(SITE)
    return crawl(folder, str(folder / "demo.yaml"))


@pytest.fixture(scope="module")
def curated(crawled: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The full stage, safety models, quality suite and MLflow included."""
    folder = tmp_path_factory.mktemp("curated")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        report = curate(crawled, folder / "curate", safety=True, chunk=40)
    return folder / "curate", report


@pytest.fixture
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage without MLflow, which the full run above covers."""

    @contextlib.contextmanager
    def run(*_: object, **__: object) -> Iterator[tracking.Run]:
        yield tracking.null_run()

    monkeypatch.setattr(tracking, "run", run)


def test_every_planted_case_ends_where_it_should(crawled: Path, curated: tuple[Path, dict[str, Any]]) -> None:
    rows = rows_of(curated[0])
    truth = json.loads((crawled / "planted.json").read_text())
    assert len({case["kind"] for case in truth.values()}) == 19
    by_key = {row["key"]: row for row in rows.values()}
    for url, case in truth.items():
        if case["expected"] in ("never-seen", "never-fetched"):
            assert url not in rows
            continue
        row = rows[url]
        assert row["key"] == key_of(url)
        if case["kind"] in ("reencoded-copy", "resized-copy"):  # here or by dedup; never taken for another cell's
            assert row["reason"] in ("", "near-duplicate")
            assert row["reason"] == "" or by_key[row["duplicate_of"]]["url"] == case["original"]
        else:
            assert (url, row["reason"]) == (url, case["expected"])
        if case["kind"] == "exact-copy":
            assert by_key[row["duplicate_of"]]["url"] == case["original"]
        if case["kind"] == "face":
            assert row["faces"] == 1
            assert row["stored_sha256"] != row["sha256"]
    caught = [r for r in rows.values() if r["reason"] == "near-duplicate"]
    assert len(caught) >= 6  # of 12; the rest is dedup's
    cells = [row for url, row in rows.items() if "/cells/" in url]
    assert len(cells) == 60
    assert all(row["status"] == "kept" for row in cells)
    assert all(row["page"].startswith("http://cells.demo.test/gallery/") and row["alt"] in row["url"] for row in cells)


def test_nothing_forbidden_was_asked_for(crawled: Path) -> None:
    raw = gzip.decompress((crawled / "site-00000.warc.gz").read_bytes())
    assert b"WARC-Target-URI: http://photos.demo.test/robots.txt" in raw
    for path in (b"private", b"forbidden", b"img/secret", b"beacon", b"logo.svg"):
        assert b"-URI: http://photos.demo.test/" + path not in raw
    assert b"-URI: http://ads.restricted.test" not in raw
    assert b"-URI: http://cells.demo.test/thumbs" not in raw
    counts = json.loads((crawled / "crawl.json").read_text())
    assert counts["page-robots"] == counts["page-restricted"] == counts["image-robots"] == 1


def test_shards_hold_the_original_bytes_where_the_index_says(
    crawled: Path, curated: tuple[Path, dict[str, Any]]
) -> None:
    out, report = curated
    shards = Shards.load(out)
    store = shards.store(out, LOCAL)
    kept = [row for row in rows_of(out).values() if row["status"] == "kept"]
    assert len(kept) == report["kept"]
    for row in kept:
        data = store.read(row["shard"], row["offset"], row["length"])
        assert hashlib.sha256(data).hexdigest() == row["stored_sha256"]
        assert (row["faces"] > 0) == (row["stored_sha256"] != row["sha256"])
        assert decode(data, DecodeLimits()).shape == (row["height"], row["width"], 3)
    names = []
    for name, facts in shards.shards.items():
        assert hashlib.sha256((out / "shards" / name).read_bytes()).hexdigest() == facts["sha256"]
        with tarfile.open(out / "shards" / name) as tar:
            names += [member.name.partition(".")[0] for member in tar.getmembers()]
    assert sorted(names) == sorted(row["key"] for row in kept)


def test_report_pictures_docs_and_mlflow(curated: tuple[Path, dict[str, Any]]) -> None:
    out, report = curated
    assert report["links"] == report["kept"] + report["dropped"]
    assert sum(report["reasons"].values()) == report["dropped"]
    assert report["blurred"] == 2
    assert json.loads(out.with_name("curate.json").read_text()) == report
    with Image.open(out / "contact-sheet.png") as sheet:
        assert sheet.width == 1152
    for table in ("index", "links", "images"):
        assert (out.parent / f"gx/curate/{table}/index.html").is_file()
    audited = pq.read_table(out / "audit").to_pylist()
    assert sum(row["check"] == "nsfw" for row in audited) == report["nsfw-scored"] >= report["kept"]
    faces = [row for row in audited if row["check"] == "face"]
    assert len(faces) == report["faces"]
    assert all(row["action"] == "blurred" and row["score"] >= row["threshold"] for row in faces)
    assert (out / "pca_hash.npz").exists()
    assert not list(out.parent.glob(".curate*"))
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{out.parent}/mlflow.db")
    found = client.search_runs([client.get_experiment_by_name("vitrail").experiment_id])
    assert len(found) == 1
    assert found[0].info.status == "FINISHED"
    assert found[0].data.metrics["curate.kept"] == report["kept"]
    assert found[0].data.metrics["curate.dropped.exact-duplicate"] == 6


def test_two_crawls_give_the_same_file(crawled: Path, tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text(SITE)
    again = crawl(tmp_path, str(tmp_path / "demo.yaml"))
    for name in ("site-00000.warc.gz", "planted.json", "sources.json", "crawl.json"):
        assert (again / name).read_bytes() == (crawled / name).read_bytes()


@pytest.mark.usefixtures("untracked")
def test_a_killed_run_carries_on_and_gives_the_same(
    crawled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = curate(crawled, tmp_path / "a/curate", chunk=20)
    calls = []

    def dies(item: Any) -> Path:
        calls.append(item)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return store_chunk(item)

    store_chunk = passes.store_chunk
    with monkeypatch.context() as patch:
        patch.setattr(passes, "store_chunk", dies)
        with pytest.raises(KeyboardInterrupt):
            curate(crawled, tmp_path / "b/curate", chunk=20)
    assert not (tmp_path / "b/curate").exists()
    done = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "b/.curate.work").rglob("*.tar")}
    assert len(done) == 2
    again = curate(crawled, tmp_path / "b/curate", chunk=20)
    assert {**again, "seconds": 0} == {**whole, "seconds": 0}
    assert digest(tmp_path / "a/curate/index", INDEX) == digest(tmp_path / "b/curate/index", INDEX)
    assert Shards.load(tmp_path / "a/curate") == Shards.load(tmp_path / "b/curate")
    shards = tmp_path / "b/curate/shards"
    assert {name: (shards / name).stat().st_mtime_ns for name in done} == done  # those chunks were not done again


@pytest.mark.usefixtures("untracked")
def test_a_warc_cut_in_half_is_used_as_far_as_it_goes(
    crawled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = (crawled / "site-00000.warc.gz").read_bytes()
    (tmp_path / "warcs").mkdir()
    (tmp_path / "warcs/half.warc.gz").write_bytes(data[: len(data) // 2])
    report = curate(crawl(tmp_path, str(tmp_path / "warcs")), tmp_path / "curate")
    assert report["warc-truncated"] == 1
    assert report["kept"] > 10
    assert report["reasons"]["not-fetched"] > 10
    assert "half.warc.gz: damaged (warc-truncated 1)" in capsys.readouterr().err


@pytest.mark.usefixtures("untracked")
def test_several_warcs_are_one_crawl(crawled: Path, tmp_path: Path, curated: tuple[Path, dict[str, Any]]) -> None:
    from components.web.formats.warc import Faults, read_warc

    path = crawled / "site-00000.warc.gz"
    data = path.read_bytes()
    middle = [response.offset for response in read_warc(path, Faults(), 1 << 24)][70]
    folder = tmp_path / "warcs/deep"
    folder.mkdir(parents=True)
    (folder / "a.warc.gz").write_bytes(data[:middle])
    (folder / "b.warc.gz").write_bytes(data[middle:])
    curate(crawl(tmp_path, str(tmp_path / "warcs")), tmp_path / "curate")
    one, two = rows_of(curated[0]), rows_of(tmp_path / "curate")
    assert {u: (r["reason"], r["sha256"]) for u, r in one.items()} == {
        u: (r["reason"], r["sha256"]) for u, r in two.items()
    }


@pytest.mark.usefixtures("untracked")
def test_a_folder_of_images(tmp_path: Path) -> None:
    folder = tmp_path / "pictures/deep"
    folder.mkdir(parents=True)
    for i in range(3):
        Image.effect_noise((80 + i, 90), 60).save(folder / f"ü {i}.png")
    shutil.copy(folder / "ü 0.png", folder / "copy.PNG")
    (folder / "bad.jpg").write_bytes(b"text")
    (folder / "notes.txt").write_text("ignored")
    report = curate(crawl(tmp_path, str(tmp_path / "pictures")), tmp_path / "curate")
    rows = rows_of(tmp_path / "curate")
    assert {url: row["reason"] for url, row in rows.items()} == {
        "file:deep/bad.jpg": "not-an-image",
        "file:deep/copy.PNG": "",
        "file:deep/%C3%BC%200.png": "exact-duplicate",
        "file:deep/%C3%BC%201.png": "",
        "file:deep/%C3%BC%202.png": "",
    }
    assert report["pca-hash"] is False
    assert not (tmp_path / "curate/pca_hash.npz").exists()


@pytest.mark.usefixtures("untracked")
def test_from_s3_to_s3_over_http_with_worker_processes(crawled: Path, tmp_path: Path, s3_endpoint: str) -> None:
    storage = StorageParams(root="s3://vitrail-test/lake", endpoint_url=s3_endpoint)
    open_store(storage.model_copy(update={"root": "s3://vitrail-test/warcs"})).put_file(
        "x/site.warc.gz", crawled / "site-00000.warc.gz"
    )
    params = tmp_path / "storage.yaml"
    params.write_text(f"root: {storage.root}\nendpoint_url: {s3_endpoint}\n")
    crawl_main(["run", "--params", str(ROOT / "params/crawl.yaml"), "--source", "s3://vitrail-test/warcs",
          "--out", str(tmp_path / "crawl"), "--storage", str(params)])  # fmt: skip
    curate(tmp_path / "crawl", tmp_path / "curate", storage, executor__workers=1)
    curate(crawled, tmp_path / "local")
    assert not (tmp_path / "curate/shards").exists()
    here, there = rows_of(tmp_path / "local"), rows_of(tmp_path / "curate")
    ignored = ("source", "source_offset", "nsfw")
    assert [{k: v for k, v in r.items() if k not in ignored} for r in here.values()] == [
        {k: v for k, v in r.items() if k not in ignored} for r in there.values()
    ]
    shards = Shards.load(tmp_path / "curate")
    assert shards.base.startswith("s3://vitrail-test/lake/curate/")
    row = next(row for row in there.values() if row["status"] == "kept")
    data = shards.store(tmp_path / "curate", storage).read(row["shard"], row["offset"], row["length"])
    assert hashlib.sha256(data).hexdigest() == row["stored_sha256"]


@pytest.mark.usefixtures("untracked")
def test_unsafe_images_and_their_copies_are_dropped(crawled: Path, tmp_path: Path) -> None:
    report = curate(crawled, tmp_path / "curate", nsfw__enabled="true", nsfw__threshold=0.01)
    rows = rows_of(tmp_path / "curate")
    assert report["reasons"]["nsfw"] > 5
    kept = {row["key"] for row in rows.values() if row["status"] == "kept"}
    assert all(row["nsfw"] <= 0.01 for row in rows.values() if row["key"] in kept)
    assert all(row["duplicate_of"] in kept for row in rows.values() if row["duplicate_of"])


def test_bad_sources_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "mixed").mkdir()
    (tmp_path / "mixed/a.warc.gz").write_bytes(b"")
    (tmp_path / "mixed/a.png").write_bytes(b"")
    (tmp_path / "site.yaml").write_text("kind: demo\ncels: 5\n")
    (tmp_path / "many.yaml").write_text("kind: demo\ncells: 5\n")
    for source, words in (("empty", "empty, no WARC"), ("mixed", "mixed"), ("nothere", "no such file or folder"),
                          ("site.yaml", "did you mean 'cells'?"), ("many.yaml", "planted copies")):  # fmt: skip
        command = f"run --params {ROOT}/params/crawl.yaml --storage {ROOT}/params/storage.yaml --out {tmp_path}/out"
        code = run_cli(crawl_main, [*command.split(), "--source", str(tmp_path / source)])
        shown = capsys.readouterr().err
        assert code == 1
        assert words in shown
        assert shown.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("untracked")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", r"1 files, none of them WARC .*\(empty 1\)"),
        (b"garbage " * 100, "no HTTP response"),
        (None, "0 of 1 images are left.*1 are not-an-image"),
    ],
)
def test_nothing_readable_or_nothing_kept_stops_the_stage(tmp_path: Path, content: bytes | None, words: str) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    if content is None:
        (folder / "a.jpg").write_bytes(b"text")
    else:
        (folder / "a.warc.gz").write_bytes(content)
    with pytest.raises(VitrailError, match=words):
        curate(crawl(tmp_path, str(folder)), tmp_path / "curate")
    assert not (tmp_path / "curate").exists()


def test_a_missing_crawl_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="run the crawl stage first"):
        curate(tmp_path, tmp_path / "curate")


@pytest.mark.shared
@pytest.mark.usefixtures("untracked")
def test_a_real_warc_of_another_crawler(shared_data: Path, tmp_path: Path) -> None:
    report = curate(crawl(tmp_path, str(shared_data / "example.warc.gz")), tmp_path / "curate")
    assert (report["pages"], report["links"], report["kept"]) == (94, 78, 15)  # pages as warcio counts them
    assert report["reasons"] == {"not-fetched": 2, "robots-disallowed": 28, "too-small": 33}
    assert not [name for name in report if name.startswith("warc-")]
