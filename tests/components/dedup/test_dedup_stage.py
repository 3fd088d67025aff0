from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from components.dedup import keep
from components.dedup.copy_graph.edges import EdgeParts
from components.dedup.decisions.decide import HELD_OUT, SELF_DUPLICATE
from components.dedup.decisions.files import ColumnWriter, JoinFiles
from components.dedup.pages.review import Reviewed, write_review
from components.dedup.params import DedupParams
from components.dedup.pool.extract import describe_pictures
from components.dedup.pool.images import Pool
from components.dedup.revisit import ReviewPage, revisit
from components.dedup.run import main
from components.dedup.search import nearest, search
from components.descriptors.kinds import load_descriptor
from components.descriptors.views import WHOLE, Views
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.decode import encode_jpeg
from components.params import load_params, parse_params
from components.tables.database import MemoryParams, database
from components.tables.parts import read_table, write_table
from components.tables.schemas import DECISIONS, INDEX, KEYS, MANIFEST
from tests.components.dedup.dedup_pool import ROOT, STORAGE, Recorder, curate, only, params, picture, plain, run

pytestmark = pytest.mark.usefixtures("recorder")


def test_planted_copies_end_where_they_should(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, recorder: Recorder
) -> None:
    curated = curate(tmp_path / "curate", pictures)
    report = run(tmp_path, curated, benchmarks, params())
    out = tmp_path / "dedup"
    index = read_table(curated / "index", INDEX)
    names = dict(zip(index["key"].to_pylist(), index["url"].to_pylist(), strict=True))
    decided = {names[r["key"]][17:-4]: r for r in read_table(out / "decisions", DECISIONS).to_pylist()}
    assert set(decided) == set(pictures)
    for i in range(100, 104):
        assert decided[f"test{i}"]["reason"] == HELD_OUT
        assert decided[f"test{i}"]["match"] == f"mine/{i - 70:05d}"
    for i in range(4, 8):  # the larger, uncropped one is kept
        assert decided[f"crop{i:02d}"]["reason"] == SELF_DUPLICATE
        assert names[decided[f"crop{i:02d}"]["match"]] == f"http://site.test/plain{i:02d}.jpg"
    for i in range(4):
        assert {decided[f"jpeg{i:02d}"]["status"], decided[f"plain{i:02d}"]["status"]} == {"selected", "dropped"}
    for i in range(4):  # and the less compressed one
        assert decided[f"plain{i:02d}"]["status"] == "selected"
    # What is shown is the cosine that decided: over the threshold, and of the views that are named.
    force = json.loads((out / "thresholds.json").read_text())
    keys = index["key"].to_pylist()
    for row in decided.values():
        if row["reason"] == SELF_DUPLICATE or (row["reason"] == HELD_OUT and "/" not in row["match"]):
            assert row["similarity"] > force["self"]
            rows = np.load(out / "descriptors.npy")[[keys.index(row["key"]), keys.index(row["match"])]]
            own, other = rows[0, row["view"]].astype(np.float32), rows[1, row["match_view"]].astype(np.float32)
            assert row["similarity"] == pytest.approx(float(own @ other), abs=1e-5)
        elif row["reason"] == HELD_OUT:
            assert row["similarity"] > force["relative"]
    assert any(row["view"] > 0 or row["match_view"] > 0 for row in decided.values())
    manifest = read_table(out / "manifest", MANIFEST)
    assert len(manifest) == 30 == report["selected"]
    assert set(manifest["reason"].to_pylist()) == {"retrieved:mine"}
    rows = np.load(out / "descriptors.npy")
    assert rows.dtype == np.float16
    assert read_table(out / "keys", KEYS)["key"].to_pylist() == index["key"].to_pylist()
    calibration = json.loads((out / "calibration.json").read_text())
    assert calibration["self"]["recall"]["exact"] == 1.0
    assert (out / "calibration.png").stat().st_size > 5000
    assert (tmp_path / "gx/dedup/manifest/index.html").is_file()
    assert not list(tmp_path.glob(".dedup.*"))

    sources = json.loads((out / "sources.json").read_text())
    assert [(line["name"], line["queries"], line["selected"]) for line in sources] == [("mine", 30, 30)]
    assert sum(block.a.size for block in EdgeParts.of(out / "edges")) >= 12  # the planted pairs

    numbers = {"dedup.images": len(pictures), "dedup.held_out_images": 10.0, "dedup.self-duplicate": 8.0}
    assert numbers.items() <= recorder.metrics.items()
    assert recorder.images == ["calibration", "duplicates", "held-out"]
    assert {"dedup/review.html", "dedup/duplicates.jpg", "dedup/held-out.jpg", "dedup/calibration.png", "gx/dedup"} <= {
        *recorder.artifacts
    }

    _, thresholds, groups, caught, retrieved = (out / "review.html").read_text().split("<h2>")
    assert thresholds.count("<td class=in-force>") == 5
    pair = next(group for group in groups.split("<div class=group>") if "/crop04.jpg" in group)
    assert pair.index("/plain04.jpg") < pair.index("/crop04.jpg")  # the kept one first
    assert "Dropped whole" not in pair
    whole = next(group for group in groups.split("<div class=group>") if "/again100.jpg" in group)
    assert "Dropped whole" in whole
    assert "/test100.jpg" in whole
    for i in range(100, 104):
        assert re.search(rf"<div class=group>(?:(?!<div).)*/test{i}.jpg(?:(?!<div).)*mine/{i - 70:05d}", caught)
    assert "/plain" not in caught
    assert retrieved.count("<div class=group>") == 24
    assert retrieved.count("<img") == 48
    assert "mine/00009" in retrieved or "mine/00010" in retrieved
    words = revisit(curated, out, benchmarks, STORAGE, ReviewPage(tmp_path / "again.html", [0.6, 0.99], 3))
    assert "0.600" in words
    assert (tmp_path / "again.csv").read_text().count("\n") == 3
    assert "src=http" not in (tmp_path / "again.html").read_text().replace('"', "")  # nothing is loaded from elsewhere
    with pytest.raises(VitrailError, match=r"only edges over .* were kept"):
        revisit(curated, out, benchmarks, STORAGE, ReviewPage(tmp_path / "low.html", [0.1], 3))
    assert not (tmp_path / "low.html").exists()

    (tmp_path / "ask.jpg").write_bytes(pictures["jpeg02"])
    lines = search(tmp_path / "ask.jpg", curated, out, 3, STORAGE).splitlines()
    assert len(lines) == 4
    assert "jpeg02.jpg" in lines[1] + lines[2]
    assert "yes" in lines[1]
    (tmp_path / "ask.jpg").write_bytes(b"text")
    with pytest.raises(VitrailError, match="not a readable picture"):
        search(tmp_path / "ask.jpg", curated, out, 3, STORAGE)
    other = curate(tmp_path / "other", {"plain00": pictures["plain00"]})
    (tmp_path / "ask.jpg").write_bytes(pictures["plain00"])
    with pytest.raises(VitrailError, match="another pool"):
        search(tmp_path / "ask.jpg", other, out, 3, STORAGE)


