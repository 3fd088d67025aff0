"""The commands that use a model: pictures, a classifier, retrieval; and the arguments that they share."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from components.errors import VitrailError
from components.executor import ExecutorParams, add_arguments

if TYPE_CHECKING:
    from components.release.embed import EmbedParams
    from components.release.features import FeatureSpec, Kind
    from components.release.images import Places

NAMED = (
    "a file or folder, s3://bucket/key, https://...#sha256=HEX or models:/name@alias: our exports, Meta's released "
    "files, training checkpoints, Hugging Face folders, safetensors"
)
Subparsers = Any


def add_source_arguments(command: argparse.ArgumentParser) -> None:
    """Model, images, their size, and where the work runs."""
    command.add_argument("--model", required=True, help=NAMED)
    add_image_arguments(command)
    command.add_argument("--workers", type=int, default=0, help="processes; 0: this one")
    command.add_argument("--part-rows", type=int, default=0, help="images a part; 0: 4096, or 512 with patches")
    add_arguments(command)


def add_image_arguments(command: argparse.ArgumentParser, required: bool = True) -> None:
    """Images, their size, and the device."""
    command.add_argument("--images", required=required, help="image, folder, .tar, manifest or table (.parquet), s3://")
    command.add_argument("--size", help="px of the square that images are resized to, or native; default: the model's")
    command.add_argument("--crop-to-patch", action="store_true", help="cut sides down to multiples of the patch")
    command.add_argument("--batch", type=int, default=32, help="images a forward pass")
    command.add_argument("--device", default="auto", help="auto, cpu, cuda (all GPUs in turn) or cuda:N")
    command.add_argument("--curated", type=Path, default=Path("data/curate"), help="shards of a manifest")
    command.add_argument("--storage", type=Path, default=Path("params/storage.yaml"))


def spec_of(arguments: argparse.Namespace, kinds: tuple[Kind, ...] = ("cls",)) -> FeatureSpec:
    """What the arguments say about features."""
    from components.params import parse_params
    from components.release.features import FeatureSpec

    size = arguments.size
    if size is not None and size != "native":
        if not size.isdigit() or not int(size):
            raise VitrailError(f"--size {size}: a number of pixels, or native")
        size = int(size)
    content = {"kinds": kinds, "size": size, "crop": arguments.crop_to_patch, "batch": arguments.batch}
    return parse_params(content, FeatureSpec, "embed")


def places_of(arguments: argparse.Namespace) -> Places:
    """Where a manifest's shards and S3 are."""
    from components.params import load_params
    from components.release.fetch import storage_params
    from components.release.images import Places
    from components.storage import StorageParams

    there = arguments.storage.is_file()
    return Places(arguments.curated, load_params(arguments.storage, StorageParams) if there else storage_params())


def embed_params(
    arguments: argparse.Namespace, spec: FeatureSpec, form: Literal["parquet", "npy"] = "parquet"
) -> EmbedParams:
    """How features are computed."""
    from components.release.embed import EmbedParams

    executor = ExecutorParams(kind=arguments.executor or "pool", workers=arguments.workers, address=arguments.address)
    return EmbedParams(spec, places_of(arguments), executor, arguments.device, form, arguments.part_rows)


def add_picture_arguments(subparsers: Subparsers) -> None:
    """``pca`` and ``attention``."""
    pca = subparsers.add_parser("pca", help="patch features as colours, as PNG")
    attention = subparsers.add_parser("attention", help="attention of the class token and registers, as PNG")
    for command in (pca, attention):
        command.add_argument("--model", required=True, help=NAMED)
        command.add_argument("--images", nargs="+", required=True, help="image files, or one folder")
        command.add_argument("--out", type=Path, required=True, help="PNG file")
        command.add_argument("--size", type=int, help="px of the square that images are resized to")
        command.add_argument("--device", default="cpu")
    pca.add_argument("--background", action="store_true", help="colour the background, too")
    pca.add_argument("--most", type=int, default=16, help="images of a folder that are shown")
    pca.set_defaults(run=_pca)
    attention.set_defaults(run=_attention)


def _files(named: list[str], most: int) -> list[Path]:
    """Image files: those named, or the first of a folder."""
    from components.web.kinds import IMAGE_SUFFIXES

    if len(named) == 1 and Path(named[0]).is_dir():
        inside = sorted(path for path in Path(named[0]).rglob("*") if path.name.lower().endswith(IMAGE_SUFFIXES))
        if not inside:
            raise VitrailError(f"{named[0]}: no images in this folder")
        return inside[:most]
    return [Path(each) for each in named]


def _pca(arguments: argparse.Namespace) -> int:
    from components.release.load import load_model
    from components.release.pictures import pca, pca_page, save_png

    model = load_model(arguments.model, arguments.device, with_heads=False)
    files = _files(arguments.images, arguments.most)
    save_png(pca_page(*pca(model, files, arguments.size, not arguments.background)), arguments.out)
    print(f"{arguments.out}: {len(files)} images with the principal components of their patch features")
    return 0


