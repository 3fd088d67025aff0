"""Dense quality over training: means by step from what a run's probes left, and what the last checkpoint lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from components.benchmark.pages.training_curves import lost, plain, read_curve, trade_off_table


def write(folder: Path, probes: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "curve.json").write_text(json.dumps({"probes": probes}))
    return folder


def probe(step: int, first: float, second: float, miou: float) -> dict[str, float]:
    name = "probe/elpv"
    return {"step": step, f"{name}/type/knn20": first, f"{name}/defect/knn20": second, f"{name}/type-mosaic/miou": miou,
            f"{name}/type/knn20_raw_pixels": 0.99, f"{name}/type-mosaic/miou_raw_pixels": 0.99}  # fmt: skip


def test_dense_quality_that_decays_while_knn_rises_is_shown(tmp_path: Path) -> None:
    points = read_curve(write(tmp_path, [probe(0, 0.5, 0.3, 0.2), probe(10, 0.6, 0.4, 0.5), probe(20, 0.7, 0.5, 0.4)]))
    assert [(one.step, one.knn, one.miou) for one in points] == [
        (0, pytest.approx(0.4), 0.2),
        (10, pytest.approx(0.5), 0.5),
        (20, pytest.approx(0.6), 0.4),
    ]
    assert lost(points) == pytest.approx(0.2)
    assert "| pretrain vitt | 60.0 (20) | 50.0 (10) | 60.0 | 40.0 | 20.0% |" in trade_off_table(
        {"pretrain vitt": points}
    )
    assert plain({"a": points, "b": []})["a"][1] == {"step": 10, "knn": pytest.approx(0.5), "miou": 0.5}


@pytest.mark.parametrize("probes", [[], [{"step": 1, "probe/elpv/type/knn20": 0.5}], "nothing", None])
def test_a_run_without_both_has_no_row(tmp_path: Path, probes: object) -> None:
    points = read_curve(write(tmp_path, probes))
    assert points == []
    assert trade_off_table({"a": points}) == ""
    assert read_curve(tmp_path / "gone") == []
    assert read_curve("https://x/y.pth#sha256=0") == []
