"""What a finished model is used for: pictures, a classifier, retrieval."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from components.errors import VitrailError
from components.release.run import main
from components.release.use.classify import ClassifierParams, fit_classifier, load_classifier
from components.release.use.pictures import attention, attention_page, pca, pca_page
from components.release.weights.export import save_model
from components.release.weights.load import LoadedModel
from tests.components.release.small_models import small_model


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return small_model(registers=2, interpolation="size", heads=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: LoadedModel) -> Path:
    """A model, and dark and bright images that any network tells apart."""
    root = tmp_path_factory.mktemp("use")
    save_model(model, root / "m")
    generator = np.random.default_rng(0)
    for number in range(12):
        name = "bright" if number % 2 else "dark"
        (root / "photos" / name).mkdir(parents=True, exist_ok=True)
        levels = generator.integers(150, 256, (60, 60, 3)) if number % 2 else generator.integers(0, 100, (60, 60, 3))
        Image.fromarray(levels.astype(np.uint8)).save(root / "photos" / name / f"{number}.png")
    return root


def test_pca_of_a_group_has_one_basis(model: LoadedModel, folder: Path) -> None:
    files = sorted((folder / "photos").rglob("*.png"))[:3]
    seen, colours = pca(model, [*files, files[0]], foreground=False)
    assert seen.shape == colours.shape == (4, 56, 56, 3)
    assert (colours[0] == colours[3]).all()
    assert len(np.unique(colours[0].reshape(-1, 3), axis=0)) > 3
    assert pca_page(seen, colours, 2).shape == (4 * 60 - 4, 2 * 60 - 4, 3)
    with pytest.raises(VitrailError, match="42 x 42 and 56 x 56 fit"):
        pca(model, files, size=50)


@torch.no_grad()
def test_attention_is_that_of_the_last_block(model: LoadedModel, folder: Path) -> None:
    image = folder / "photos/dark/0.png"
    found = attention(model, image)
    assert (found.cls.shape, found.registers.shape, found.cls_to_registers.shape) == ((4, 4, 4), (2, 4, 4, 4), (4, 2))
    total = found.cls.sum((1, 2)) + found.cls_to_registers.sum(1)
    assert ((total > 0) & (total < 1)).all()  # the rest is the class token's own
    # by hand: its values weighted by these shares are what the block adds
    seen: dict[str, torch.Tensor] = {}
    last = model.backbone.blocks[-1].attn
    handle = last.proj.register_forward_pre_hook(lambda module, given: seen.update(mixed=given[0]))
    inner = last.register_forward_pre_hook(lambda module, given: seen.update(x=given[0]))
    attention(model, image)
    handle.remove()
    inner.remove()
    values = last.qkv(seen["x"]).view(-1, 3, 4, 16)[:, 2]  # [T, heads, 16]
    own = 1 - total
    weights = np.concatenate([own[:, None], found.cls_to_registers, found.cls.reshape(4, -1)], 1)
    mixed = torch.einsum("ht,thd->hd", torch.from_numpy(weights), values).flatten()
    torch.testing.assert_close(mixed, seen["mixed"][0], atol=1e-4, rtol=1e-4)
    assert attention_page(found).shape == (3 * 60 - 4, 5 * 60 - 4, 3)


@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_a_classifier_is_fitted_kept_and_asked(
    method: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--model", str(folder / "m"), "--images", str(folder / "photos"), "--out", str(tmp_path / "c")]
    assert main(["classify", "fit", "--method", method, "--k", "3", *given]) == 0
    assert "100.0% of 12 images right" in capsys.readouterr().out
    facts = load_classifier(tmp_path / "c").facts
    assert (facts.classes, facts.confusion) == (["bright", "dark"], [[6, 0], [0, 6]])
    assert main(["classify", "predict", "--classifier", str(tmp_path / "c"), "--images", str(folder / "photos")]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 12
    assert all(row["class"] == row["key"].partition("/")[0] for row in rows)
    assert all(abs(float(row["bright"]) + float(row["dark"]) - 1) < 1e-3 for row in rows)


@pytest.mark.parametrize("method", ["knn", "logistic"])
def test_scores_are_as_sure_as_they_are_right(method: str) -> None:
    """Two overlapping clouds: the mean score of held-out predictions is the share that is right."""
    generator = np.random.default_rng(0)
    numbers = generator.integers(0, 3, 600)
    features = np.eye(3, 8)[numbers] * 2 + generator.normal(0, 1, (600, 8))
    found = fit_classifier(features.astype(np.float32), [f"c{n}" for n in numbers], ClassifierParams(method=method))
    assert found.held_out is not None
    assert abs(found.held_out.max(1).mean() - found.facts.accuracy) < 0.05
    assert 0.7 < found.facts.accuracy < 0.95
    assert sum(map(sum, found.facts.confusion)) == 600


def test_errors_are_shown_as_a_picture(folder: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(1)
    for number in range(10):  # noise under two names: half are wrong
        (tmp_path / "p" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        levels = generator.integers(0, 256, (56, 56, 3), dtype=np.uint8)
        Image.fromarray(levels).save(tmp_path / "p" / "ab"[number % 2] / f"{number}.png")
    given = ["--model", str(folder / "m"), "--images", str(tmp_path / "p"), "--out", str(tmp_path / "c")]
    assert main(["classify", "fit", *given]) == 0
    assert Image.open(tmp_path / "c/errors.png").size[0] > 100


def test_labels_that_are_missing_are_told(folder: Path, tmp_path: Path) -> None:
    given = ["classify", "fit", "--model", str(folder / "m"), "--out", str(tmp_path / "c"), "--images"]
    with pytest.raises(VitrailError, match="is in no class"):
        main([*given, str(folder / "photos/dark")])
    pq.write_table(pa.table({"image": [b"x"] * 3, "label": ["a", None, "b"]}), tmp_path / "t.parquet")
    with pytest.raises(VitrailError, match=r"t\.parquet: row 1 has no 'label'"):
        main([*given, str(tmp_path / "t.parquet")])
    with pytest.raises(VitrailError, match="1 class of images"):
        fit_classifier(np.ones((2, 3), np.float32), ["a", "a"], ClassifierParams())
    with pytest.raises(VitrailError, match="'b' has one image"):
        fit_classifier(np.ones((3, 3), np.float32), ["a", "a", "b"], ClassifierParams())
    with pytest.raises(VitrailError, match="no classifier here"):
        load_classifier(tmp_path)


def test_the_nearest_image_of_an_image_is_itself(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "index")
    assert (
        main(["retrieve", "index", "--model", str(folder / "m"), "--images", str(folder / "photos"), "--out", index])
        == 0
    )
    capsys.readouterr()
    query = [str(folder / "photos/dark/0.png"), str(folder / "photos/bright/1.png")]
    page = tmp_path / "page.html"
    assert main(["retrieve", "query", "--index", index, "--k", "3", "--html", str(page), "--images", *query]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["key"] for row in rows[::3]] == ["dark/0.png", "bright/1.png"]
    assert all(float(row["cosine"]) > 0.999 for row in rows[::3])
    assert page.read_text().count("<img") == 8
    (tmp_path / "cut.png").write_bytes((folder / "photos/dark/0.png").read_bytes()[:99])
    for name, said in (("none.png", "cannot be read"), ("cut.png", "truncated|corrupt|damaged")):
        with pytest.raises(VitrailError, match=rf"^{tmp_path / name}: .*({said})"):
            main(["retrieve", "query", "--index", index, "--images", query[0], str(tmp_path / name)])
    with pytest.raises(VitrailError, match="no finished index here"):
        main(["retrieve", "query", "--index", str(tmp_path), "--images", *query])


def test_what_was_made_with_other_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    other, images = tmp_path / "other", str(folder / "photos")
    save_model(small_model(ffn="swiglu"), other)
    given = ["--model", str(folder / "m"), "--images", images]
    assert main(["retrieve", "index", *given, "--out", str(tmp_path / "index")]) == 0
    assert main(["classify", "fit", *given, "--out", str(tmp_path / "classes")]) == 0
    for command, made in (
        (["retrieve", "query", "--index", str(tmp_path / "index"), "--images", f"{images}/dark/0.png"], "index"),
        (["classify", "predict", "--classifier", str(tmp_path / "classes"), "--images", images], "classifier"),
    ):
        with pytest.raises(VitrailError, match=f"other: not the weights that this {made} was made with"):
            main([*command, "--model", str(other)])
