"""What stops the dedup stage, and what a run after that finds done."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from components.dedup import described, stage
from components.dedup.decisions import reference
from components.dedup.params import DedupParams
from components.dedup.pool.scratch import described_digest
from components.descriptors.kinds import TrainedParams
from components.descriptors.rows import DescriptorRows
from components.descriptors.sscd import SscdParams
from components.descriptors.views import WHOLE
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.images.decode import encode_jpeg
from components.images.shards import Shards
from components.params import parse_params
from components.tables.parts import write_table
from components.tables.schemas import INDEX
from tests.components.dedup.dedup_pool import STORAGE, curate, only, params, picture, plain, run

pytestmark = pytest.mark.usefixtures("recorder")


def test_bad_input_is_one_line(tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile) -> None:
    given = params()
    with pytest.raises(VitrailError, match="the index is not there"):
        run(tmp_path, tmp_path / "none", benchmarks, given)
    one = curate(tmp_path / "one", {"plain00": pictures["plain00"]})
    with pytest.raises(VitrailError, match=r"1 image\(s\) to learn from"):
        run(tmp_path, one, benchmarks, given)
    Shards("", {}).save(one)
    with pytest.raises(VitrailError, match="index and shards do not match"):
        run(tmp_path, one, benchmarks, given)
    cut = curate(tmp_path / "cut", {"plain00": pictures["plain00"], "plain01": pictures["plain01"]})
    shard = cut / "shards" / "0.tar"
    shard.write_bytes(b"\0" * shard.stat().st_size)
    with pytest.raises(VitrailError, match="do not match: no image for key"):
        run(tmp_path, cut, benchmarks, given)
    empty = tmp_path / "empty"
    empty.mkdir()
    write_table(empty / "index", [], INDEX)
    with pytest.raises(VitrailError, match="no kept image"):
        run(tmp_path, empty, benchmarks, given)
    content = given.model_dump()
    content["retrieval"]["queries"] = ["mime"]
    misspelt = parse_params(content, DedupParams, "test")
    with pytest.raises(VitrailError, match=r"'mime', not in benchmarks.yaml; did you mean 'mine'"):
        run(tmp_path, one, benchmarks, misspelt)
    with pytest.raises(VitrailError, match=r"set graph\.threshold and relative.threshold to auto, or to numbers"):
        run(tmp_path, one, benchmarks, params(calibration=None))
    assert not (tmp_path / "dedup").exists()


def test_descriptors_that_say_nothing_are_named(
    tmp_path: Path, benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    from components.descriptors.kinds import Thumbnail

    curated = curate(tmp_path / "c", {f"plain{i:02d}": encode_jpeg(picture(i), 90) for i in range(20)})
    key = hashlib.sha256(b"plain18").hexdigest()[:20]
    honest = Thumbnail.embed
    for value, words in ((np.nan, "holds NaN or infinity"), (0.0, "is all zeros")):

        def broken(self: Thumbnail, given: list[np.ndarray], value: float = value) -> np.ndarray:
            rows = honest(self, given)
            if len(given) == 4:  # the second chunk
                rows[2] = value
            return rows

        with monkeypatch.context() as patch:
            patch.setattr(Thumbnail, "embed", broken)
            with pytest.raises(VitrailError, match=rf"image {key} \(0.tar at \d+\): its copy descriptor {words}"):
                run(tmp_path, curated, benchmarks, plain())
        assert not (tmp_path / "dedup").exists()
        (work,) = (tmp_path / ".dedup.work").glob("descriptors-*")
        assert len([*work.glob("described-*.txt")]) == 1  # the broken chunk is not taken for a finished one
    with monkeypatch.context() as patch:
        patch.setattr(Thumbnail, "embed", lambda self, given: honest(self, given) * (len(given) != 8))  # the set's last
        shutil.rmtree(tmp_path / ".dedup.work")
        with pytest.raises(VitrailError, match="benchmark image mine/00032: its copy descriptor is all zeros"):
            run(tmp_path, curated, benchmarks, plain())


def test_finished_chunks_are_kept(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    curated = curate(tmp_path / "curate", pictures)

    def stop(*_: object, **__: object) -> None:
        raise VitrailError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr(stage, "thresholds", stop)
        with pytest.raises(VitrailError, match="stopped here"):
            run(tmp_path, curated, benchmarks, params())
    assert not (tmp_path / "dedup").exists()
    shutil.rmtree(curated / "shards")  # nothing needs to be read for descriptors again, only for calibration
    with pytest.raises(VitrailError, match="no such file"):
        run(tmp_path, curated, benchmarks, params())
    chunks = list((tmp_path / ".dedup.work").rglob("described-*.txt"))
    assert len(chunks) == 3


def test_another_threshold_reuses_descriptors_and_edges_and_another_weights_file_nothing(
    tmp_path: Path,
    pictures: dict[str, bytes],
    benchmarks: BenchmarksFile,
    unchecked: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curated = curate(tmp_path / "curate", pictures)
    with monkeypatch.context() as patch:
        patch.setattr(stage, "check_components", lambda *_: (_ for _ in ()).throw(VitrailError("it chains")))
        with pytest.raises(VitrailError, match="it chains"):
            run(tmp_path, curated, benchmarks, plain(graph={"threshold": 0.7}))

    def no_work(*_: object) -> None:
        raise AssertionError("done before")

    work = tmp_path / ".dedup.work"
    with monkeypatch.context() as patch:
        patch.setattr("components.dedup.pool.extract._descriptor_chunk", no_work)
        patch.setattr("components.dedup.copy_graph.search._part", no_work)
        report = run(tmp_path, curated, benchmarks, plain(graph={"threshold": 0.9}))
        assert not work.exists()
    shutil.rmtree(tmp_path / "dedup")
    assert run(tmp_path, curated, benchmarks, plain(graph={"threshold": 0.9}))["reasons"] == report["reasons"]

    images, weights = "digest", tmp_path / "w.safetensors"
    given = parse_params({"kind": "trained", "weights": str(weights)}, TrainedParams, "test")
    found = []
    for data in (b"one", b"two", b"one"):
        weights.write_bytes(data)
        found.append(described_digest(given, WHOLE, 512, images, STORAGE))
    assert found[0] == found[2] != found[1]
    official = SscdParams(kind="sscd", path=str(weights))
    before = described_digest(official, WHOLE, 512, images, STORAGE)
    weights.write_bytes(b"two")
    assert described_digest(official, WHOLE, 512, images, STORAGE) != before


def test_checks_do_not_believe_the_decisions(
    tmp_path: Path, pictures: dict[str, bytes], benchmarks: BenchmarksFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    curated = curate(tmp_path / "curate", {name: pictures[name] for name in ("plain00", "plain01", "test100")})
    with monkeypatch.context() as patch:
        only(patch, "manifest")
        patch.setattr("components.dedup.decisions.reference._match_part", lambda *_: reference.nothing_near(0, 3))
        key = hashlib.sha256(b"test100").hexdigest()[:20]
        with pytest.raises(VitrailError, match=rf"no image copies a held-out image.*1 of 3 rows \(key {key}"):
            run(tmp_path, curated, benchmarks, plain())
    honest = described.describe

    def swapped(*given: Any) -> DescriptorRows:
        rows = honest(*given)
        table = np.load(rows.path)
        np.save(rows.path, table[[1, 0, 2]])
        return rows

    for module, name, instead in (
        (described, "describe", swapped),
        (stage, "described_keys", lambda _: [["x", "y"], ["z"]]),
    ):
        with monkeypatch.context() as patch:
            only(patch, "descriptors")
            patch.setattr(module, name, instead)
            with pytest.raises(VitrailError, match="row i describes the image of row i"):
                run(tmp_path, curated, benchmarks, plain())
        shutil.rmtree(tmp_path / ".dedup.work")
    assert not (tmp_path / "dedup").exists()