def test_search_finds_crops_as_the_copy_graph_does_with_an_index_and_without(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, unchecked: None
) -> None:
    made = {f"plain{i:02d}": encode_jpeg(picture(i), 90) for i in range(200, 264)}
    made |= {"crop299": encode_jpeg(picture(299)[8:88, 8:88], 85)}
    curated = curate(tmp_path / "curate", made)
    # Lists, so that an index is built of 65 images with 10 windows each; exact in its candidates all the same.
    near = {"flat_up_to": 100, "factory": "IVF4,PQ16x4", "nprobe": 4, "candidates": 8}
    given = plain(windows=[[0.85, 3]], neighbours=near, graph={"threshold": 0.7})
    run(tmp_path, curated, BenchmarksFile(benchmarks={}), given)
    out = tmp_path / "dedup"
    rows = np.load(out / "descriptors.npy")
    assert rows.shape[:2] == (65, 10)
    assert (out / "index/merged/lists.faiss").exists()
    asked = {"part.png": picture(207)[8:88, 8:88], "larger.png": picture(299), "new.png": picture(777)}
    first = {}
    for name, pixels in asked.items():
        (tmp_path / name).write_bytes(encode_jpeg(pixels, 95))
        first[name] = search(tmp_path / name, curated, out, 3, STORAGE)
    lines = {name: text.splitlines() for name, text in first.items()}
    assert lines["part.png"][0].split() == ["cosine", "copy", "decision", "key", "url", "page", "alt", "source"]
    key = hashlib.sha256(b"plain207").hexdigest()[:20]
    urls = ["http://site.test/plain207.jpg", "http://site.test/plain207.html"]
    # The crop is found by a window of the pool's image, the larger picture by a window of its own.
    best = lines["part.png"][1].split()
    assert best[1:6] == ["yes", "pool", key, *urls]
    assert lines["part.png"][1].endswith(f'"a \\u001b[31mplain207"  crawl.warc.gz at {7000 + 7}')
    assert "\x1b" not in first["part.png"]  # nothing from the crawl that a terminal would obey
    assert " yes " in lines["larger.png"][1]
    assert "crop299.jpg" in lines["larger.png"][1]
    assert [" no " in line for line in lines["new.png"][1:]] == [True] * 3
    # Whole images alone would have missed both.
    descriptor = load_descriptor(given.descriptor, out / "descriptor.safetensors", STORAGE)
    for name in ("part.png", "larger.png"):
        query = describe_pictures(descriptor, [asked[name]])[0]
        score, _ = nearest(rows[:, :1], query, 1, np.arange(65))
        assert score[0] < 0.7 < float(lines[name][1].split()[0])
    shutil.rmtree(out / "index")
    for name in asked:
        assert search(tmp_path / name, curated, out, 3, STORAGE).splitlines()[:2] == lines[name][:2]
    np.save(out / "descriptors.npy", rows[:-1])
    with pytest.raises(VitrailError, match=r"descriptors \[64, 10, 64\] do not match 65 images"):
        search(tmp_path / "part.png", curated, out, 3, STORAGE)


