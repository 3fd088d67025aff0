"""The stage with the paper's choices: against all, within relative, clusters, as is, another embedding, queries."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dedup.copy_graph.calibrate import CalibrationParams
from components.dedup.params import DedupParams
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.decode import encode_jpeg
from components.params import load_params, parse_params
from components.tables.parts import read_table, write_table
from components.tables.schemas import DECISIONS, INDEX, MANIFEST
from components.tracking import Run
from tests.components.dedup.dedup_pool import curate, picture, run

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.dedup.stage.tracked", lambda *_, **__: contextlib.nullcontext(Run()))


def test_the_papers_values_are_one_preset() -> None:
    lvd = load_params(ROOT / "params/dedup_lvd.yaml", DedupParams)
    assert (lvd.graph.k, lvd.graph.threshold, lvd.relative.threshold) == (64, 0.6, 0.45)
    assert (lvd.relative.against, lvd.relative.within, lvd.calibration) == ("all", "relative", None)
    assert lvd.retrieval is not None
    assert lvd.retrieval.how.model_dump(include={"clusters", "hits", "per_cluster", "cap"}) == {
        "clusters": 100_000,
        "hits": 3,
        "per_cluster": 10_000,
        "cap": 1_000_000,
    }
    ways = {name: how.k for name, how in lvd.retrieval.per_set.items() if how.kind == "sample"}
    assert ways == {"imagenet22k": 4, "imagenet1k": 32, "gldv2": 4}
    assert len(set(lvd.retrieval.queries)) == len(lvd.retrieval.queries) == 24


@pytest.fixture
def curated(tmp_path: Path) -> Path:
    """40 pictures; of the benchmark's training side 0 to 4, its test side 20 to 24; 30 on are of another source."""
    folder = curate(tmp_path / "curate", {f"p{i:02d}": encode_jpeg(picture(i), 90) for i in range(40)})
    table = read_table(folder / "index", INDEX)
    sources = ["own/a" if int(url[-6:-4]) >= 30 else "crawl/b" for url in table["url"].to_pylist()]
    column = table.schema.get_field_index("source")
    write_table(folder / "index", table.set_column(column, "source", pa.array(sources)), INDEX)
    return folder


@pytest.fixture
def benchmarks(tmp_path: Path) -> BenchmarksFile:
    numbers = [0, 1, 2, 3, 4, 20, 21, 22, 23, 24]
    table = {
        "image": [encode_jpeg(picture(i), 70) for i in numbers],
        "kind": [i % 2 for i in numbers],
        "split": ["test" if i >= 20 else "train" for i in numbers],
    }
    pq.write_table(pa.table(table), tmp_path / "labelled.parquet")
    pq.write_table(pa.table({"image": [encode_jpeg(picture(i), 70) for i in (8, 9, 30)]}), tmp_path / "queries.parquet")
    content = {
        "mine": {"kind": "parquet", "path": str(tmp_path / "labelled.parquet"), "labels": ["kind"]},
        "more": {"kind": "queries", "path": str(tmp_path / "queries.parquet")},
    }
    return parse_params(content, BenchmarksFile, "test")


def params(**retrieval: object) -> DedupParams:
    content = load_params(ROOT / "params/dedup.yaml", DedupParams).model_dump()
    content["descriptor"] = {"kind": "thumbnail", "dim": 24}
    content["graph"] |= {"threshold": 0.8, "edges_from": 0.5}
    content["relative"] = {"threshold": 0.7, "against": "all", "within": "relative"}
    content["retrieval"] |= retrieval
    return parse_params(content | {"calibration": None, "windows": [], "chunk": 64}, DedupParams, "test")


def test_the_papers_choices_together(tmp_path: Path, curated: Path, benchmarks: BenchmarksFile) -> None:
    given = params(
        queries=["mine", "more"],
        how={"kind": "cluster", "clusters": 2, "hits": 3, "per_cluster": 3, "cap": 4},
        per_set={"more": {"kind": "sample", "k": 1}},
        as_is={"own": "own/", "more": "own/"},
        min_similarity=-1.0,
        descriptor={"kind": "thumbnail", "dim": 8},
    )
    run(tmp_path, curated, benchmarks, given)
    urls = dict(zip(*(read_table(curated / "index", INDEX)[c].to_pylist() for c in ("key", "url")), strict=True))
    number = {key: int(url[-6:-4]) for key, url in urls.items()}
    decided = {number[r["key"]]: r for r in read_table(tmp_path / "dedup/decisions", DECISIONS).to_pylist()}
    kept_out = {i for i, row in decided.items() if row["reason"] == "held-out"}
    assert {0, 1, 2, 3, 4, 20, 21, 22, 23, 24} <= kept_out  # both sides of the benchmark; mere queries are not kept out
    assert not kept_out & {8, 9, 30}
    manifest = {number[r["key"]]: r for r in read_table(tmp_path / "dedup/manifest", MANIFEST).to_pylist()}
    own = {i for i in range(30, 40) if i not in kept_out}
    assert own <= set(manifest)
    assert all({"own", "more"} <= set(manifest[i]["sources"]) for i in own)  # "more" as is: two ways, named once
    assert "more" in manifest[8]["sources"]
    assert manifest[8]["reason"].startswith("retrieved:")
    assert decided[30]["reason"] == "retrieved:more"  # found and as is: the query explains it
    assert decided[30]["match"] == "more/00002"
    unfound = [i for i in own if manifest[i]["sources"] == ["own", "more"] or decided[i]["reason"] == "as-is:own"]
    assert unfound
    lines = {line["name"]: line for line in json.loads((tmp_path / "dedup/sources.json").read_text())}
    assert lines["own as is"]["selected"] == len(own)
    for name in ("mine", "more"):
        as_is = own if name == "more" else set()
        brought = {i for i, row in manifest.items() if name in row["sources"]}
        assert lines[name]["selected"] == len(brought - as_is) + (len(brought & as_is) if name == "mine" else 1)


def test_names_that_lead_nowhere_are_told(tmp_path: Path, curated: Path, benchmarks: BenchmarksFile) -> None:
    with pytest.raises(VitrailError, match=r"retrieval\.per_set names 'moer'.*did you mean 'more'"):
        run(tmp_path, curated, benchmarks, params(queries=["more"], per_set={"moer": {"kind": "sample"}}))
    with pytest.raises(VitrailError, match=r"retrieval\.as_is\.x: no image's source begins with 'nowhere'"):
        run(tmp_path, curated, benchmarks, params(queries=["more"], as_is={"x": "nowhere"}))
    calibrated = params(queries=["more"]).model_copy(update={"calibration": CalibrationParams(benchmark="more")})
    with pytest.raises(VitrailError, match=r"calibration\.benchmark 'more' has no labels"):
        run(tmp_path, curated, benchmarks, calibrated)
