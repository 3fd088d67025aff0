"""Each formula of the plan against arithmetic by hand: a factor of ten wrong must fail."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from components.dedup.params import DedupParams
from components.errors import VitrailError
from components.neighbours import NeighbourParams
from components.params import load_params
from components.planning import dedup_costs as costs
from components.planning.dedup import Workload, join, plan
from components.planning.dedup_costs import Join, Machines
from components.planning.dedup_rates import DedupRates, load_rates, measure
from components.planning.run import main

ROOT = Path(__file__).resolve().parents[3]
RATES = DedupRates(cores=2, gigaflops=100, codes=1e9, rescored=1e6, edges=1e7, megabytes=500, memory=64e9, reads=1e5)
ON = Machines(RATES, 1)
# 10 million descriptors of 512 in 1,000 lists, 100 of them visited, 32 bytes each
JOIN = Join(rows=10**7, queries=10**6, dim=512, lists=1000, probes=100, graph=False, code=32, train=64_000)
EXACT = Join(rows=10**5, queries=10**5, dim=512, lists=0, probes=0, graph=False, code=32, train=0)
GRAPH = Join(**{**JOIN.__dict__, "graph": True})


def test_bytes_by_hand() -> None:
    assert costs.descriptor_bytes(1_300_000_000, 512) == 1.3312e12  # the recipe's 1.33 TB
    assert costs.index_bytes(JOIN) == 400e6  # 32 + 8 bytes each
    assert costs.index_bytes(EXACT) == 204.8e6  # 2,048 bytes each
    assert costs.centre_bytes(JOIN) == 2.048e6
    assert costs.centre_bytes(GRAPH) == 2.32e6
    assert costs.training_bytes(JOIN) == 131.072e6
    assert costs.label_bytes(1_300_000_000) == 20.8e9  # of it 5.2 GB the disjoint set
    assert costs.label_bytes(5_000_000_000) == 160e9
    assert costs.join_disk_bytes(1000) == 132_000
    assert costs.kmeans_bytes(1_000_000, 1000, 512) == 2.048e9 + 2.048e6 + 28e6
    assert costs.edge_bytes(1_000_000) == 48e6


def test_seconds_by_hand() -> None:
    assert costs.product_seconds(10**6, 1000, 512, ON) == pytest.approx(10.24)
    assert costs.product_seconds(10**6, 1000, 512, Machines(RATES, 32)) == pytest.approx(0.32)
    assert costs.kmeans_seconds(64_000, 1000, 512, 10, ON) == pytest.approx(6.5536)
    assert costs.fill_seconds(JOIN, ON) == pytest.approx(102.4 + 1.6)  # 800 MB at 500 a second
    assert costs.fill_seconds(GRAPH, ON) == pytest.approx(5120 + 1.6)  # a walk of 512 centres each
    assert costs.fill_seconds(EXACT, ON) == 0
    assert costs.centres_seconds(JOIN, ON) == pytest.approx(10.24)
    assert costs.centres_seconds(GRAPH, ON) == pytest.approx(10.24)  # 100 lists of 1,000: the product is cheaper
    few = Join(**{**GRAPH.__dict__, "probes": 5})
    assert costs.centres_seconds(few, ON) == pytest.approx(80)  # 16 steps a list, a million a second
    # A million queries look at a million codes each, of two times 16 bytes, a thousand million a second.
    assert costs.codes_seconds(JOIN, ON) == pytest.approx(2000)
    assert costs.codes_seconds(EXACT, ON) == 0
    assert costs.rescore_seconds(JOIN, ON) == pytest.approx(16)  # 10 GB: in memory
    small = Machines(RATES.model_copy(update={"memory": 16e9}), 1)
    assert costs.rescore_seconds(JOIN, small) == pytest.approx(160)  # from disk, 100,000 reads a second
    assert costs.rescore_seconds(EXACT, ON) == 0
    assert costs.search_seconds(EXACT, ON) == pytest.approx(102.4)
    assert costs.search_seconds(JOIN, ON) == pytest.approx(10.24 + 2000 + 16)
    assert costs.build_seconds(JOIN, ON) == pytest.approx(6.5536 + 104)
    assert costs.component_seconds(10**9, Machines(RATES, 99)) == pytest.approx(200)  # one core
    # A million points to 1,000 clusters, 2 iterations and an assignment: 30.72 s; once more on 5,000 points: 0.1024 s
    # and an assignment of 10.24 s; then 1,000 to 10: 0.0003 s.
    levels = [(1000, 1, 5), (10, 0, 1)]
    assert costs.balance_seconds(10**6, levels, 512, 2, ON) == pytest.approx(41.0627, rel=1e-4)
    assert costs.gpus_for(JOIN, 80e9) == 1
    billion = Join(**{**JOIN.__dict__, "rows": 1_300_000_000, "code": 64})  # 93.6 GB and the centres
    assert costs.gpus_for(billion, 80e9) == 2
    assert costs.gpus_for(billion, 32e9) == 4


def test_a_join_is_the_index_that_would_be_built() -> None:
    near = NeighbourParams()
    assert join(50_000, 9, 512, near) == Join(50_000, 9, 512, 0, 0, False, 32, 0)
    found = join(1_000_000, 9, 512, near)
    assert (found.lists, found.train, found.graph) == (1024, 65_536, False)
    assert 95 <= found.probes <= 105
    large = join(20_000_000, 9, 512, near)
    assert (large.lists, large.graph) == (65_536, True)
    assert join(20_000_000, 9, 512, near, gpu=True).graph is False


def test_rates_are_counts_over_seconds() -> None:
    # The clock is read before and after each of five pieces of work; they take 1, 2, 5, 4 and half a second.
    spent = iter(itertools.accumulate([0, 1, 0, 2, 0, 5, 0, 4, 0, 0.5]))
    found = measure(2000, 64, lambda: next(spent))
    assert found.gigaflops == pytest.approx(2 * 2000 * 2000 * 64 / 1e9)
    assert found.rescored == pytest.approx(2000 * (256 - 16) / 3)
    # 2,000 queries look at 2,000 codes each, in 2 seconds less what 16 exact scores each take (0.2 s).
    assert found.codes == pytest.approx(4e6 / 1.8)
    assert found.edges == pytest.approx((1 << 20) / 4)
    assert found.megabytes == pytest.approx(2000 * 64 * 4 / 1e6 / 0.5)
    assert found.memory > 1e9


def test_measured_rates_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("components.planning.dedup_rates.measure", lambda: RATES)
    assert load_rates(tmp_path / "r.json") == RATES
    monkeypatch.setattr("components.planning.dedup_rates.measure", lambda: pytest.fail("measured again"))
    assert load_rates(tmp_path / "r.json") == RATES


def test_the_plan_has_every_step() -> None:
    params = load_params(ROOT / "params/dedup_lvd.yaml", DedupParams)
    text = plan(Workload(1.3e9, 512, 640, 5000), params, RATES)
    for line in (
        "IVF1048576_HNSW32,PQ64x4",
        "expected recall of edges at cosine 0.6",
        "0.950",
        "on GPUs: IVF1048576,PQ32, 2,048 lists",
        "joins (memory.megabytes)",
        "decisions, manifest and their joins",
        "clusters of what survives",
        "relative dedup",
        "retrieval: clusters",
        "search: exact scores",
    ):
        assert line in text
    balanced = load_params(
        ROOT / "params/dedup.yaml",
        DedupParams,
        ["retrieval=null", "balance={images: 10, levels: [{clusters: 100, resampling: 1, points: 5}]}"],
    )
    assert "balancing" in plan(Workload(1e6, 512), balanced, RATES)
    alone = plan(Workload(1e5, 512), load_params(ROOT / "params/dedup_lvd.yaml", DedupParams), RATES)
    assert "index: Flat (exact)" in alone
    with pytest.raises(VitrailError, match="--held-out 0: choose between 1"):
        Workload(1e6, 512, held_out=0)


def test_the_plan_is_counts_times_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rates = {"cores": 2, "gigaflops": 100, "codes": 1e9, "rescored": 1e6, "edges": 1e7, "megabytes": 500}
    (tmp_path / "rates.json").write_text(json.dumps(rates))
    (tmp_path / "params.yaml").write_text((ROOT / "params/dedup.yaml").read_text())
    asked = [
        "dedup",
        "--images",
        "1e6",
        "--params",
        str(tmp_path / "params.yaml"),
        "--rates",
        str(tmp_path / "rates.json"),
    ]
    with_windows = load_params(tmp_path / "params.yaml", DedupParams)
    assert main([*asked, "--images-per-second", "100"]) == 0
    text = capsys.readouterr().out
    each = 1 + sum(side * side for _, side in with_windows.windows) + with_windows.views.flip
    assert f"1,000,000 images, {each}" in text.replace(",000,000 desc", "")
    assert "index: IVF" in text
    assert "2 h 46 min" in text  # a million at a hundred a second
    assert main([*asked, "--images", "1.3e9", "--cores", "64"]) == 0
    assert "IVF1048576_HNSW32" in capsys.readouterr().out
    with pytest.raises(VitrailError, match="choose between 1 and"):
        main([*asked, "--images", "1e12"])
    (tmp_path / "rates.json").write_text("{")
    with pytest.raises(VitrailError, match="not JSON"):
        main(asked)