def _attention(arguments: argparse.Namespace) -> int:
    from components.release.load import load_model
    from components.release.pictures import attention, attention_page, save_png

    files = _files(arguments.images, 2)
    if len(files) != 1:
        raise VitrailError(f"attention: {len(files)} images; give one")
    found = attention(load_model(arguments.model, arguments.device, with_heads=False), files[0], arguments.size)
    save_png(attention_page(found), arguments.out)
    for head, (patches, registers) in enumerate(zip(found.cls, found.cls_to_registers, strict=True)):
        shares = "".join(f", register {number} {share:.1%}" for number, share in enumerate(registers))
        print(f"head {head}: patches {patches.sum():.1%}{shares}, class token the rest")
    return 0


def add_classify_arguments(subparsers: Subparsers) -> None:
    """``classify fit`` and ``classify predict``."""
    top = subparsers.add_parser("classify", help="a classifier on frozen features")
    commands = top.add_subparsers(dest="step", required=True)
    fit = commands.add_parser("fit", help="from a folder with a subfolder a class, or a table with labels")
    add_source_arguments(fit)
    fit.add_argument("--out", type=Path, required=True, help="folder of the classifier")
    fit.add_argument("--label-column", default="label", help="of a table")
    fit.add_argument("--method", choices=["knn", "logistic"], default="logistic")
    fit.add_argument("--k", type=int, default=10, help="neighbours that vote")
    fit.add_argument("--errors", type=int, default=24, help="worst errors shown in errors.png")
    fit.set_defaults(run=_fit)
    predict = commands.add_parser("predict", help="classes and their scores as CSV")
    predict.add_argument("--classifier", type=Path, required=True, help="folder of `classify fit`")
    predict.add_argument("--model", help="the model, where it is no more where it was")
    add_image_arguments(predict)
    predict.add_argument("--out", type=Path, help="CSV file; default: standard output")
    predict.set_defaults(run=_predict)


def _fit(arguments: argparse.Namespace) -> int:
    from components.params import parse_params
    from components.release.classify import ClassifierParams, confusion_table
    from components.release.labelled import fit_folder

    params = parse_params({"method": arguments.method, "k": arguments.k}, ClassifierParams, "classify")
    spec = spec_of(arguments)
    classifier = fit_folder(
        arguments.model, arguments.images, arguments.out, embed_params(arguments, spec), params,
        (arguments.label_column, arguments.errors),
    )  # fmt: skip
    print(confusion_table(classifier.facts))
    print(f"{arguments.out}: a {params.method} classifier of {len(classifier.facts.classes)} classes")
    return 0


def _predict(arguments: argparse.Namespace) -> int:
    from components.release.labelled import predict
    from components.storage import atomic_file

    rows = predict(arguments.classifier, arguments.images, places_of(arguments), arguments.model, arguments.device)
    if arguments.out is None:
        csv.writer(sys.stdout, lineterminator="\n").writerows(rows)
        return 0
    count = -1
    with atomic_file(arguments.out, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        for row in rows:
            writer.writerow(row)
            count += 1
    print(f"{arguments.out}: classes of {count} images")
    return 0


def add_retrieve_arguments(subparsers: Subparsers) -> None:
    """``retrieve index`` and ``retrieve query``."""
    top = subparsers.add_parser("retrieve", help="the nearest images of a set")
    commands = top.add_subparsers(dest="step", required=True)
    index = commands.add_parser("index", help="embed and index a set of images")
    add_source_arguments(index)
    index.add_argument("--out", type=Path, required=True, help="folder of the index")
    index.set_defaults(run=_index)
    query = commands.add_parser("query", help="the nearest images, as CSV and as a page")
    query.add_argument("--index", type=Path, required=True, help="folder of `retrieve index`")
    query.add_argument("--model", help="the model, where it is no more where it was")
    query.add_argument("--images", nargs="+", required=True, help="image files, or one folder")
    query.add_argument("--k", type=int, default=10)
    query.add_argument("--most", type=int, default=100, help="images of a folder that are asked for")
    query.add_argument("--html", type=Path, help="a page with pictures")
    query.add_argument("--device", default="cpu")
    query.set_defaults(run=_query)


def _index(arguments: argparse.Namespace) -> int:
    from components.neighbours.params import NeighbourParams
    from components.release.retrieve import build

    params = embed_params(arguments, spec_of(arguments))
    facts = build(arguments.model, arguments.images, arguments.out, params, NeighbourParams())
    print(f"{arguments.out}: an index of {facts['indexed']} images; {facts['errors']} could not be used")
    return 0


def _query(arguments: argparse.Namespace) -> int:
    from components.release.load import load_model
    from components.release.retrieve import Index, page
    from components.storage import atomic_file

    if arguments.k < 1:
        raise VitrailError(f"--k {arguments.k}: one or more neighbours")
    index = Index(arguments.index)
    files = _files(arguments.images, arguments.most)
    model = load_model(arguments.model or index.facts["model"], arguments.device, with_heads=False)
    found = index.query(model, files, arguments.k)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(["query", "rank", "key", "cosine"])
    for file, hits in zip(files, found, strict=True):
        writer.writerows([str(file), rank + 1, hit.key, f"{hit.cosine:.4f}"] for rank, hit in enumerate(hits))
    if arguments.html is not None:
        with atomic_file(arguments.html, "w") as out:
            out.write(page(index, [(str(file), file) for file in files], found))
    return 0
