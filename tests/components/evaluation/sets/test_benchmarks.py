"""The embedded benchmark is what its papers say, and a user's Parquet loads or says what is wrong."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, ElpvParams, ParquetParams, QueryParams, load_benchmark
from components.params import load_params, parse_params

ROOT = Path(__file__).resolve().parents[4]


def test_elpv_is_whole_and_split_by_seed() -> None:
    from elpv_dataset.utils import load_dataset

    params = load_params(ROOT / "params/benchmarks.yaml", BenchmarksFile).benchmarks["elpv"]
    assert params == ElpvParams(kind="elpv", test=624, seed=0)
    ours = load_benchmark("elpv", params)
    images, probability, kind = load_dataset()  # the package's own reader
    np.testing.assert_allclose(ours.labels["defect"] / 3, probability, atol=1e-4)
    assert [ours.class_names["type"][i] for i in ours.labels["type"]] == kind.tolist()
    assert len(ours.images) == len(ours.keys) == 2624
    assert ours.keys[12] == "elpv/00012"
    for row in (0, 12, 2623):
        rgb = ours.images.rgb(row)
        assert rgb.shape == (300, 300, 3)
        assert all((rgb[..., channel] == images[row]).all() for channel in range(3))
    assert ours.test.sum() == 624
    again, other = load_benchmark("elpv", params), load_benchmark("elpv", ElpvParams(kind="elpv", seed=1))
    assert ours.digest == again.digest != other.digest
    assert (ours.test == again.test).all()
    assert (ours.test != other.test).any()


def test_a_misspelt_key_names_the_nearest() -> None:
    with pytest.raises(VitrailError, match="did you mean 'test'"):
        parse_params({"elpv": {"kind": "elpv", "tets": 3}}, BenchmarksFile, "here")
    with pytest.raises(VitrailError, match="'elpv', 'parquet'"):
        parse_params({"x": {"kind": "csv"}}, BenchmarksFile, "here")


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(file, "PNG")
    return file.getvalue()


def own(path: Path, **columns: Any) -> ParquetParams:
    rows = {"image": [png(i) for i in range(4)], "kind": ["b", "a", "b", "a"], "split": ["train"] * 3 + ["test"]}
    pq.write_table(pa.table(rows | columns), path)
    return ParquetParams(kind="parquet", path=str(path), labels=["kind"])


def test_own_images_load(tmp_path: Path) -> None:
    ours = load_benchmark("mine", own(tmp_path / "x.parquet"))
    assert ours.keys == ["mine/00000", "mine/00001", "mine/00002", "mine/00003"]
    assert ours.labels["kind"].tolist() == [1, 0, 1, 0]
    assert ours.class_names == {"kind": ["a", "b"]}
    assert ours.test.tolist() == [False, False, False, True]
    assert (ours.images.rgb(2) == 2).all()
    assert ours.images.rgb(2).shape == (4, 6, 3)
    wrapped = [{"bytes": png(9), "path": "p"}] * 4
    assert (load_benchmark("mine", own(tmp_path / "hf.parquet", image=wrapped)).images.rgb(0) == 9).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"kind": ["a", None, "b", "a"]}, "row 1 has no 'kind'"),
        ({"kind": [1.0, 2.0, float("nan"), 1.0]}, "row 2 has no 'kind'"),
        ({"split": ["train", None, "train", "test"]}, "row 1 has no 'split'"),
        ({"split": ["train"] * 4}, "0 of 4 images are held out"),
        ({"image": [b"no"] * 4}, "not a readable image"),
        ({"image": [None, png(0), png(0), png(0)]}, "row 0 holds no image bytes"),
    ],
)
def test_what_is_wrong_with_own_images_is_said(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    params = own(tmp_path / "x.parquet", **columns)
    with pytest.raises(VitrailError, match=message):
        load_benchmark("mine", params).images.rgb(0)


def test_a_group_that_is_missing_is_no_group_of_its_own(tmp_path: Path) -> None:
    params = own(tmp_path / "x.parquet", scene=[1.0, float("nan"), 2.0, float("nan")])
    with pytest.raises(VitrailError, match="row 1 has no 'scene'"):
        load_benchmark("mine", params.model_copy(update={"group": "scene"}))


def test_the_digest_covers_pictures_in_their_order_labels_split_and_groups(tmp_path: Path) -> None:
    def digest(group: str | None = None, **columns: Any) -> str:
        params = own(tmp_path / "x.parquet", **columns)
        return load_benchmark("mine", params.model_copy(update={"group": group})).digest

    first = digest()
    assert first == digest()
    others = {
        digest(image=[png(i) for i in (1, 0, 2, 3)]),
        digest(image=[png(i) for i in (0, 1, 2, 9)]),
        digest(kind=["b", "a", "b", "b"]),
        digest(kind=["b", "c", "b", "c"]),
        digest(split=["train", "train", "test", "train"]),
        digest("scene", scene=[0, 0, 1, 1]),
        digest("scene", scene=[0, 1, 1, 1]),
    }
    assert len(others | {first}) == 8


def test_a_missing_file_or_column_is_named(tmp_path: Path) -> None:
    params = own(tmp_path / "x.parquet")
    with pytest.raises(VitrailError, match="no column 'knid'; did you mean 'kind'"):
        load_benchmark("mine", params.model_copy(update={"labels": ["knid"]}))
    with pytest.raises(VitrailError, match="no such file"):
        load_benchmark("mine", params.model_copy(update={"path": str(tmp_path / "y.parquet")}))
    (tmp_path / "z.parquet").write_bytes(b"text")
    with pytest.raises(VitrailError, match="not a readable Parquet"):
        load_benchmark("mine", params.model_copy(update={"path": str(tmp_path / "z.parquet")}))


@pytest.mark.shared
def test_a_parquet_of_real_photographs_loads(shared_data: Path) -> None:
    params = ParquetParams(kind="parquet", path=str(shared_data / "cifar10-24k.parquet"), labels=["label"], key="key")
    ours = load_benchmark("cifar", params)
    assert (len(ours.keys), int(ours.test.sum())) == (24000, 4000)
    assert ours.images.rgb(23999).shape == (32, 32, 3)


def test_queries_need_no_labels_and_are_no_benchmark(tmp_path: Path) -> None:
    path = tmp_path / "queries.parquet"
    pq.write_table(pa.table({"image": [png(i) for i in range(3)], "id": ["x", "y", "z"]}), path)
    file = parse_params(
        {"q": {"kind": "queries", "path": str(path), "key": "id"}, "elpv": {"kind": "elpv"}}, BenchmarksFile, "here"
    )
    assert list(file.scored) == ["elpv"]
    ours = load_benchmark("q", file.benchmarks["q"])
    assert ours.keys == ["q/x", "q/y", "q/z"]
    assert ours.images.rgb(2).mean() == 2
    assert not ours.test.any()
    assert not ours.kept_out("all").any()
    elpv = load_benchmark("elpv", file.benchmarks["elpv"])
    assert elpv.kept_out("all").all()
    assert (elpv.kept_out("test") == elpv.test).all()
    with pytest.raises(VitrailError, match="no column 'ids'; did you mean 'id'"):
        load_benchmark("q", QueryParams(kind="queries", path=str(path), key="ids"))
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    with pytest.raises(VitrailError, match="no rows"):
        load_benchmark("q", QueryParams(kind="queries", path=str(path)))
