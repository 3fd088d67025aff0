"""Pictures, a benchmark, and the stage without MLflow and Great Expectations."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from components.dedup import stage
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.decode import encode_jpeg
from components.params import parse_params
from components.tracking import Run
from tests.components.dedup.dedup_pool import Recorder, picture


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """30 pictures that the benchmark trains on or not, crops and re-encodings of some, copies of held-out ones."""
    made = {f"plain{i:02d}": encode_jpeg(picture(i), 90) for i in range(30)}
    made |= {f"jpeg{i:02d}": encode_jpeg(picture(i), 40) for i in range(4)}
    made |= {f"crop{i:02d}": encode_jpeg(picture(i)[8:88, 8:88], 85) for i in range(4, 8)}
    made |= {f"test{i:02d}": encode_jpeg(picture(i), 60) for i in range(100, 104)}
    made |= {"again100": encode_jpeg(picture(100), 50)}
    return made


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory: pytest.TempPathFactory) -> BenchmarksFile:
    path = tmp_path_factory.mktemp("benchmark") / "labelled.parquet"
    numbers = [*range(30), *range(100, 110)]
    table = {
        "image": [encode_jpeg(picture(i), 95) for i in numbers],
        "kind": [i % 2 for i in numbers],
        "split": ["test" if i >= 100 else "train" for i in numbers],
    }
    pq.write_table(pa.table(table), path)
    content = {"mine": {"kind": "parquet", "path": str(path), "labels": ["kind"]}}
    return parse_params(content, BenchmarksFile, "test")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    made = Recorder()

    @contextlib.contextmanager
    def here(*_: object, **__: object) -> Iterator[Run]:
        yield made

    monkeypatch.setattr(stage, "tracked", here)
    return made


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Great Expectations."""

    def look_away(*given: Any) -> None:
        *_, suite, out = given
        (out / suite.table).mkdir(parents=True, exist_ok=True)

    monkeypatch.setattr("components.quality.validate", look_away)
    monkeypatch.setattr("components.quality.validate_files", look_away)
