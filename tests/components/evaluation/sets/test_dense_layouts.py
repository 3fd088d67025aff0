"""Each layout of masks or depths on a tiny tree as its authors ship it; what does not fit is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.evaluation.sets.dense_files import IGNORE
from components.evaluation.sets.dense_layouts import load_dense
from components.evaluation.sets.dense_set import DenseBenchmark
from components.input_paths import input_paths
from components.params import parse_params

MASK = np.array([[0, 1, 1, 2], [0, 1, 2, 255], [2, 2, 0, 0]], np.uint8)


def save(path: Path, values: np.ndarray[Any, Any], palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    if palette:
        picture = Image.fromarray(values, mode="P")
        picture.putpalette([value % 256 for value in range(768)])
    picture.save(path)


def photograph(path: Path, height: int = 3, width: int = 4) -> None:
    save(path, np.full((height, width, 3), 90, np.uint8))


def load(spec: dict[str, Any]) -> DenseBenchmark:
    return load_dense("mine", parse_params({"mine": spec}, BenchmarksFile, "here").dense["mine"])


@pytest.fixture
def masks(tmp_path: Path) -> dict[str, Any]:
    for name in "abcde":
        photograph(tmp_path / f"images/{name}.jpg")
        save(tmp_path / f"masks/{name}.png", MASK)
    return {"kind": "masks", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}


def test_own_masks_are_divided_by_seed_or_by_folder(masks: dict[str, Any], tmp_path: Path) -> None:
    ours = load(masks)
    assert (len(ours.train_rows), len(ours.test_rows), ours.classes) == (4, 1, 3)
    rgb, mask = ours.read(0)
    assert rgb.shape == (3, 4, 3)
    assert (mask == np.where(MASK == 255, IGNORE, MASK.astype(int))).all()
    assert load(masks | {"seed": 3}).digest != ours.digest == load(masks).digest
    photograph(tmp_path / "test/z.png")
    save(tmp_path / "test_masks/z.png", MASK)
    divided = load(masks | {"test_images": str(tmp_path / "test"), "test_masks": str(tmp_path / "test_masks")})
    assert (len(divided.train_rows), divided.test_rows.tolist()) == (5, [5])
    with pytest.raises(VitrailError, match="test_images and test_masks go together"):
        load(masks | {"test_images": str(tmp_path / "test")})
    spec = parse_params({"mine": masks}, BenchmarksFile, "here").benchmarks["mine"]
    assert [key for key, _ in input_paths(spec)] == ["images", "masks"]


def test_held_out_pictures_are_kept_from_training_like_those_of_other_benchmarks(masks: dict[str, Any]) -> None:
    file = parse_params({"mine": masks}, BenchmarksFile, "here")
    assert (list(file.scored), list(file.dense)) == ([], ["mine"])
    ours = load_benchmark("mine", file.benchmarks["mine"])
    assert ours.labels == {}
    assert ours.kept_out("test").sum() == 1


def test_masks_that_do_not_fit_are_one_clear_line(masks: dict[str, Any], tmp_path: Path) -> None:
    photograph(tmp_path / "images/b.jpg", 5, 4)
    ours = load(masks)
    with pytest.raises(VitrailError, match=r"b\.png: the mask and its image differ in size: 3 x 4 px and 5 x 4 px"):
        ours.read(1)
    with pytest.raises(VitrailError, match=r"a\.png: class 2, and mine has classes 0 to 1"):
        load(masks | {"classes": ["ground", "cell"]}).read(0)
    photograph(tmp_path / "images/q.jpg")
    with pytest.raises(VitrailError, match=r"benchmark mine: masks: .*: no q\.png \(1 are missing\)"):
        load(masks)
    with pytest.raises(VitrailError, match=r"benchmark mine: masks: .*no such folder"):
        load(masks | {"masks": str(tmp_path / "gone")})


def test_ade20k(tmp_path: Path) -> None:
    for side, name in (("training", "ADE_train_1"), ("validation", "ADE_val_1")):
        photograph(tmp_path / f"images/{side}/{name}.jpg")
        save(tmp_path / f"annotations/{side}/{name}.png", np.array([[0, 1, 150, 3]] * 3, np.uint8))
    ours = load({"kind": "ade20k", "path": str(tmp_path)})
    assert (ours.classes, ours.pictures.test.tolist()) == (150, [False, True])
    assert ours.read(1)[1][0].tolist() == [IGNORE, 0, 149, 2]


@pytest.mark.parametrize("below", ["", "VOC2012"])
def test_voc(tmp_path: Path, below: str) -> None:
    root = tmp_path / below
    for name in ("2007_000001", "2007_000002"):
        photograph(root / f"JPEGImages/{name}.jpg")
        save(root / f"SegmentationClass/{name}.png", np.array([[0, 20, 255, 7]] * 3, np.uint8), palette=True)
    lists = root / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_000001\n")
    (lists / "val.txt").write_text("2007_000002\n")
    ours = load({"kind": "voc", "path": str(tmp_path)})
    assert (ours.classes, ours.pictures.test.tolist()) == (21, [False, True])
    assert ours.read(0)[1][0].tolist() == [0, 20, IGNORE, 7]
    (lists / "val.txt").write_text("2007_000003\n")
    with pytest.raises(VitrailError, match=r"2007_000003\.jpg: no such file"):
        load({"kind": "voc", "path": str(tmp_path)})


def test_camvid(tmp_path: Path) -> None:
    for side in ("train", "test"):
        photograph(tmp_path / side / "0001TP.png")
        save(tmp_path / f"{side}annot" / "0001TP.png", np.array([[0, 10, 11, 4]] * 3, np.uint8))
    ours = load({"kind": "camvid", "path": str(tmp_path)})
    assert (ours.classes, ours.pictures.test.tolist()) == (11, [False, True])
    assert ours.read(0)[1][0].tolist() == [0, 10, IGNORE, 4]


COLOURS = {"Animal": (64, 128, 64), "Bridge": (0, 128, 64), "Road": (128, 64, 128), "Sky": (128,) * 3, "Void": (0,) * 3}


def colour_mask(path: Path, *names: str) -> None:
    save(path, np.array([[COLOURS[name] for name in names]] * 3, np.uint8))


def test_camvid_by_colours_has_the_eleven_classes_or_its_own(tmp_path: Path) -> None:
    for side in ("train", "test"):
        photograph(tmp_path / side / "0001TP_1.png")
        colour_mask(tmp_path / f"{side}_labels/0001TP_1_L.png", "Sky", "Bridge", "Animal", "Void")
    lines = [f"{name}, {r}, {g}, {b}" for name, (r, g, b) in COLOURS.items()]
    (tmp_path / "class_dict.csv").write_text("\n".join(["name, r, g, b", *lines]) + "\n")
    spec: dict[str, Any] = {"kind": "camvid", "path": str(tmp_path)}
    ours = load(spec)
    assert (ours.classes, ours.pictures.test.tolist()) == (11, [False, True])
    assert ours.read(1)[1][0].tolist() == [0, 1, 9, IGNORE]  # sky, building, pedestrian
    every = load(spec | {"classes": "all"})
    assert every.truth.class_names == ["Animal", "Bridge", "Road", "Sky"]
    assert every.read(1)[1][0].tolist() == [3, 1, 0, IGNORE]
    save(tmp_path / "test_labels/0001TP_1_L.png", np.full((3, 4, 3), 7, np.uint8))
    with pytest.raises(VitrailError, match=r"_L\.png: 12 pixels of colour \(7, 7, 7\), which .*class_dict\.csv lacks"):
        ours.read(1)
    save(tmp_path / "test_labels/0001TP_1_L.png", np.zeros((3, 4), np.uint8))
    with pytest.raises(VitrailError, match="a mask by colour has three channels, this file has one"):
        ours.read(1)
    (tmp_path / "class_dict.csv").write_text("name,r,g,b\nSkye,1,2,3\n")
    with pytest.raises(VitrailError, match=r"'Skye' is no class of CamVid.*Sky"):
        load(spec)
    (tmp_path / "class_dict.csv").write_text("name,r,g\nSky,1,2\n")
    with pytest.raises(VitrailError, match="columns name, r, g and b are expected"):
        load(spec)
    (tmp_path / "class_dict.csv").unlink()
    with pytest.raises(VitrailError, match="neither trainannot nor class_dict"):
        load(spec)


def test_camvid_as_its_authors_ship_it_needs_lists_of_both_sides(tmp_path: Path) -> None:
    for stem in ("0001TP_1", "0016E5_2"):
        photograph(tmp_path / "701_StillsRaw_full" / f"{stem}.png")
        colour_mask(tmp_path / "LabeledApproved_full" / f"{stem}_L.png", "Road", "Road", "Void", "Sky")
    lines = [f"{r} {g} {b}\t{name}" for name, (r, g, b) in COLOURS.items()]
    (tmp_path / "label_colors.txt").write_text("\n".join(lines) + "\n")
    spec = {"kind": "camvid", "path": str(tmp_path)}
    with pytest.raises(VitrailError, match=r"train\.txt: no such list of images"):
        load(spec)
    (tmp_path / "train.txt").write_text("0016E5_2.png\n")
    (tmp_path / "test.txt").write_text("0001TP_1\n")
    ours = load(spec)
    assert ours.pictures.test.tolist() == [False, True]
    assert ours.truth.where(1).endswith("0001TP_1_L.png")
    assert ours.read(1)[1][0].tolist() == [3, 3, IGNORE, 0]


def test_nyus_labelled_set_is_read_from_its_mat_file(tmp_path: Path) -> None:
    import h5py
    from scipy.io import savemat

    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, 3, 640, 480), np.uint8)  # as MATLAB's axes come: [n, colour, W, H]
    raw = generator.uniform(1, 4, (3, 640, 480)).astype(np.float32)
    raw[:, 100, 100] = 0
    mat = tmp_path / "nyu_depth_v2_labeled.mat"
    with h5py.File(mat, "w") as file:
        file.update({"images": images, "rawDepths": raw, "depths": raw + 1})
    spec = {"kind": "nyu", "path": str(mat)}
    with pytest.raises(VitrailError, match=r"splits\.mat: no such file; it names the sides"):
        load(spec)
    savemat(tmp_path / "splits.mat", {"trainNdxs": np.array([[3], [1]]), "testNdxs": np.array([[2]])})
    ours = load(spec)
    assert (ours.pictures.test.tolist(), ours.pictures.keys[-1]) == ([False, False, True], "mine/000002")
    rgb, metres = ours.read(0)
    assert (rgb == images[2].transpose(2, 1, 0)).all()
    assert np.isnan(metres).sum() == 1
    assert metres[7, 300] == raw[2, 300, 7]
    assert np.isfinite(ours.read(2)[1]).sum() == 426 * 560 - 1
    assert np.isfinite(load(spec | {"depths": "filled", "crop": "none"}).read(2)[1]).all()
    assert len({ours.digest, load(spec).digest, load(spec | {"depths": "filled"}).digest}) == 2
    savemat(tmp_path / "splits.mat", {"trainNdxs": [[3]], "testNdxs": [[4]]})
    with pytest.raises(VitrailError, match=r"splits\.mat names picture 4 of 3"):
        load(spec)
    other = tmp_path / "other.mat"
    with h5py.File(other, "w") as file:
        file.update({"images": images})
    spec |= {"path": str(other)}
    with pytest.raises(VitrailError, match="no array 'rawDepths' of 3 dimensions"):
        load(spec)
    other.write_bytes(b"MATLAB 5.0")
    with pytest.raises(VitrailError, match="not a file of MATLAB"):
        load(spec)


def test_nyu_scores_eigens_part_of_test_pictures(tmp_path: Path) -> None:
    depth = np.full((480, 640), 2500, np.uint16)
    depth[100, 100] = 0
    for name in ("kitchen/rgb_1.jpg", "kitchen/rgb_2.jpg"):
        photograph(tmp_path / name, 480, 640)
        save(tmp_path / name.replace("rgb", "sync_depth").replace("jpg", "png"), depth)
    (tmp_path / "nyu_train.txt").write_text("/kitchen/rgb_1.jpg /kitchen/sync_depth_1.png 518.8\nx.jpg None 518.8\n")
    (tmp_path / "nyu_test.txt").write_text("kitchen/rgb_2.jpg kitchen/sync_depth_2.png 518.8\n")
    ours = load({"kind": "nyu", "path": str(tmp_path)})
    (_, train), (_, test) = ours.read(0), ours.read(1)
    assert (np.isfinite(train).sum(), np.isfinite(test).sum()) == (480 * 640 - 1, 426 * 560 - 1)
    assert np.nanmax(test) == 2.5
    (tmp_path / "nyu_test.txt").write_text("kitchen/rgb_2.jpg\n")
    with pytest.raises(VitrailError, match=r"nyu_test\.txt, line 1: an image and its map of depths"):
        load({"kind": "nyu", "path": str(tmp_path)})


def test_own_depths_have_holes_where_nothing_was_measured(tmp_path: Path) -> None:
    for name in "ab":
        photograph(tmp_path / f"images/{name}.jpg")
    save(tmp_path / "depths/a.png", np.array([[0, 500, 1000, 65535]] * 3, np.uint16))
    np.save(tmp_path / "depths/b.npy", np.array([[np.nan, -1, np.inf, 2000.0]] * 3))
    ours = load({"kind": "depths", "images": str(tmp_path / "images"), "depths": str(tmp_path / "depths")})
    first, second = ours.read(0)[1][0], ours.read(1)[1][0]
    assert np.isnan(first).tolist() == [True, False, False, False]
    assert first[1:].tolist() == pytest.approx([0.5, 1.0, 65.535])
    assert np.isnan(second).tolist() == [True, True, True, False]
    np.save(tmp_path / "depths/b.npy", np.zeros((3, 4, 2)))
    with pytest.raises(VitrailError, match=r"b\.npy: depths are numbers \[H, W\], this file holds float64 \[3, 4, 2\]"):
        load({"kind": "depths", "images": str(tmp_path / "images"), "depths": str(tmp_path / "depths")}).read(1)
    with pytest.raises(VitrailError, match="least 3 m must be below most 2 m"):
        load(
            {"kind": "depths", "images": str(tmp_path / "images"), "depths": str(tmp_path / "depths")}
            | {"least": 3.0, "most": 2.0}
        )
