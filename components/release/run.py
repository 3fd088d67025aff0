"""Models in and out, and what a finished model is used for.

python -m components.release import dinov2_vits14_reg4_pretrain.pth --out data/models/vits14_reg4
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog

NAMED = (
    "a file or folder, s3://bucket/key or https://...#sha256=HEX: our exports, Meta's released files, training "
    "checkpoints, Hugging Face folders, safetensors"
)


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and run the command it names; returns the exit code."""
    parser = argparse.ArgumentParser(prog=prog("components.release"), description="Models in and out, and their use.")
    commands = parser.add_subparsers(dest="command", required=True)
    _import_arguments(commands.add_parser("import", help="take a model in as an export of ours"))
    arguments = parser.parse_args(argv)
    return int(arguments.run(arguments))


def _import_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("source", help=NAMED)
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
