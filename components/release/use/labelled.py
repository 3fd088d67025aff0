"""Labelled images to a classifier, and a classifier's answers: the files around ``classify.py``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from components.errors import VitrailError, nearest
from components.evaluation.features.extract import square
from components.images.decode import DecodeError
from components.release.use.classify import (
    FACTS,
    Classifier,
    ClassifierParams,
    Rows,
    fit_classifier,
    load_classifier,
    worst_errors,
)
from components.release.use.embed import EmbedParams, embed_all
from components.release.use.features import FeatureSpec, ImageFeatures, embed, pixels
from components.release.use.images import Places, SourcePart, parts_of, read_part, single
from components.release.use.kept_features import embed_kept
from components.release.use.pictures import save_png, tiled
from components.release.weights.fetch import pinned
from components.release.weights.load import check_weights, load_model
from components.release.weights.outputs import check_replaceable
from components.storage import StorageParams

SHOWN = 112  # px of a picture of the worst errors
ERRORS_PICTURE = "errors.png"


def fit_folder(
    model: str, images: str, out: Path, embedding: EmbedParams, params: ClassifierParams, shown: tuple[str, int]
) -> Classifier:
    """Fit a classifier on ``images`` and write it to the folder ``out``, with a picture of the worst errors.

    Args:
        images: a folder with a subfolder a class, or a Parquet table with a column of labels.
        shown: the column of labels of a table, and how many errors the picture shows.

    Raises:
        VitrailError: no labels, fewer than two classes, or a class with one image.
    """
    column, most = shown
    check_replaceable(out, FACTS)
    model = str(pinned(model))
    labels = _labels(images, column, embedding)
    features, rows, weights = _features(model, images, out, embedding)
    chosen = [labels[row] for row in rows]
    classifier = fit_classifier(features, chosen, params, model, embedding.spec.model_dump(mode="json"), weights)
    classifier.save(out)
    if wrong := worst_errors(classifier, chosen, most):
        parts = parts_of(images, embedding.part_rows or 4096, embedding.places)
        pictures = [_titled(classifier, chosen, place, parts, rows, embedding.places.storage) for place in wrong]
        save_png(tiled([pictures[start : start + 6] for start in range(0, len(pictures), 6)]), out / ERRORS_PICTURE)
    return classifier


def predict(
    folder: Path, images: str, places: Places, model: str | None, device: str, kept: Path | None = None
) -> Iterator[list[Any]]:
    """Rows of a table: key, class, score, a score a class, error; the first row names them.

    Args:
        kept: folder of the feature store.
    """
    classifier = load_classifier(folder)
    facts = classifier.facts
    spec = FeatureSpec(**facts.spec)
    loaded = load_model(model or facts.model, device, with_heads=False)
    if facts.weights:
        check_weights(model or facts.model, facts.weights, "this classifier")
    yield ["key", "class", "score", *facts.classes, "error"]
    for part in parts_of(images, 4096, places):
        encoded = read_part(part, places.storage)
        rows = embed(loaded, encoded, spec) if kept is None else embed_kept(loaded, encoded, spec, kept)
        while batch := list(islice(rows, 256)):
            yield from _answers(classifier, batch)


def _answers(classifier: Classifier, batch: Sequence[ImageFeatures]) -> Iterator[list[Any]]:
    good = [row.cls for row in batch if row.cls is not None]
    scores = iter(classifier.scores(np.stack(good)) if good else np.empty((0, 0), np.float32))
    classes = classifier.facts.classes
    for row in batch:
        if row.cls is None:
            yield [row.key, "", "", *[""] * len(classes), row.error]
            continue
        found = next(scores)
        best = int(found.argmax())
        yield [row.key, classes[best], f"{found[best]:.4f}", *(f"{score:.4f}" for score in found), ""]


def _features(model: str, images: str, out: Path, embedding: EmbedParams) -> tuple[Rows, list[int], Mapping[str, str]]:
    """Class tokens of the images that have some, their rows of the source, and digests of the model's weights."""
    import shutil

    import pyarrow.parquet as pq

    aside = out.with_name(f".{out.name}.features")
    facts = embed_all(model, images, aside, replace(embedding, form="parquet"))
    table = pq.read_table(sorted(aside.glob("part-*.parquet")), columns=["error", "cls"])
    rows = [row for row, error in enumerate(table["error"].to_pylist()) if not error]
    values = table.take(rows)["cls"].combine_chunks()
    features = np.array(values.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(max(len(rows), 1), -1)
    shutil.rmtree(aside)
    return features, rows, facts["weights"]


def labels_of(images: str, column: str, parts: Sequence[SourcePart]) -> list[str] | None:
    """The label of each image of the source, in its order, where it has labels: a column, or a subfolder a class."""
    import pyarrow.parquet as pq

    path = Path(images)
    if path.suffix == ".parquet" and path.is_file():
        if column not in pq.read_schema(path).names:
            return None
        labels = pq.read_table(path, columns=[column])[column].to_pylist()
        return ["" if label is None else str(label) for label in labels]
    if any(part.kind != "files" for part in parts):
        return None
    return [key.partition("/")[0] if "/" in key else "" for part in parts for key in part.names]


def _labels(images: str, column: str, embedding: EmbedParams) -> list[str]:
    """The label of each image of the source, in its order."""
    import pyarrow.parquet as pq

    path = Path(images)
    if path.suffix == ".parquet":
        names = pq.read_schema(path).names
        if column not in names:
            raise VitrailError(f"{path}: no column {column!r}{nearest(column, names)}; --label-column names another")
        labels = pq.read_table(path, columns=[column])[column].to_pylist()
        if None in labels:
            raise VitrailError(f"{path}: row {labels.index(None)} has no {column!r}; fill it in, or take the row out")
        return [str(label) for label in labels]
    parts = parts_of(images, embedding.part_rows or 4096, embedding.places)
    keys = [key for part in parts for key in part.names]
    if loose := [key for key in keys if "/" not in key]:
        raise VitrailError(f"{images}: {loose[0]} is in no class; a subfolder is wanted for each class")
    return [key.partition("/")[0] for key in keys]


def _titled(
    classifier: Classifier,
    labels: Sequence[str],
    place: int,
    parts: Sequence[SourcePart],
    rows: Sequence[int],
    storage: StorageParams,
) -> Any:
    """An image that was taken for another class, with both names and the score below."""
    from PIL import Image, ImageDraw

    assert classifier.held_out is not None
    scores = classifier.held_out[place]
    taken = int(scores.argmax())
    canvas = Image.new("RGB", (SHOWN, SHOWN + 28), "white")
    [(_, data)] = read_part(single(parts, rows[place]), storage)
    if not isinstance(data, VitrailError):
        with contextlib.suppress(DecodeError):  # a file that changed meanwhile: the text is shown all the same
            canvas.paste(Image.fromarray(square(pixels(data), SHOWN)), (0, 0))
    draw = ImageDraw.Draw(canvas)
    draw.text((2, SHOWN + 1), f"is {labels[place]}"[:22], fill="black")
    draw.text((2, SHOWN + 14), f"{classifier.facts.classes[taken]} {scores[taken]:.0%}"[:22], fill="red")
    return np.asarray(canvas)
