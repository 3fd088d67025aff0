"""An image's story told, and images taken down: from every table and shard, with all who held them listed."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from components import tracking
from components.context import StageContext
from components.crawl.run import main as crawl_main
from components.curate import stage
from components.curate.params import CurateParams
from components.curate.results.reasons import REASONS
from components.dedup.copy_graph.edges import EDGES
from components.errors import VitrailError
from components.images.shards import Shards, ShardWriter, data_digest, erase
from components.params import load_params
from components.provenance.receipt import told
from components.provenance.run import main
from components.provenance.take_down import Copies, Outputs, TakeDownRequest, forget
from components.provenance.trace import trace
from components.storage import StorageParams, open_store
from components.tables.database import MemoryParams, database
from components.tables.parts import parts, read_table, write_table
from components.tables.schemas import DECISIONS, INDEX, KEYS, MANIFEST
from components.tracking import TrackingParams
from components.web.formats.warc import WarcWriter
from components.web.rules.block_list import Forgotten, entries, remember
from components.web.rules.keys import key_of

ROOT = Path(__file__).resolve().parents[3]
LOCAL = StorageParams(root="data")
A, B = "http://a.test", "http://b.test"
NAMES = [f"{A}/0.png", f"{A}/1.png", f"{A}/2.png", f"{B}/3.png", f"{B}/copy-of-1.png", f"{B}/5.png"]
PAGES = {
    f"{A}/page": f'<head><link rel=license href="/terms"></head><img src=0.png alt="a zero"><img src=1.png>'
    f'<img src=2.png><img src="{B}/5.png">',
    f"{B}/page": f'<img src=3.png><img src=copy-of-1.png><img src=5.png alt=five><img src="{A}/0.png">',
    f"{B}/closed": "<meta name=robots content=noimageai><img src=closed.png>",
}


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (70, 80, 3), dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_crawl(folder: Path) -> Path:
    """A crawl of two sites by hand: six images, one of them twice, an opted-out page, a robots.txt."""
    folder.mkdir(parents=True)
    with open(folder / "site.warc.gz", "wb") as file:
        writer = WarcWriter(file)

        def add(url: str, kind: str, body: bytes) -> None:
            writer.response(url, 200, "OK", [("Content-Type", kind)], body)

        add(f"{A}/robots.txt", "text/plain", b"User-agent: *\nAllow: /0\nDisallow: /private")
        for url, html in PAGES.items():
            add(url, "text/html", html.encode())
        for number, url in enumerate(NAMES):
            add(url, "image/png", picture(1 if "copy" in url else number))
    crawl_main(["run", "--params", str(ROOT / "params/crawl.yaml"), "--storage", str(ROOT / "params/storage.yaml"),
          "--source", str(folder / "site.warc.gz"), "--out", str(folder / "crawl")])  # fmt: skip
    return folder / "crawl"


def curate(crawled: Path, out: Path, *overlays: str) -> dict[str, Any]:
    base = ["policy.restricted=[]", "policy.forgotten=[]", "nsfw.enabled=false", "faces.enabled=false"]
    params = load_params(
        ROOT / "params/curate.yaml", CurateParams, [*base, "executor.workers=0", *overlays]
    )  # fmt: skip
    return stage.run(params, stage.CurateInputs(crawled), out, StageContext(LOCAL, None, out.with_name("report.json")))


@contextlib.contextmanager
def unrecorded(*_: object, **__: object) -> Iterator[tracking.Run]:
    yield tracking.null_run()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout after curate and dedup (dedup's output written by hand): data/, a commit of dvc.lock, DVC's cache."""
    root = tmp_path_factory.mktemp("checkout")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracking, "run", unrecorded)
        curate(write_crawl(root / "source"), root / "data/curate")
    write_dedup(root / "data/curate", root / "data/dedup")
    for out in ("curate", "dedup"):
        cache_as_dvc(root, root / "data" / out)
    lock = {"stages": {name: {"outs": [{"path": f"data/{name}", "md5": digest}]}
                       for name, digest in json.loads((root / "digests.json").read_text()).items()}}  # fmt: skip
    (root / "dvc.lock").write_text(yaml.safe_dump(lock))
    for words in (["init", "-q"], ["add", "dvc.lock"],
                  ["-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qm", "first"]):  # fmt: skip
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "dvc.lock").unlink()  # only history knows it
    return root


