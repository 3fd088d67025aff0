"""Revisited retrieval end to end: edited photographs as queries, found by raw pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.benchmark.contenders import Contender
from components.benchmark.oxford import NamedPictures, revisited, table
from components.errors import VitrailError
from components.evaluation.features import raw_pixels
from components.evaluation.revisited import GroundTruth

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


def test_a_missing_picture_or_an_empty_box_is_named(photographs: Path) -> None:
    with pytest.raises(VitrailError, match="no picture gone"):
        NamedPictures(photographs, ["gone"])
    with pytest.raises(VitrailError, match=r"box .* lies outside"):
        NamedPictures(photographs, ["chelsea"], [(90.0, 90.0, 99.0, 99.0)]).rgb(0)