def test_the_sweep_at_the_thresholds_in_force_is_the_run(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, unchecked: None
) -> None:
    begin, end = picture(800).astype(float), picture(801).astype(float)
    chain = {f"chain{i:02d}": (begin * (1 - i / 12) + end * i / 12).astype(np.uint8) for i in range(13)}
    near = {f"near{i}": (picture(100 + i) * 0.6 + picture(810 + i) * 0.4).astype(np.uint8) for i in range(8)}
    made = {name: encode_jpeg(pixels, 95) for name, pixels in (chain | near).items()}
    curated = curate(tmp_path / "curate", pictures | made)
    graph = {"threshold": 0.87654321, "giants": {"over": 5, "step": 0.01, "ceiling": 0.999}, "edges_from": 0.5}
    at = 0.6
    for _ in range(2):
        relative = {"threshold": at, "within": "relative"}
        report = run(tmp_path, curated, benchmarks, plain(graph=graph, relative=relative))
        out = tmp_path / "dedup"
        revisit(curated, out, benchmarks, STORAGE, ReviewPage(tmp_path / "page.html", None, 2))
        with open(tmp_path / "page.csv") as file:
            rows = {float(row["threshold"]): row for row in csv.DictReader(file)}
        of_self, of_relative = rows[0.87654321], rows[at]
        assert len(report["giants"]) == 1  # type: ignore[arg-type]
        assert report["largest_component"] <= 5  # type: ignore[operator]
        assert int(of_self["duplicates"]) == report["images"] - report["components"]  # type: ignore[operator]
        assert int(of_self["largest"]) == report["largest_component"]
        decided = read_table(out / "decisions", DECISIONS)
        held_out = sum(match.startswith("mine/") for match in decided["match"].to_pylist())
        assert int(of_relative["held_out"]) == held_out > 5
        assert int(of_relative["dropped_with_them"]) == report["reasons"]["held-out"]  # type: ignore[index]
        # Again, at a threshold so close below an image's cosine that half precision would put it on the other side.
        cosine = np.load(out / "to-held-out.npy")
        assert cosine.dtype == np.float32
        close = cosine[(cosine > 0.5) & (cosine.astype(np.float16) < cosine - 2e-5)]
        at = float(close.min()) - 1e-5


