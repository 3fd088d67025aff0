"""A batch that few images cannot fill becomes smaller; next to no images are one line, before any training."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from components.errors import VitrailError
from components.params import load_params
from components.tables.parts import write_table
from components.tables.schemas import MANIFEST
from components.training.params import TrainingParams
from components.training.session import fit_batch

ROOT = Path(__file__).resolve().parents[4]
PARAMS = load_params(ROOT / "params/pretrain/vitt.yaml", TrainingParams)


def fitted(folder: Path, images: int, ranks: int = 1, params: TrainingParams = PARAMS) -> TrainingParams:
    nulls = {name: pa.nulls(images, kind) for name, kind in zip(MANIFEST.names, MANIFEST.types, strict=True)}
    write_table(folder / "manifest", pa.table(nulls | {"key": [str(i) for i in range(images)]}), MANIFEST)
    world: Any = SimpleNamespace(size=ranks, main=True)
    return fit_batch(params, folder / "manifest", world)


@pytest.mark.parametrize(
    ("images", "ranks", "batch"), [(64, 1, 64), (5000, 1, 64), (63, 1, 32), (32, 1, 32), (8, 1, 8), (100, 4, 16)]
)
def test_the_batch_is_one_that_the_images_fill(tmp_path: Path, images: int, ranks: int, batch: int) -> None:
    assert fitted(tmp_path, images, ranks).run.batch == batch


def test_another_batch_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, 40)
    assert "40 images, less than a batch of 64: run.batch 32 instead of 64" in capsys.readouterr().out


def test_next_to_no_images_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="7 images, training needs at least 8"):
        fitted(tmp_path, 7)
    with pytest.raises(VitrailError, match="15 images, training needs at least 16"):
        fitted(tmp_path, 15, ranks=2)
