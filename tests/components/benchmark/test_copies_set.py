"""A set of queries, references and a truth is one entry of the parameters; what its truth cannot mean is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.benchmark.copies import measure_copies
from components.benchmark.features.contenders import Contender
from components.benchmark.measured import Setup
from components.benchmark.methods.protocol import load_protocol
from components.benchmark.params import BenchmarkStageParams
from components.errors import VitrailError
from components.evaluation.features.extract import raw_pixels
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.copies_set import load_copies
from components.params import load_params, parse_params

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def file(tmp_path: Path) -> BenchmarksFile:
    """Six references, darker copies of two of them, and a query that is no copy."""
    pixels = np.random.default_rng(0).integers(0, 256, (7, 20, 20, 3)).astype(np.uint8)
    for folder in ("queries", "references"):
        (tmp_path / folder).mkdir()
    for number in range(6):
        Image.fromarray(pixels[number]).save(tmp_path / f"references/R{number}.png")
    for name, picture in (("Q0", pixels[4] * 0.9), ("Q1", pixels[6]), ("Q2", pixels[1] * 0.8)):
        Image.fromarray(picture.astype(np.uint8)).save(tmp_path / f"queries/{name}.png")
    (tmp_path / "truth.csv").write_text("query_id,reference_id\nQ0,R4\nQ1,\nQ2.png,R1.png\n")
    places = {
        "queries": f"{tmp_path}/queries",
        "references": f"{tmp_path}/references",
        "truth": f"{tmp_path}/truth.csv",
    }
    return parse_params({"disc": {"kind": "copies", **places}}, BenchmarksFile, "here")


def test_copies_are_found_and_kept_out_of_training(file: BenchmarksFile, tmp_path: Path) -> None:
    copies = load_copies("disc", file.copies["disc"])
    assert copies.pairs == [(0, 4), (2, 1)]
    assert load_benchmark("disc", file.benchmarks["disc"]).kept_out("test").sum() == 9
    setup = Setup(
        load_params(ROOT / "params/benchmark.yaml", BenchmarkStageParams), load_protocol(ROOT / "params", "quick")
    )
    contender = Contender("raw pixels", "raw", raw_pixels(16), {})
    (figure,) = measure_copies([contender], copies, setup).figures
    assert (figure.metric, figure.value, figure.cases) == ("disc/copies/micro_ap", 100.0, 3)
    (tmp_path / "truth.csv").write_text("Q0,R4\nQ2,R2\n")
    other = load_copies("disc", file.copies["disc"])
    assert other.digest != copies.digest
    assert measure_copies([contender], other, setup).figures[0].value < 100


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("Q0,R9\n", r"line 1: no reference 'R9' in .*references.*R"),
        ("query_id,reference_id\nX,R1\n", r"line 2: no query 'X'"),
        ("Q0,\nQ1\n", "names no pair"),
        ("Q0,R4\nQ0,R4.png\n", "1 pairs are there twice"),
        ("", "names no pair"),
    ],
)
def test_a_truth_that_cannot_be_is_named(file: BenchmarksFile, tmp_path: Path, truth: str, message: str) -> None:
    (tmp_path / "truth.csv").write_text(truth)
    with pytest.raises(VitrailError, match=message):
        load_copies("disc", file.copies["disc"])


def test_what_is_missing_is_named(file: BenchmarksFile, tmp_path: Path) -> None:
    (tmp_path / "truth.csv").unlink()
    with pytest.raises(VitrailError, match=r"truth\.csv: no such file"):
        load_copies("disc", file.copies["disc"])
    for path in (tmp_path / "references").iterdir():
        path.unlink()
    with pytest.raises(VitrailError, match="references: no images there"):
        load_copies("disc", file.copies["disc"])
    (tmp_path / "references").rmdir()
    with pytest.raises(VitrailError, match="references: no such folder"):
        load_copies("disc", file.copies["disc"])