def test_mirrored_copies_are_found_where_views_flip_says_so(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, unchecked: None
) -> None:
    made = {name: pictures[name] for name in ("plain00", "plain01", "plain02")}
    made |= {"mirror00": encode_jpeg(picture(0)[:, ::-1], 60), "mirror100": encode_jpeg(picture(100)[:, ::-1], 90)}
    curated = curate(tmp_path / "curate", made)
    reasons = {}
    for flip in (True, False):
        run(tmp_path, curated, benchmarks, plain(views={"flip": flip}))
        decided = read_table(tmp_path / "dedup/decisions", DECISIONS).to_pylist()
        reasons[flip] = [row["reason"] for row in decided]
        if flip:
            views = Views((), flip=True)
            assert {views.name(decided[3]["view"]), views.name(decided[3]["match_view"])} == {"whole", "mirrored"}
    assert reasons[True] == ["pool"] * 3 + [SELF_DUPLICATE, HELD_OUT]
    assert reasons[False] == ["pool"] * 5


def test_two_processes_decide_as_one(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, unchecked: None
) -> None:
    curated = curate(tmp_path / "curate", pictures)
    found = []
    for workers in (0, 2):
        # And the components' table in a file is the one in memory.
        graph = {"labels_on_disk_from": 10 if workers else 1000}
        given = plain(windows=[[0.85, 2]], executor={"workers": workers}, graph=graph)
        run(tmp_path, curated, benchmarks, given)
        decisions = read_table(tmp_path / "dedup/decisions", DECISIONS)
        found.append((decisions, np.load(tmp_path / "dedup/descriptors.npy")))
    (one, rows), (two, same) = found
    assert one.drop_columns(["similarity"]).equals(two.drop_columns(["similarity"]))
    # A product's last bit depends on the number of threads, of which workers have one; half floats hold 11 bits.
    np.testing.assert_allclose(rows.astype(float), same.astype(float), rtol=0, atol=2**-11)
    np.testing.assert_allclose(one["similarity"].to_numpy(), two["similarity"].to_numpy(), rtol=0, atol=1e-3)
    assert len(set(one["component"].to_pylist())) < len(pictures)


def test_an_even_sample_instead_of_queries(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile
) -> None:
    curated = curate(tmp_path / "curate", pictures | {"<b>&bold": encode_jpeg(picture(900), 90)})
    level = {"clusters": 5, "resampling": 1, "points": 2}
    given = params(retrieval=None, balance={"images": 7, "levels": [level]}, windows=[])
    content = given.model_dump(mode="json")
    content["graph"]["keep"] = "sharpest"
    report = run(tmp_path, curated, benchmarks, parse_params(content, DedupParams, "test"))
    assert report["selected"] == 7
    assert report["reasons"]["balanced"] == 7  # type: ignore[index]
    assert report["reasons"]["not-sampled"] > 0  # type: ignore[index]
    assert json.loads((tmp_path / "dedup/sources.json").read_text()) == []
    with pytest.raises(VitrailError, match="set one of them to null"):
        run(tmp_path, curated, benchmarks, params(balance={"images": 7, "levels": [level]}))


def test_names_from_the_crawl_are_escaped_in_the_page(tmp_path: Path, pictures: dict[str, bytes]) -> None:
    curated = curate(tmp_path / "curate", {"<script>x": pictures["plain00"], "b": pictures["plain01"]})
    decisions = [
        {"key": key, "status": "selected", "component": 0, "representative": key, "reason": "pool", "match": ""}
        | {"similarity": 1.0, "view": 0, "match_view": 0}
        for key in read_table(curated / "index", INDEX)["key"].to_pylist()
    ]
    write_table(tmp_path / "decisions", decisions, DECISIONS)
    reviewed = Reviewed(curated, STORAGE, tmp_path / "decisions", {}, WHOLE)
    with database(MemoryParams(), tmp_path) as connection:
        write_review(connection, tmp_path / "p.html", reviewed, [], (0.6, 0.5), 3)
    page = (tmp_path / "p.html").read_text()
    assert "&lt;script&gt;x.jpg" in page
    assert "<script" not in page


