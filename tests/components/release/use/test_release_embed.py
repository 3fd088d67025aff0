"""Features of images, wherever they are: complete, in order, resumable; an image that cannot be used is told."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.errors import VitrailError
from components.executor import ExecutorParams
from components.learning.collate import normalize
from components.release.run import main
from components.release.use import embed as module
from components.release.use.embed import EmbedParams, embed_all
from components.release.use.features import FeatureSpec, embed, embed_array
from components.release.use.images import Places, parts_of, read_part
from components.release.weights.export import save_model
from components.release.weights.load import LoadedModel
from components.storage import StorageParams
from tests.components.release.small_models import small_model


def encoded(seed: int, size: tuple[int, int] = (56, 56), form: str = "PNG", mode: str = "RGB") -> bytes:
    generator = np.random.default_rng(seed)
    levels = generator.integers(0, 256, (size[0], size[1], 4), dtype=np.uint8)
    image = Image.fromarray(levels, "RGBA").convert("L" if mode == "I;16" else mode).convert(mode)
    out = io.BytesIO()
    image.save(out, form)
    return out.getvalue()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return small_model()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    """A model, seven images of which one is damaged, and the same as a tar and a table."""
    root = tmp_path_factory.mktemp("embed")
    save_model(model, root / "m")
    (root / "photos/sub").mkdir(parents=True)
    data = {f"{n}.png": encoded(n) for n in range(6)} | {"sub/bad.png": encoded(9)[:200]}
    for name, content in data.items():
        (root / "photos" / name).write_bytes(content)
    with tarfile.open(root / "photos.tar", "w") as tar:
        for name, content in sorted(data.items()):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    names = sorted(data)
    rows = [{"bytes": data[name], "path": name} for name in names]
    pq.write_table(pa.table({"image": rows, "key": names}), root / "photos.parquet", row_group_size=3)
    return root


def table(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = pq.read_table(sorted(out.glob("part-*.parquet"))).to_pydict()
    return found


@torch.no_grad()
def expected(model: LoadedModel, seed: int) -> Any:
    pixels = np.array(Image.open(io.BytesIO(encoded(seed))))
    card = model.card
    return model.backbone(normalize(torch.from_numpy(pixels)[None].permute(0, 3, 1, 2), card.mean, card.std))


@pytest.mark.parametrize("source", ["photos", "photos.tar", "photos.parquet"])
def test_every_kind_of_source_gives_the_models_features(folder: Path, model: LoadedModel, source: str) -> None:
    out = folder / f"out-{source}"
    spec = FeatureSpec(kinds=("cls", "mean", "patches"), batch=2)
    facts = embed_all(str(folder / "m"), str(folder / source), out, EmbedParams(spec, part_rows=3))
    assert (facts["rows"], facts["errors"]) == (7, 1)
    assert json.loads((out / "features.json").read_text()) == facts
    assert len(list(out.glob("part-*.parquet"))) == 3
    found = table(out)
    assert found["key"] == [*(f"{n}.png" for n in range(6)), "sub/bad.png"]
    for row in range(6):
        features = expected(model, row)
        np.testing.assert_allclose(found["cls"][row], features.cls[0].numpy(), atol=1e-5)
        np.testing.assert_allclose(found["mean"][row], features.patches[0].mean(0).numpy(), atol=1e-5)
        np.testing.assert_allclose(found["patches"][row], features.patches[0].flatten().numpy(), atol=5e-3)
        assert (found["rows"][row], found["columns"][row], found["error"][row]) == (4, 4, "")
    assert found["cls"][6] is found["patches"][6] is None
    assert found["error"][6].startswith(("truncated", "corrupt"))


def test_arrays_are_row_aligned_with_keys(folder: Path, model: LoadedModel) -> None:
    out = folder / "arrays"
    spec = FeatureSpec(kinds=("cls", "patches"))
    embed_all(str(folder / "m"), str(folder / "photos"), out, EmbedParams(spec, form="npy", part_rows=4))
    cls, patches = np.load(out / "cls.npy"), np.load(out / "patches.npy")
    keys = pq.read_table(out / "keys.parquet").to_pydict()
    assert (cls.shape, patches.shape, patches.dtype) == ((7, 64), (7, 4, 4, 64), np.float16)
    np.testing.assert_allclose(cls[2], expected(model, 2).cls[0].numpy(), atol=1e-5)
    assert keys["key"][2] == "2.png"
    assert np.isnan(cls[6]).all()
    assert keys["error"][6]


def test_finished_parts_are_kept_when_the_work_is_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, done = folder / "stopped", list[int]()
    real = module._embed_part

    def until(limit: int) -> Any:
        def part(job: Any, count: int, given: Any) -> Path:
            if len(done) == limit:
                raise KeyboardInterrupt
            done.append(given.number)
            return real(job, count, given)

        return part

    params = EmbedParams(part_rows=2)
    monkeypatch.setattr(module, "_embed_part", until(2))
    with pytest.raises(KeyboardInterrupt):
        embed_all(str(folder / "m"), str(folder / "photos"), out, params)
    assert not out.exists()
    monkeypatch.setattr(module, "_embed_part", until(99))
    embed_all(str(folder / "m"), str(folder / "photos"), out, params)
    assert done == [0, 1, 2, 3]
    assert len(table(out)["key"]) == 7
    assert not out.with_name(".stopped.work").exists()


def test_processes_give_the_same_rows(folder: Path) -> None:
    params = EmbedParams(executor=ExecutorParams(kind="pool", workers=2), part_rows=4, device="cpu")
    embed_all(str(folder / "m"), str(folder / "photos"), folder / "pool", params)
    embed_all(str(folder / "m"), str(folder / "photos"), folder / "here", EmbedParams(part_rows=4, device="cpu"))
    ours, theirs = table(folder / "here"), table(folder / "pool")
    assert ours["key"] == theirs["key"]
    np.testing.assert_allclose(ours["cls"][0], theirs["cls"][0], atol=1e-6)


def test_images_of_s3_are_read(folder: Path, s3_endpoint: str) -> None:
    from components.storage import open_store

    storage = StorageParams(root="s3://vitrail-test", endpoint_url=s3_endpoint)
    store = open_store(storage, "pictures")
    for path in sorted((folder / "photos").glob("*.png")):
        store.put_file(path.name, path)
    places = Places(storage=storage)
    [part] = parts_of("s3://vitrail-test/pictures", 100, places)
    assert [key for key, _ in read_part(part, storage)] == [f"{n}.png" for n in range(6)]


def test_a_manifest_names_its_images_by_key(tmp_path: Path) -> None:
    from components.images.shards import Shards
    from components.tables.parts import write_table
    from components.tables.schemas import MANIFEST

    (tmp_path / "curate/shards").mkdir(parents=True)
    data = [encoded(1), encoded(2)]
    (tmp_path / "curate/shards/a.tar").write_bytes(b"".join(data))
    Shards("", {"a.tar": {"sha256": "", "bytes": sum(map(len, data))}}).save(tmp_path / "curate")
    rows: list[dict[str, Any]] = [
        {"key": f"k{n}", "shard": "a.tar", "offset": n * len(data[0]), "length": len(each), "width": 56, "height": 56,
         "weight": 1.0, "reason": "pool", "sources": []}
        for n, each in enumerate(data)
    ]  # fmt: skip
    write_table(tmp_path / "manifest", rows, MANIFEST)
    places = Places(tmp_path / "curate")
    [part] = parts_of(str(tmp_path / "manifest"), 10, places)
    assert list(read_part(part, places.storage)) == [("k0", data[0]), ("k1", data[1])]


def test_odd_images_are_rows_among_the_others(model: LoadedModel) -> None:
    pictures = {
        "gray": encoded(1, mode="L"), "rgba": encoded(2, mode="RGBA"), "thin": encoded(3, (1, 2000)), "none": b"",
        "text": b"hello", "bits": encoded(4, mode="I;16"), "jpeg": encoded(5, (60, 70), "JPEG"),
    }  # fmt: skip
    rows = {row.key: row for row in embed(model, list(pictures.items()), FeatureSpec(batch=3))}
    assert [key for key, row in rows.items() if row.error] == ["none", "text"]
    assert list(rows) == list(pictures)
    assert (rows["thin"].height, rows["thin"].width) == (1, 2000)


def test_sizes_that_are_no_multiple_are_told_or_cropped(model: LoadedModel) -> None:
    data = [("a", encoded(1, (60, 70))), ("b", encoded(2, (28, 42))), ("c", encoded(3, (10, 70)))]
    rows = list(embed(model, data, FeatureSpec(size="native")))
    assert "60 x 70 px: sides must be multiples of the patch of 14 px; 56 x 70 and 70 x 70 fit" in rows[0].error
    assert rows[1].grid == (2, 3)
    rows = list(embed(model, data, FeatureSpec(size="native", crop=True)))
    assert (rows[0].grid, rows[0].error) == ((4, 5), "")
    assert rows[2].error  # below one patch
    with pytest.raises(VitrailError, match="56 x 56 and 70 x 70 fit"):
        list(embed(model, data, FeatureSpec(size=60)))
    assert next(iter(embed(model, data, FeatureSpec(size=60, crop=True)))).grid == (4, 4)


def test_arrays_and_paths_are_taken_in_python(model: LoadedModel, folder: Path) -> None:
    pixels = np.array(Image.open(folder / "photos/0.png"))
    found = embed_array(
        model, [pixels, folder / "photos/0.png", (folder / "photos/0.png").read_bytes(), pixels[..., 0]]
    )
    np.testing.assert_allclose(found[0], found[1])
    np.testing.assert_allclose(found[0], found[2])
    assert found.shape == (4, 64)
    with pytest.raises(VitrailError, match="images are uint8"):
        embed_array(model, [pixels.astype(np.float32)])
    with pytest.raises(VitrailError, match=r"^\S+none\.png: cannot be read"):
        embed_array(model, [pixels, folder / "none.png"])
    with pytest.raises(VitrailError, match=r"^image 1: "):  # bytes have no name
        embed_array(model, [pixels, b"x"])


def test_one_image_is_json(folder: Path, model: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    image = str(folder / "photos/1.png")
    assert main(["embed", "--model", str(folder / "m"), "--images", image, "--features", "cls", "mean"]) == 0
    found = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose(found["cls"], expected(model, 1).cls[0].numpy(), atol=1e-5)
    assert (found["grid"], len(found["mean"])) == ([4, 4], 64)
    with pytest.raises(VitrailError, match="give --out FOLDER"):
        main(["embed", "--model", str(folder / "m"), "--images", str(folder / "photos")])
    with pytest.raises(VitrailError, match=r"truncated|corrupt"):
        main(["embed", "--model", str(folder / "m"), "--images", str(folder / "photos/sub/bad.png")])


def test_sources_without_images_are_told(tmp_path: Path) -> None:
    with pytest.raises(VitrailError, match="no images there"):
        parts_of(str(tmp_path / "none"), 10, Places())
    with pytest.raises(VitrailError, match="holds no image"):
        parts_of(str(tmp_path), 10, Places())
    pq.write_table(pa.table({"x": [1]}), tmp_path / "t.parquet")
    with pytest.raises(VitrailError, match="no column of image bytes"):
        parts_of(str(tmp_path / "t.parquet"), 10, Places())
    (tmp_path / "broken.parquet").write_bytes(b"no")
    with pytest.raises(VitrailError, match="no readable Parquet file"):
        parts_of(str(tmp_path / "broken.parquet"), 10, Places())


def test_numbers_that_make_no_sense_are_told(folder: Path) -> None:
    command = ["embed", "--model", str(folder / "m"), "--images", str(folder / "photos"), "--out", str(folder / "none")]
    for given, said in (
        (["--workers", "-2"], "workers"), (["--part-rows", "-5"], "--part-rows -5"), (["--batch", "0"], "batch"),
        (["--threads", "-1"], "threads"), (["--size", "-3"], "--size -3"), (["--device", "cuda:99"], "cuda:99"),
    ):  # fmt: skip
        with pytest.raises(VitrailError, match=said):
            main([*command, *given])
    assert not (folder / "none").exists()


def test_arrays_begin_with_missing_rows_where_the_first_parts_have_no_features(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.png").write_bytes(b"damaged" if number < 2 else encoded(number))
    embed_all(str(folder / "m"), str(tmp_path / "photos"), tmp_path / "out", EmbedParams(form="npy", part_rows=1))
    cls = np.load(tmp_path / "out/cls.npy")
    assert np.isnan(cls).all(1).tolist() == [True, True, False]
    (tmp_path / "photos/2.png").unlink()
    embed_all(str(folder / "m"), str(tmp_path / "photos"), tmp_path / "out", EmbedParams(form="npy"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.json", "keys.parquet"]
