"""Revisited retrieval end to end: edited photographs as queries, found by raw pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.benchmark.features.contenders import Contender
from components.benchmark.methods.protocol import load_protocol
from components.benchmark.oxford import NamedPictures, measure_revisited, revisited, table
from components.errors import VitrailError
from components.evaluation.features.extract import raw_pixels
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.revisited_set import GroundTruth
from components.params import parse_params

ROOT = Path(__file__).resolve().parents[3]
NAMES = ["astronaut", "chelsea", "coffee", "rocket"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four photographs, and a darker copy of each as a query with a frame of noise round it."""
    from skimage import data

    folder = tmp_path_factory.mktemp("photographs")
    generator = np.random.default_rng(0)
    for name in NAMES:
        picture = np.asarray(Image.fromarray(getattr(data, name)()).resize((60, 60)))
        Image.fromarray(picture).save(folder / f"{name}.png")
        framed = generator.integers(0, 256, (100, 100, 3)).astype(np.uint8)
        framed[20:80, 20:80] = picture * 0.8
        Image.fromarray(framed).save(folder / f"{name}_query.png")
    return folder


def marks(easy: list[int], hard: list[int]) -> dict[str, np.ndarray]:
    return {name: np.array(rows, int) for name, rows in (("easy", easy), ("hard", hard), ("junk", []))}


def test_darker_copies_are_found_inside_their_boxes(photographs: Path) -> None:
    box = (20.0, 20.0, 80.0, 80.0)
    truth = GroundTruth(NAMES, [f"{name}_query" for name in NAMES], [marks([i], []) for i in range(4)], [box] * 4)
    contender = Contender("raw pixels", "raw", raw_pixels(16), {})
    found = revisited([contender], truth, photographs, 3)
    assert found["raw pixels"]["easy"].map == 1.0
    assert found["raw pixels"]["medium"].precision[1] == 1.0
    assert np.isnan(found["raw pixels"]["hard"].map)
    assert "| raw pixels | 100.0 | 100.0 |" in table(found, "quick v1")
    assert table(found, "quick v1").count("none") == 4


def test_it_is_a_benchmark_by_one_entry_of_the_params(photographs: Path, tmp_path: Path) -> None:
    gnd = [{"bbx": [20, 20, 80, 80], "easy": [i], "hard": [], "junk": []} for i in range(4)]
    content = {"imlist": NAMES, "qimlist": [f"{name}_query" for name in NAMES], "gnd": gnd}
    (tmp_path / "gnd.json").write_text(json.dumps(content))
    entry = {"kind": "revisited", "gnd": str(tmp_path / "gnd.json"), "images": str(photographs)}
    file = parse_params({"roxford5k": entry}, BenchmarksFile, "here")
    assert load_benchmark("roxford5k", file.benchmarks["roxford5k"]).kept_out("test").sum() == 8
    contender = Contender("raw pixels", "raw", raw_pixels(16), {})
    protocol = load_protocol(ROOT / "params", "quick")
    found = measure_revisited([contender], "roxford5k", file.revisited["roxford5k"], protocol)
    figures = {(one.task, one.method): one.value for one in found.figures}
    assert figures["easy", "map"] == figures["medium", "precision1"] == 100.0
    assert not any(task == "hard" for task, _ in figures)
    content["gnd"][0]["bbx"] = [0, 0, 60, 60]
    (tmp_path / "gnd.json").write_text(json.dumps(content))
    assert measure_revisited([contender], "roxford5k", file.revisited["roxford5k"], protocol).digest != found.digest


def test_a_missing_picture_or_an_empty_box_is_named(photographs: Path) -> None:
    with pytest.raises(VitrailError, match="no picture gone"):
        NamedPictures(photographs, ["gone"])
    with pytest.raises(VitrailError, match=r"box .* lies outside"):
        NamedPictures(photographs, ["chelsea"], [(90.0, 90.0, 99.0, 99.0)]).rgb(0)