def test_what_is_kept_of_a_component(tmp_path: Path) -> None:
    import cv2

    sharp = np.random.default_rng(1).integers(0, 256, (96, 96, 3)).astype(np.uint8)
    soft = np.asarray(cv2.GaussianBlur(sharp, (0, 0), 2), np.uint8)
    made = {"soft": encode_jpeg(soft, 95), "sharp": encode_jpeg(sharp, 95), "crop": encode_jpeg(soft[:80, :80], 95)}
    curated = curate(tmp_path / "c", made | {"alone": b"-"})  # what competes with nothing is not even read
    index = read_table(curated / "index", INDEX)
    sources = {"source": pa.array(["b", "a", "a", "a"]), "source_offset": pa.array([0, 7, 3, 1])}
    for name, column in sources.items():
        index = index.set_column(index.schema.get_field_index(name), name, column)
    write_table(curated / "index", index, INDEX)
    pool, files = Pool.load(curated, STORAGE), JoinFiles(tmp_path / "joins")
    files.folder.mkdir()
    pool.write_rows(files.rows)
    smallest = min(range(2), key=lambda row: index["stored_sha256"][row].as_py())
    for rows, name, kept in (
        ([0, 1, 2], "quality", 1),
        ([0, 1, 2], "sharpest", 1),
        ([0, 1, 2], "largest", smallest),  # of equal ones by the hash
        ([0, 1, 2], "oldest", 2),
    ):
        with ColumnWriter(files.members) as writer:
            writer.write(row=np.array(rows), component=np.zeros(len(rows), np.int64))
        given = plain(graph={"keep": name}, chunk=2)
        keep.measure(given, pool, files)
        with database(MemoryParams(), tmp_path) as connection:
            ((components, best),) = keep.best(given.graph.keep, connection, files)
        assert (components.tolist(), best.tolist()) == ([0], [kept]), name
    with ColumnWriter(files.members) as writer:
        writer.write(row=np.array([0, 3]), component=np.zeros(2, np.int64))
    with pytest.raises(VitrailError, match=r"0.tar at \d+: index and shards do not match: no image for key"):
        keep.measure(plain(graph={"keep": "sharpest"}), pool, files)


def test_all_alike_is_one_component_of_which_one_is_kept_or_is_refused(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "components")
    alike = curate(tmp_path / "alike", {f"other{i:02d}": encode_jpeg(picture(900), 90) for i in range(70)})
    report = run(tmp_path, alike, benchmarks, plain())
    assert (report["components"], report["largest_component"], report["selected"]) == (1, 70, 1)
    assert report["reasons"] == {"pool": 1, "self-duplicate": 69}
    shutil.rmtree(tmp_path / "dedup")
    with pytest.raises(VitrailError, match=r"one component holds 70 of 70 images \(100%.*raise graph.threshold"):
        run(tmp_path, alike, benchmarks, plain(graph={"largest_least": 69}))
    assert not (tmp_path / "dedup").exists()
    broken = json.loads((tmp_path / "gx/dedup/components/result.json").read_text())  # the page of the very case
    assert not broken["success"]
    run(tmp_path, alike, benchmarks, plain(graph={"largest_least": 69, "largest_share": 1.0}))


def test_one_image_and_no_benchmark(
    tmp_path: Path, pictures: dict[str, bytes], unchecked: None, capsys: pytest.CaptureFixture[str]
) -> None:
    one = curate(tmp_path / "one", {"plain00": pictures["plain00"]})
    none = BenchmarksFile(benchmarks={})
    report = run(tmp_path, one, none, plain())
    assert report["reasons"] == {"pool": 1}
    assert report["held_out_images"] == 0
    said = capsys.readouterr().out
    assert "no labelled images in params/benchmarks.yaml: nothing is held out of training" in said
    assert "no labels to calibrate with" in said
    assert "no queries (retrieval: null): every image that is no copy is kept" in said
    assert np.load(tmp_path / "dedup/to-held-out.npy").tolist() == [-np.inf]
    with pytest.raises(VitrailError, match=r"'mine', not in benchmarks.yaml; without benchmarks set calibration and"):
        run(tmp_path, one, none, params())


def test_the_shipped_parameters_load_and_a_typo_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert load_params(ROOT / "params/dedup.yaml", DedupParams).descriptor.kind == "discriminant"
    with pytest.raises(VitrailError, match="did you mean 'threshold'"):
        load_params(ROOT / "params/dedup.yaml", DedupParams, ["graph.treshold=0.6"])
    assert main(["run"]) == 2
    assert "--params" in capsys.readouterr().err
