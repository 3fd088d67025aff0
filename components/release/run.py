"""Models in and out, and what a finished model is used for.

python -m components.release import dinov2_vits14_reg4_pretrain.pth --out data/models/vits14_reg4
python -m components.release embed --model data/models/vits14_reg4 --images photos --out data/features
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.release import commands, serve_commands

FORMS = ("safetensors", "huggingface", "official", "onnx", "torch-export")


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the command it names; returns the exit code."""
    arguments = parser().parse_args(argv)
    return int(arguments.run(arguments))


def parser() -> argparse.ArgumentParser:
    """Of all commands; ``run`` of what it parses carries the command out."""
    parser = argparse.ArgumentParser(prog=prog("components.release"), description="Models in and out, and their use.")
    subparsers = parser.add_subparsers(dest="command", required=True)
    _import_arguments(subparsers.add_parser("import", help="take a model in as an export of ours"))
    _export_arguments(subparsers.add_parser("export", help="write a model in another layout"))
    _embed_arguments(subparsers.add_parser("embed", help="features of images, as a table, arrays or JSON"))
    commands.add_picture_arguments(subparsers)
    commands.add_classify_arguments(subparsers)
    commands.add_retrieve_arguments(subparsers)
    serve_commands.add_explore_arguments(subparsers)
    serve_commands.add_serve_arguments(subparsers)
    return parser


def _import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help=commands.NAMED)
    command.add_argument("--out", type=Path, required=True, help="folder of the model")
    command.add_argument("--heads", type=int, help="attention heads, where no config or known architecture tells")
    command.set_defaults(run=_import)


def _import(arguments: argparse.Namespace) -> int:
    from components.release.export import described, save_model
    from components.release.load import load_model

    model = load_model(arguments.source, heads=arguments.heads)
    save_model(model, arguments.out)
    print(f"{arguments.out}: {described(model)}")
    return 0


def _export_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("--model", required=True, help=commands.NAMED)
    command.add_argument("--to", choices=FORMS, required=True)
    command.add_argument("--out", type=Path, required=True, help="a folder; a file of official, onnx and torch-export")
    command.add_argument("--image-size", type=int, help="huggingface: resample position embeddings to this size, px")
    command.add_argument("--licence", default="", help="safetensors: for the model card, such as apache-2.0")
    command.add_argument("--scores", type=Path, help="safetensors: report of the benchmark, for the model card")
    command.add_argument("--receipts", type=Path, nargs="*", default=[], help="safetensors: reports of `forget` runs")
    command.set_defaults(run=_export)


def _export(arguments: argparse.Namespace) -> int:
    from components.release.load import load_model

    model, out = load_model(arguments.model), arguments.out
    if arguments.to == "safetensors":
        from components.release.model_card import CardFacts, export_safetensors

        export_safetensors(
            model, out, CardFacts(arguments.licence, arguments.scores, arguments.model, tuple(arguments.receipts))
        )
    elif arguments.to == "huggingface":
        from components.release.writers import export_transformers

        print(export_transformers(model, out, arguments.image_size))
    elif arguments.to == "official":
        from components.release.writers import export_official

        export_official(model, out)
    else:
        from components.release import graphs

        (graphs.export_onnx if arguments.to == "onnx" else graphs.export_program)(model, out)
    print(f"{out}: {arguments.to} of {model.card.kind} {model.card.preset}")
    return 0


def _embed_arguments(command: argparse.ArgumentParser) -> None:
    commands.add_source_arguments(command)
    command.add_argument("--out", type=Path, help="folder of the features; without it, JSON of one image is printed")
    kinds = ("cls", "mean", "patches")
    command.add_argument("--features", nargs="+", choices=kinds, default=["cls"], help="default: cls")
    command.add_argument("--format", choices=["parquet", "npy"], default="parquet")
    command.set_defaults(run=_embed)


def _embed(arguments: argparse.Namespace) -> int:
    from components.errors import VitrailError
    from components.release.embed import embed_all, embed_one

    spec = commands.spec_of(arguments, tuple(arguments.features))
    if arguments.out is None:
        if not Path(arguments.images).is_file() or arguments.images.endswith((".tar", ".parquet")):
            raise VitrailError(f"{arguments.images}: give --out FOLDER; without it, --images names one image")
        print(json.dumps(embed_one(arguments.model, Path(arguments.images), spec, arguments.device)))
        return 0
    facts = embed_all(
        arguments.model, arguments.images, arguments.out, commands.embed_params(arguments, spec, arguments.format)
    )
    refused = f", {facts['errors']} of them could not be used (column error says why)" if facts["errors"] else ""
    print(f"{arguments.out}: features of {facts['rows']} images{refused}")
    return 0