def write_dedup(curated: Path, out: Path) -> None:
    index = read_table(curated / "index", INDEX)
    kept = [row for row in index.to_pylist() if row["status"] == "kept"]
    out.mkdir()
    rows: list[dict[str, object]] = []
    for number, row in enumerate(kept):
        first = kept[0 if number == 1 else number]  # the second is a copy of the first
        copy = number == 1
        rows.append({
            "key": row["key"], "status": "dropped" if copy else "selected",
            "reason": "self-duplicate" if copy else "pool", "component": 0 if copy else number,
            "representative": first["key"], "match": first["key"] if copy else "",
            "similarity": 0.9 if copy else float("nan"), "view": 2 if copy else -1, "match_view": 0 if copy else -1,
        })  # fmt: skip
    write_table(out / "decisions", rows, DECISIONS)
    selected = [row for row, decision in zip(kept, rows, strict=True) if decision["status"] == "selected"]
    names = ("key", "shard", "offset", "length", "width", "height")
    write_table(
        out / "manifest",
        [{**{name: row[name] for name in names}, "weight": 1.0, "reason": "pool"} for row in selected],
        MANIFEST,
    )
    np.save(out / "descriptors.npy", np.arange(len(kept) * 4, dtype=np.float16).reshape(-1, 2, 2))
    (out / "index").mkdir()
    (out / "index/lists.ivfdata").write_bytes(b"numbers of rows")
    np.save(out / "to-held-out.npy", np.arange(len(kept), dtype=np.float16))
    write_table(out / "keys", [{"key": row["key"]} for row in kept], KEYS)
    (out / "edges").mkdir()
    ends, cosines = ([0, 0, 1], [1, 2, 3]), [0.9, 0.5, 0.4]
    edges = pa.table([*ends, pa.array(cosines, pa.float32()), *[pa.array([0, 0, 0], pa.int16())] * 2], schema=EDGES)
    pq.write_table(edges, out / "edges/edges-0-4.parquet")
    (out / "params.json").write_text(json.dumps({"windows": [[0.9, 2]], "views": {"flip": True}}))
    (out / "review.html").write_text("shows everything")


def cache_as_dvc(root: Path, folder: Path) -> None:
    listing = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest = hashlib.md5(path.read_bytes()).hexdigest()
        place = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
        listing.append({"md5": digest, "relpath": path.relative_to(folder).as_posix()})
    text = json.dumps(listing)
    digest = hashlib.md5(text.encode()).hexdigest() + ".dir"
    place = root / ".dvc/cache/files/md5" / digest[:2] / digest[2:]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    known = root / "digests.json"
    digests = json.loads(known.read_text()) if known.exists() else {}
    known.write_text(json.dumps(digests | {folder.name: digest}))


