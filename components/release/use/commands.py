"""The commands that use a model: pictures, a classifier, retrieval."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Literal

from components.command_line import Many, Options, application, as_options
from components.errors import VitrailError
from components.release.use.options import EmbedOptions, ImagesOptions, ModelOption, files_of

classify = application("classify", "Fit a classifier on frozen features, and ask it.")
retrieve = application("retrieve", "Find the nearest images of a set.")


@as_options
class PictureOptions:
    """Options of ``pca`` and ``attention``."""

    model: ModelOption
    images: Many[str]
    """Image files, or one folder."""
    out: Path
    """PNG file."""
    size: int | None = None
    """Side in pixels of the square that images are resized to (default: the model's)."""
    device: str = "cpu"
    """cpu or cuda:N."""


def pca(*, options: Options[PictureOptions], background: bool = False, most: int = 16) -> None:
    """Show patch features as colours, as PNG.

    Args:
        background: Colour the background, too.
        most: Images of a folder that are shown.
    """
    from components.release.use.pictures import pca as components_of
    from components.release.use.pictures import pca_page, save_png
    from components.release.weights.load import load_model

    model = load_model(options.model, options.device, with_heads=False)
    files = files_of(options.images, most)
    save_png(pca_page(*components_of(model, files, options.size, not background)), options.out)
    print(f"{options.out}: {len(files)} images with the principal components of their patch features")


def attention(*, options: Options[PictureOptions]) -> None:
    """Show where the class token and the registers attend to, as PNG."""
    from components.release.use.pictures import attention as attention_of
    from components.release.use.pictures import attention_page, save_png
    from components.release.weights.load import load_model

    files = files_of(options.images, 2)
    if len(files) != 1:
        raise VitrailError(f"attention: {len(files)} images; give one")
    found = attention_of(load_model(options.model, options.device, with_heads=False), files[0], options.size)
    save_png(attention_page(found), options.out)
    for head, (patches, registers) in enumerate(zip(found.cls, found.cls_to_registers, strict=True)):
        shares = "".join(f", register {number} {share:.1%}" for number, share in enumerate(registers))
        print(f"head {head}: patches {patches.sum():.1%}{shares}, class token the rest")


@as_options
class FitOptions(EmbedOptions):
    """Options of ``classify fit``."""

    out: Path
    """Folder of the classifier."""
    label_column: str = "label"
    """Column of a table."""
    method: Literal["knn", "logistic"] = "logistic"
    """How classes are told apart."""
    k: int = 10
    """knn: neighbours that vote."""
    errors: int = 24
    """Worst errors shown in errors.png."""


@classify.command
def fit(*, options: Options[FitOptions]) -> None:
    """Fit a classifier to a folder with a sub-folder for each class, or to a table with labels."""
    from components.params import parse_params
    from components.release.use.classify import ClassifierParams, confusion_table
    from components.release.use.labelled import fit_folder

    params = parse_params({"method": options.method, "k": options.k}, ClassifierParams, "classify")
    classifier = fit_folder(
        options.model, options.images, options.out, options.embedding(options.spec()), params,
        (options.label_column, options.errors),
    )  # fmt: skip
    print(confusion_table(classifier.facts))
    print(f"{options.out}: a {params.method} classifier of {len(classifier.facts.classes)} classes")


@as_options
class PredictOptions(ImagesOptions):
    """Options of ``classify predict``."""

    classifier: Path
    """Folder of `classify fit`."""
    model: str | None = None
    """The model, if it was moved since."""
    out: Path | None = None
    """CSV file (default: standard output)."""


@classify.command
def predict(*, options: Options[PredictOptions]) -> None:
    """Write classes and their scores as CSV."""
    from components.release.use.labelled import predict as predictions
    from components.storage import atomic_file

    rows = predictions(
        options.classifier, options.images, options.places(), options.model, options.device, options.feature_cache
    )
    if options.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return
    count = -1
    with atomic_file(options.out, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow(row)
            count += 1
    print(f"{options.out}: classes of {count} images")


@retrieve.command
def index(*, out: Path, options: Options[EmbedOptions]) -> None:
    """Embed and index a set of images.

    Args:
        out: Folder of the index.
    """
    from components.neighbours.params import NeighbourParams
    from components.release.use.retrieve import build

    facts = build(options.model, options.images, out, options.embedding(options.spec()), NeighbourParams())
    print(f"{out}: an index of {facts['indexed']} images; {facts['errors']} could not be used")


@as_options
class QueryOptions:
    """Options of ``retrieve query``."""

    index: Path
    """Folder of `retrieve index`."""
    images: Many[str]
    """Image files, or one folder."""
    model: str | None = None
    """The model, if it was moved since."""
    k: int = 10
    """Neighbours of each image."""
    most: int = 100
    """Images of a folder that are asked for."""
    html: Path | None = None
    """A page with pictures."""
    device: str = "cpu"
    """cpu or cuda:N."""


@retrieve.command
def query(*, options: Options[QueryOptions]) -> None:
    """Show the nearest images, as CSV and as a page."""
    from components.release.use.retrieve import Index, page
    from components.release.weights.load import check_weights, load_model
    from components.storage import atomic_file

    if options.k < 1:
        raise VitrailError(f"--k {options.k}: one or more neighbours")
    near = Index(options.index)
    files = files_of(options.images, options.most)
    named = options.model or near.facts["model"]
    check_weights(named, near.facts["weights"], "this index")
    model = load_model(named, options.device, with_heads=False)
    found = near.query(model, files, options.k)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["query", "rank", "key", "cosine"])
    for file, hits in zip(files, found, strict=True):
        writer.writerows([str(file), rank + 1, hit.key, f"{hit.cosine:.4f}"] for rank, hit in enumerate(hits))
    if options.html is not None:
        with atomic_file(options.html, "w") as out:
            out.write(page(near, [(str(file), file) for file in files], found))
