"""A pool as curation leaves it, parameters for it, and the stage run on it."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from components.context import StageContext
from components.dedup import stage
from components.dedup.params import DedupParams
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.shards import Shards
from components.params import load_params, parse_params
from components.storage import StorageParams
from components.tables.parts import write_table
from components.tables.schemas import INDEX
from components.tracking import Run, TrackingParams

ROOT = Path(__file__).resolve().parents[3]
STORAGE = StorageParams(root="data")
TRACKING = TrackingParams(uri="sqlite:///unused.db", experiment="t", system_metrics=False)


def picture(seed: int, side: int = 96) -> np.ndarray:
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (10, 10, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def curate(folder: Path, pictures: dict[str, bytes]) -> Path:
    """A curated set of ``pictures`` by name, as the curate stage leaves it."""
    (folder / "shards").mkdir(parents=True)
    shard = folder / "shards" / "0.tar"
    rows = []
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in pictures.items():
            info = tarfile.TarInfo(f"{name}.jpg")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with tarfile.open(shard) as tar:
        for member in tar.getmembers():
            name = member.name.removesuffix(".jpg")
            data = pictures[name]
            digest = hashlib.sha256(data).hexdigest()
            row: dict[str, object] = dict.fromkeys(INDEX.names, "")
            row |= {
                "key": hashlib.sha256(name.encode()).hexdigest()[:20],
                "url": f"http://site.test/{name}.jpg",
                "page": f"http://site.test/{name}.html",
                "alt": f"a \x1b[31m{name}",
                "source": "crawl.warc.gz",
                "status": "kept",
                "sha256": digest,
                "stored_sha256": digest,
                "width": 80 if name.startswith("crop") else 96,
                "height": 80 if name.startswith("crop") else 96,
                "faces": 0,
                "nsfw": 0.0,
                "face_boxes": [],
                "shard": "0.tar",
                "offset": member.offset_data,
                "length": member.size,
                "source_offset": 7000 + len(rows),
            }
            rows.append(row)
    write_table(folder / "index", rows, INDEX)
    Shards("", {"0.tar": {"sha256": "", "bytes": shard.stat().st_size}}).save(folder)
    return folder


def params(**changes: object) -> DedupParams:
    content = load_params(ROOT / "params/dedup.yaml", DedupParams).model_dump()
    content["calibration"] |= {"benchmark": "mine", "copies": 10, "apart": 0, "least": 0.75}
    content["retrieval"]["queries"] = ["mine"]
    content["retrieval"]["how"]["k"] = 1
    content["windows"] = [[0.85, 3]]
    content["chunk"] = 16
    content["executor"]["workers"] = 0  # the demo has two
    return parse_params(content | changes, DedupParams, "test")


class Recorder(Run):
    """Remembers what was logged."""

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self.images: list[str] = []
        self.artifacts: list[str] = []

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.metrics |= metrics

    def log_image(self, image: np.ndarray, key: str, step: int = 0) -> None:
        assert image.dtype == np.uint8
        self.images.append(key)

    def log_artifacts(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.artifacts.append(f"{folder}/{path.name}")


def only(monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Let Great Expectations look at one table only: each suite takes it about a second."""
    from components import quality

    honest, on_disk = quality.validate, quality.validate_files
    monkeypatch.setattr(quality, "validate", lambda t, suite, out: suite.table == table and honest(t, suite, out))
    monkeypatch.setattr(
        quality,
        "validate_files",
        lambda c, files, suite, out: suite.table == table and on_disk(c, files, suite, out),
    )


def run(folder: Path, curated: Path, benchmarks: BenchmarksFile, given: DedupParams) -> dict[str, object]:
    context = StageContext(STORAGE, TRACKING, folder / "report.json")
    return stage.run(given, stage.DedupInputs(curated, benchmarks), folder / "dedup", context)


def plain(**changes: object) -> DedupParams:
    """No network, no windows, thresholds given, nothing retrieved: what is left is the stage's own doing."""
    content = params(descriptor={"kind": "thumbnail"}, calibration=None, retrieval=None, windows=[]).model_dump()
    content["graph"] |= {"threshold": 0.9} | changes.pop("graph", {})  # type: ignore[operator]
    content["relative"] |= {"threshold": 0.9} | changes.pop("relative", {})  # type: ignore[operator]
    return parse_params(content | changes, DedupParams, "test")