@pytest.fixture
def checkout(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(made, tmp_path / "checkout")
    monkeypatch.chdir(tmp_path / "checkout")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path / "checkout"


OUTPUTS = Outputs(Path("data/curate"), Path("data/dedup"), (Path("data"),), Path("forgotten.txt"))
NO_STORE = TrackingParams(uri="sqlite:///nothing.db", experiment="vitrail", system_metrics=False)


def take(
    wanted: TakeDownRequest, copies: Copies = "curate", dry: bool = False, store: TrackingParams = NO_STORE
) -> Any:
    return forget(wanted, OUTPUTS, copies, LOCAL, store, dry)


def urls() -> list[str]:
    return read_table(OUTPUTS.curated / "index", INDEX)["url"].to_pylist()


def sound() -> None:
    """What is left fits together: every kept row's bytes, and dedup's files with the index."""
    index = read_table(OUTPUTS.curated / "index", INDEX)
    shards = Shards.load(OUTPUTS.curated)
    store = shards.store(OUTPUTS.curated, LOCAL)
    kept = [row for row in index.to_pylist() if row["status"] == "kept"]
    for row in kept:
        data = store.read(row["shard"], row["offset"], row["length"])
        assert hashlib.sha256(data).hexdigest() == row["stored_sha256"]
    members = []
    for name, facts in shards.shards.items():
        path = OUTPUTS.curated / "shards" / name
        assert hashlib.sha256(path.read_bytes()).hexdigest() == facts["sha256"]
        with tarfile.open(path) as tar:
            members += [member.name.partition(".")[0] for member in tar.getmembers()]
    assert sorted(members) == sorted(row["key"] for row in kept)
    keys = [row["key"] for row in kept]
    decisions = read_table(OUTPUTS.dedup / "decisions", DECISIONS)
    assert decisions["key"].to_pylist() == keys == read_table(OUTPUTS.dedup / "keys", KEYS)["key"].to_pylist()
    assert np.load(OUTPUTS.dedup / "descriptors.npy").shape == (len(keys), 2, 2)
    manifest = read_table(OUTPUTS.dedup / "manifest", MANIFEST)
    assert set(manifest["key"].to_pylist()) <= set(keys)


def suites() -> None:
    from components.quality import validate_files
    from components.quality.suites import decisions_suite, index_suite, manifest_suite

    index = parts(OUTPUTS.curated / "index", INDEX)
    kept = read_table(OUTPUTS.curated / "index", INDEX, pc.field("status") == "kept", ["key"]).num_rows
    with database(MemoryParams(), Path("gx")) as connection:
        validate_files(connection, index, index_suite(REASONS), Path("gx"))
        for name, schema, suite in (
            ("manifest", MANIFEST, manifest_suite(index)),
            ("decisions", DECISIONS, decisions_suite(index, kept)),
        ):
            validate_files(connection, parts(OUTPUTS.dedup / name, schema), suite, Path("gx"))


def test_a_kept_image_is_traced_from_its_pages_to_its_manifest(checkout: Path) -> None:
    told = trace(f"{A}/0.png", OUTPUTS.curated, OUTPUTS.dedup, [Path("data")], LOCAL)
    row = next(r for r in read_table(OUTPUTS.curated / "index", INDEX).to_pylist() if r["url"] == f"{A}/0.png")
    assert f"key {key_of(f'{A}/0.png')}, kept" in told
    assert f"{A}/page (site.warc.gz, record at " in told
    assert f'; alt "a zero"; licence {A}/terms' in told
    assert f"{B}/page (site.warc.gz, record at " in told  # every page that names it, not the first alone
    assert f"{A}/robots.txt: allow: /0" in told
    assert "response 200" in told
    assert f"site.warc.gz, record at {row['source_offset']:,}" in told
    assert "png, 80 x 70 pixels" in told
    assert f"sha256 {row['sha256']}" in told
    assert f"{row['shard']}, {row['length']:,} bytes at {row['offset']:,}" in told
    assert "component 0 of 2 images, kept: " in told
    assert "data/dedup/manifest: weight 1, pool" in told
    for query in (row["key"], row["sha256"], "HTTP://A.test:80/x/../0.png#top"):
        assert trace(query, OUTPUTS.curated, OUTPUTS.dedup, [Path("data")], LOCAL) == told


def test_a_dropped_image_is_traced_to_what_dropped_it(checkout: Path) -> None:
    def story(url: str) -> str:
        return trace(url, OUTPUTS.curated, OUTPUTS.dedup, [Path("data")], LOCAL)

    copy = story(f"{B}/copy-of-1.png")
    assert "dropped: exact-duplicate" in copy
    assert f"repeats {key_of(f'{A}/1.png')} {A}/1.png (exact-duplicate)" in copy
    assert f"repeated by {key_of(f'{B}/copy-of-1.png')}" in story(f"{A}/1.png")
    closed = story(f"{B}/closed.png")
    assert "dropped: opt-out" in closed
    assert "page: meta robots noimageai" in closed
    assert "they were not fetched" in closed
    assert "none selects it" in closed
    with pytest.raises(VitrailError, match="no image of the key, address or SHA-256"):
        story(f"{A}/unheard-of.png")
    decisions = read_table(OUTPUTS.dedup / "decisions", DECISIONS).to_pylist()
    dropped = next(row for row in decisions if row["reason"] == "self-duplicate")
    view = "its view (crop to 0.9 of each side, row 1 and column 2 of 2) and that image's (whole)"
    assert f"decided by the copy {dropped['match']} at cosine 0.900, between {view}" in story(dropped["key"])


def test_one_image_is_taken_down_with_its_copies_and_stays_so(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file() and "data" in path.parts}
    pixels = picture(1)
    assert any(pixels in data for path, data in before.items() if path.suffix == ".tar")
    kept = read_table(OUTPUTS.dedup / "keys", KEYS)["key"].to_pylist()
    dry = take(TakeDownRequest(url=f"{B}/copy-of-1.png"), dry=True)
    assert {path: path.read_bytes() for path in before} == before
    assert not OUTPUTS.block.exists()
    receipt = take(TakeDownRequest(url=f"{B}/copy-of-1.png"))
    both = sorted(key_of(url) for url in (f"{A}/1.png", f"{B}/copy-of-1.png"))
    assert receipt.keys == dry.keys == both  # the bytes stood under the other address
    assert receipt.other_copies == [key_of(f"{A}/0.png")]  # dedup calls it a copy; it stays
    assert sorted(set(NAMES) - set(urls())) == [f"{A}/1.png", f"{B}/copy-of-1.png"]
    for path in (checkout / "data").rglob("*"):
        if path.is_file() and "source" not in path.parts:
            data = path.read_bytes()
            assert pixels not in data
            assert not any(key.encode() in data for key in both), path
    assert not (OUTPUTS.dedup / "review.html").exists()
    assert not (OUTPUTS.dedup / "index").exists()  # it numbers rows as they were
    stays = [number for number, key in enumerate(kept) if key not in both]
    assert np.load(OUTPUTS.dedup / "descriptors.npy")[:, 0, 0].tolist() == [4.0 * number for number in stays]
    assert not (OUTPUTS.curated / "contact-sheet.png").exists()
    sound()
    digest = hashlib.sha256(pixels).hexdigest()
    assert set(entries(OUTPUTS.block)) == {("key", both[0]), ("key", both[1]), ("sha256", digest)}
    assert receipt.sources == ["site.warc.gz"]

    again = take(TakeDownRequest(url=f"{B}/copy-of-1.png"))
    assert (again.keys, again.blocked, again.done) == ([], 0, [])
    assert "taken down" in trace(f"{B}/copy-of-1.png", OUTPUTS.curated, OUTPUTS.dedup, [], LOCAL, [OUTPUTS.block])
    # The next run reads the same crawl, and another address with the same bytes.
    monkeypatch.setattr(tracking, "run", unrecorded)
    curate(checkout / "source/crawl", checkout / "again/curate", f"policy.forgotten=[{OUTPUTS.block.absolute()}]")
    rows = {row["url"]: row for row in read_table(checkout / "again/curate/index", INDEX).to_pylist()}
    assert rows[f"{A}/1.png"]["reason"] == rows[f"{B}/copy-of-1.png"]["reason"] == "forgotten"
    text = OUTPUTS.block.read_text()
    OUTPUTS.block.write_text("\n".join(line for line in text.splitlines() if not line.startswith("key")))
    curate(checkout / "source/crawl", checkout / "again/curate", f"policy.forgotten=[{OUTPUTS.block.absolute()}]")
    rows = {row["url"]: row for row in read_table(checkout / "again/curate/index", INDEX).to_pylist()}
    assert rows[f"{A}/1.png"]["reason"] == "forgotten"
    assert rows[f"{A}/1.png"]["decisions"][-1] == "forgotten: by its bytes"


def test_a_domain_goes_with_what_its_pages_name_and_all_who_held_it_are_listed(checkout: Path) -> None:
    shards = Shards.load(OUTPUTS.curated).shards
    digest = data_digest(parts(OUTPUTS.dedup / "manifest", MANIFEST), shards)
    store = TrackingParams(uri=f"sqlite:///{checkout}/mlflow.db", experiment="vitrail", system_metrics=False)
    with tracking.run("pretrain", "pretrain tiny", store, {}, {"data_digest": digest}) as run:
        model = run.log_checkpoint("tiny-step9", {"a": 1}, {"data_digest": digest}, step=9)
    with tracking.run("pretrain", "pretrain other", store, {}, {"data_digest": "0" * 64}):
        pass
    for name, card in (("pretrain/tiny", {"preset": "tiny", "data_digest": digest}),
                       ("distill/small", {"preset": "small", "data_digest": "1" * 64, "teacher": "tiny"}),
                       ("pretrain/other", {"preset": "other", "data_digest": "2" * 64})):  # fmt: skip
        (checkout / "data" / name).mkdir(parents=True)
        (checkout / "data" / name / "model.json").write_text(json.dumps(card))
    receipt = take(TakeDownRequest(domain="B.test"), "none", store=store)
    # b.test's own, and a.test's image that a page of b.test names
    gone = [f"{A}/0.png", f"{B}/3.png", f"{B}/5.png", f"{B}/closed.png", f"{B}/copy-of-1.png"]
    assert receipt.keys == sorted(key_of(url) for url in gone)
    assert sorted(urls()) == [f"{A}/1.png", f"{A}/2.png"]
    sound()
    suites()
    decisions = read_table(OUTPUTS.dedup / "decisions", DECISIONS).to_pylist()
    assert [row["representative"] for row in decisions] == ["", key_of(f"{A}/2.png")]  # the kept one went
    assert [row["component"] for row in decisions] == [0, 1]
    assert pq.read_table(OUTPUTS.dedup / "edges/edges-0-4.parquet").num_rows == 0
    assert receipt.manifests == ["data/dedup/manifest: 3 of them"]
    held = {one["out"]: (one["where"], one["held"]) for one in receipt.versions}
    commit = subprocess.run(["git", "log", "--format=%h"], cwd=checkout, capture_output=True, text=True, check=True)
    assert held == {"data/curate": ([commit.stdout.strip()], 3), "data/dedup": ([commit.stdout.strip()], 3)}
    assert [(one["run_id"], one["models"]) for one in receipt.runs] == [
        (run.id, (f"tiny-step9 ({run.stored(model)})",))
    ]
    assert receipt.models == [("data/distill/small", "its teacher tiny was"), ("data/pretrain/tiny", "trained on it")]
    assert ("domain", "b.test") in entries(OUTPUTS.block)
    words = told(receipt, OUTPUTS.curated, OUTPUTS.block, False)
    assert f"run pretrain tiny ({run.id}, FINISHED)" in words
    assert "dvc gc --workspace" in words


def test_the_component_goes_too_when_asked(checkout: Path) -> None:
    receipt = take(TakeDownRequest(key=key_of(f"{A}/1.png")), "dedup")
    assert receipt.keys == sorted(key_of(url) for url in (f"{A}/0.png", f"{A}/1.png", f"{B}/copy-of-1.png"))
    sound()


def test_killed_between_the_two_outputs_the_same_command_finishes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.provenance import take_down as module

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "_forget_in_curated", killed)
        with pytest.raises(KeyboardInterrupt):
            take(TakeDownRequest(url=f"{A}/2.png"))
    manifest = read_table(OUTPUTS.dedup / "manifest", MANIFEST)["key"].to_pylist()
    assert key_of(f"{A}/2.png") not in manifest
    take(TakeDownRequest(url=f"{A}/2.png"))
    assert f"{A}/2.png" not in urls()
    sound()


