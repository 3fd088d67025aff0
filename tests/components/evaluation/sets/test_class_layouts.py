"""Each layout of classes on a tiny tree as others write it; sides, classes and bytes come out the same."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.labelled_set import Benchmark
from components.params import parse_params

CLASSES = ["n01440764", "n01443537"]


def png(level: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (4, 3), (level, level, level)).save(file, "PNG")
    return file.getvalue()


def write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def load(spec: dict[str, Any]) -> Benchmark:
    return load_benchmark("mine", parse_params({"mine": spec}, BenchmarksFile, "here").scored["mine"])


def tree(root: Path, count: int, ending: str = "JPEG") -> None:
    for kind, name in enumerate(CLASSES):
        for number in range(count):
            write(root / name / f"{name}_{number}.{ending}", png(100 * kind + number))


def levels(benchmark: Benchmark) -> list[int]:
    return [int(benchmark.images.rgb(row)[0, 0, 0]) for row in range(len(benchmark.keys))]


def test_folders_of_classes_with_and_without_a_test_folder(tmp_path: Path) -> None:
    tree(tmp_path / "train", 5)
    tree(tmp_path / "val", 2)
    ours = load({"kind": "folder", "path": str(tmp_path / "train"), "test": str(tmp_path / "val")})
    assert ours.class_names == {"class": CLASSES}
    assert (ours.test.sum(), ours.labels["class"].tolist()) == (4, [0] * 5 + [1] * 5 + [0] * 2 + [1] * 2)
    assert levels(ours)[:10] == [0, 1, 2, 3, 4, 100, 101, 102, 103, 104]
    drawn = load({"kind": "folder", "path": str(tmp_path / "train"), "held_out": 0.4})
    assert [int(drawn.test[drawn.labels["class"] == label].sum()) for label in (0, 1)] == [2, 2]
    again = {"kind": "folder", "path": str(tmp_path / "train"), "held_out": 0.4, "seed": 0}
    assert load(again).digest == drawn.digest != load(again | {"seed": 1}).digest
    write(tmp_path / "val/zebra/1.png", png(1))
    with pytest.raises(VitrailError, match="1 classes of the held-out images have no training image, 'zebra' among"):
        load({"kind": "folder", "path": str(tmp_path / "train"), "test": str(tmp_path / "val")})
    with pytest.raises(VitrailError, match="no images in folders of classes"):
        load({"kind": "folder", "path": str(tmp_path / "train/n01440764")})


def test_imagenet_sorted_and_flat(tmp_path: Path) -> None:
    tree(tmp_path / "train", 2)
    with pytest.raises(VitrailError, match=r"val: no such folder"):
        load({"kind": "imagenet", "path": str(tmp_path)})
    tree(tmp_path / "sorted/train", 2)
    tree(tmp_path / "sorted/val", 1)
    assert load({"kind": "imagenet", "path": str(tmp_path / "sorted")}).test.sum() == 2
    for number in (1, 2, 3):
        write(tmp_path / f"val/ILSVRC2012_val_0000000{number}.JPEG", png(number))
    with pytest.raises(VitrailError, match=r"LOC_val_solution\.csv is not there"):
        load({"kind": "imagenet", "path": str(tmp_path)})
    lines = [f"ILSVRC2012_val_0000000{n},{CLASSES[n % 2]} 1 2 3 4 {CLASSES[n % 2]} 5 6 7 8" for n in (3, 1, 2)]
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines[:2]]) + "\n")
    with pytest.raises(VitrailError, match=r"no class of ILSVRC2012_val_00000002\.JPEG \(1 are missing\)"):
        load({"kind": "imagenet", "path": str(tmp_path)})
    (tmp_path / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]) + "\n")
    flat = load({"kind": "imagenet", "path": str(tmp_path)})
    assert flat.labels["class"][flat.test].tolist() == [1, 0, 1]
    assert levels(flat)[4:] == [1, 2, 3]


def shard(path: Path, files: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_tar_shards(tmp_path: Path) -> None:
    for number in range(2):
        files = {}
        for key, level in (("a", number), ("b", 10 + number)):
            files |= {f"{number}{key}.cls": key.encode(), f"{number}{key}.png": png(level)}
        shard(tmp_path / f"train/{number}.tar", files)
    shard(tmp_path / "test/0.tar", {"x.png": png(99), "x.cls": b"b\n", "x.json": b"{}"})
    ours = load({"kind": "tar", "path": str(tmp_path / "train"), "test": str(tmp_path / "test")})
    assert (ours.class_names["class"], ours.labels["class"].tolist()) == (["a", "b"], [0, 1, 0, 1, 1])
    assert levels(ours) == [0, 10, 1, 11, 99]
    assert ours.test.tolist() == [False] * 4 + [True]
    shard(tmp_path / "test/1.tar", {"y.png": png(99)})
    with pytest.raises(VitrailError, match=r"1\.tar: no y\.cls \(1 are missing\)"):
        load({"kind": "tar", "path": str(tmp_path / "train"), "test": str(tmp_path / "test")})
    (tmp_path / "train/2.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(VitrailError, match=r"2\.tar: not a readable tar"):
        load({"kind": "tar", "path": str(tmp_path / "train")})


def hugging_face(count: int) -> Any:
    import datasets

    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])})
    rows = {"image": [{"bytes": png(n), "path": None} for n in range(count)], "label": [n % 2 for n in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)


def test_what_datasets_wrote_to_disk_and_its_parquet(tmp_path: Path) -> None:
    import datasets

    both = datasets.DatasetDict({"train": hugging_face(4), "test": hugging_face(2)})
    both.save_to_disk(str(tmp_path / "saved"))
    both["train"].save_to_disk(str(tmp_path / "one"))
    for split, part in both.items():
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        part.to_parquet(str(tmp_path / f"hub/data/{split}-00000-of-00001.parquet"))
    for folder in ("saved", "hub"):
        ours = load({"kind": "datasets", "path": str(tmp_path / folder)})
        assert ours.class_names == {"label": ["cat", "dog"]}
        assert ours.labels["label"].tolist() == [0, 1, 0, 1, 0, 1]
        assert ours.test.tolist() == [False] * 4 + [True] * 2
        assert levels(ours) == [0, 1, 2, 3, 0, 1]
    drawn = load({"kind": "datasets", "path": str(tmp_path / "one"), "test": None, "held_out": 0.5})
    assert drawn.test.sum() == 2
    with pytest.raises(VitrailError, match="split 'tset': there are train, test"):
        load({"kind": "datasets", "path": str(tmp_path / "saved"), "test": "tset"})
    with pytest.raises(VitrailError, match="no column 'lable'"):
        load({"kind": "datasets", "path": str(tmp_path / "hub"), "label": "lable"})
    with pytest.raises(VitrailError, match="for folders of classes use"):
        load({"kind": "datasets", "path": str(tmp_path)} | {"train": "other", "test": None})


def test_a_table_without_a_split_is_divided_by_seed_and_along_its_groups(tmp_path: Path) -> None:
    columns = {"image": [png(n) for n in range(12)], "kind": ["a", "b"] * 6, "scene": [n // 2 for n in range(12)]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    spec = {"kind": "parquet", "path": str(tmp_path / "x.parquet"), "labels": ["kind"], "split": None, "held_out": 0.34}
    assert [int(load(spec).test[start::2].sum()) for start in (0, 1)] == [2, 2]
    grouped = load(spec | {"group": "scene"})
    assert grouped.test.sum() == 4
    assert (grouped.test[::2] == grouped.test[1::2]).all()
