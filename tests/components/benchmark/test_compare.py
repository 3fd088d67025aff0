"""Runs side by side: a column holds one protocol and one set of images, tests are corrected, the gate names rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from components.benchmark.compare import GateParams, load_results, page, paired_tests, shortfalls
from components.benchmark.outcome import Outcome, outcome_table
from components.benchmark.run import main
from components.errors import VitrailError, run_cli
from components.params import load_params

ROOT = Path(__file__).resolve().parents[3]
ACCURACY = {"a": 0.9, "b": 0.3}


def write(folder: Path, models: dict[str, float], digest: str = "d" * 64, protocol: str = "p" * 64) -> Path:
    folder.mkdir()
    outcomes = {name: {("type", "knn20"): Outcome(np.arange(40) < 40 * share)} for name, share in models.items()}
    scores = [
        {"model": name, "kind": "checkpoint", "benchmark": "cells", "task": "type", "method": "knn20"}
        | {"accuracy": 100 * share, "low": 0.0, "high": 100.0, "protocol": f"quick v1 ({protocol[:8]})"}
        for name, share in models.items()
    ]
    content: dict[str, Any] = {
        "protocol": {"name": "quick", "version": 1, "digest": protocol},
        "benchmarks": {"cells": {"digest": digest}},
        "scores": scores,
    }
    (folder / "scores.json").write_text(json.dumps(content))
    pq.write_table(outcome_table({"cells": outcomes}), folder / "outcomes.parquet")
    return folder


def test_two_runs_in_one_table_with_tests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [write(tmp_path / "x", ACCURACY), write(tmp_path / "y", {"a": 0.9, "<c>": 0.5})]
    found = load_results(folders)
    assert found.models == ["a", "b", f"a ({tmp_path / 'y'})", "<c>"]
    tests = paired_tests(found)
    assert len(tests) == 6
    pair = tests[0]
    assert (pair.ours, pair.theirs, round(pair.difference)) == ("a", "b", 60)
    assert pair.p < pair.corrected < 0.001
    assert tests[1].p == tests[1].corrected == 1.0  # the same model twice
    assert "&lt;c&gt;" in page(found, tests)
    assert "<c>" not in page(found, tests)
    assert main(["compare", *map(str, folders), "--html", str(tmp_path / "page.html")]) == 0
    assert "| b | 30.0 (0.0 to 100.0) |" in capsys.readouterr().out
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")


def test_two_protocols_never_share_a_column(tmp_path: Path) -> None:
    first = write(tmp_path / "x", ACCURACY)
    with pytest.raises(VitrailError, match=r"quick v1 \(pppppppp\).*quick v1 \(qqqqqqqq\).*cannot share a column"):
        load_results([first, write(tmp_path / "y", ACCURACY, protocol="q" * 64)])
    with pytest.raises(VitrailError, match="different images or labels"):
        load_results([first, write(tmp_path / "z", ACCURACY, digest="e" * 64)])
    with pytest.raises(VitrailError, match="no scores of the benchmark stage"):
        load_results([tmp_path / "gone"])


def test_the_gate_fails_with_the_rows_that_fall_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "x", ACCURACY)
    row = {"benchmark": "cells", "task": "type", "method": "knn20", "at_least": 50.0}
    rows = [row, row | {"model": "a", "protocol": "quick v2"}, row | {"model": "gone"}]
    found = shortfalls(load_results([folder]), GateParams(rows=rows))
    assert found == [
        "b, cells/type/knn20: 30.0, at least 50 is asked for",
        "a, cells/type/knn20: measured by quick v1 (pppppppp), not quick v2",
        "gone, cells/type/knn20: nothing was measured; at least 50 is asked for",
    ]
    (tmp_path / "gate.yaml").write_text(yaml.safe_dump({"rows": [row]}))
    assert run_cli(main, ["compare", str(folder), "--gate", str(tmp_path / "gate.yaml")]) == 1
    assert "b, cells/type/knn20: 30.0" in capsys.readouterr().err
    assert shortfalls(load_results([folder]), load_params(ROOT / "params/gate.yaml", GateParams)) == []