def test_the_command(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--storage", str(ROOT / "params/storage.yaml"), "--block", "forgotten.txt"]
    assert main(["trace", f"{A}/2.png", *files]) == 0
    assert "data/dedup/manifest" in capsys.readouterr().out
    tracked = ["--tracking", str(ROOT / "params/tracking.yaml"), "--report", "receipt.json"]
    assert main(["forget", "--key", key_of(f"{A}/2.png"), *files, *tracked]) == 0
    out = capsys.readouterr().out
    assert out.startswith("1 images, 1 of them in shards")
    assert json.loads(Path("receipt.json").read_text())["keys"] == [key_of(f"{A}/2.png")]
    for bad in ("", "http://a.test/", "a b"):
        with pytest.raises(VitrailError, match="a host or domain name"):
            take(TakeDownRequest(domain=bad or "."))


def test_erased_members_leave_a_tar_that_every_reader_opens(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with ShardWriter(store, "s", 1 << 20) as writer:
        places = [writer.add(f"k{n}", "png", bytes([n]) * size) for n, size in enumerate((50, 700, 1024, 33))]
    path = tmp_path / "s-00.tar"
    size = path.stat().st_size
    whole = path.read_bytes()
    for gone in ([3], [2, 3], [0, 1, 2, 3]):
        path.write_bytes(whole)
        for one in gone:  # one after the other: what stands before zeros now must be zeros, too
            erase(path, [(places[one].offset, places[one].length)])
        with tarfile.open(path) as tar:
            assert tar.getnames() == [f"k{n}.png" for n in range(4) if n not in gone]
    path.write_bytes(whole)
    for _ in range(2):
        erase(path, [(place.offset, place.length) for place in (places[0], places[2])])
        assert path.stat().st_size == size
        with tarfile.open(path) as tar:
            assert tar.getnames() == ["k1.png", "k3.png"]
        with tarfile.open(path, "r|") as tar:
            assert [tar.extractfile(member).read() for member in tar] == [b"\1" * 700, b"\3" * 33]  # type: ignore[union-attr]
        assert store.read(places[1].shard, places[1].offset, 700) == b"\1" * 700
        assert b"\2" * 4 not in path.read_bytes()
    if shutil.which("tar"):
        listed = subprocess.run(["tar", "-tf", path], capture_output=True, text=True, check=True)
        assert listed.stdout.split() == ["k1.png", "k3.png"]


def test_the_block_list(tmp_path: Path) -> None:
    path = tmp_path / "forgotten.txt"
    assert remember(path, [("domain", "b.test"), ("key", "0" * 20)], "first") == 2
    assert remember(path, [("key", "0" * 20), ("sha256", "1" * 64)], "second") == 1
    taken = Forgotten.read([path])
    assert (taken.domains, taken.keys, taken.digests) == ({"b.test"}, {"0" * 20}, {"1" * 64})
    assert taken.holds("http://x.B.test:80/a")
    assert not taken.holds("http://notb.test/a")
    path.write_text("key 12\n")
    with pytest.raises(VitrailError, match=r"line 1: 'key 12' is not"):
        entries(path)
    with pytest.raises(VitrailError, match="no such list"):
        Forgotten.read([tmp_path / "none"])
    assert Forgotten.read([ROOT / "params/policy/forgotten.txt"]) == Forgotten()


@pytest.mark.parametrize("out", ["curate", "dedup"])
def test_a_file_that_no_stage_declares_stops_a_take_down_before_it_begins(checkout: Path, out: str) -> None:
    np.save(checkout / "data" / out / "norms.npy", np.arange(3))
    before = {path: path.read_bytes() for path in checkout.rglob("*") if path.is_file() and "data" in path.parts}
    with pytest.raises(VitrailError, match=rf"data/{out}/norms\.npy: no stage declares this file"):
        take(TakeDownRequest(url=f"{A}/0.png"))
    assert {path: path.read_bytes() for path in before} == before
    assert not OUTPUTS.block.exists()
