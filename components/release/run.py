"""Models in and out, and what a finished model is used for.

python -m components.release import dinov2_vits14_reg4_pretrain.pth --out data/models/vits14_reg4
python -m components.release embed --model data/models/vits14_reg4 --images photos --out data/features
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from components.command_line import Many, Options, application, as_options, commands_of
from components.errors import VitrailError
from components.release.serve import commands as serve_commands
from components.release.use import commands
from components.release.use.options import NAMED, EmbedOptions, ModelOption

app = application("release", "Models in and out, and their use.", "components.release")
main = commands_of(app)


@app.command(name="import")
def import_(
    source: Annotated[str, Parameter(help=f"{NAMED}.")], /, *, out: Path, heads: int | None = None
) -> None:  # fmt: skip
    """Take a released model or a checkpoint in, as an export of ours.

    Args:
        out: Folder of the model.
        heads: Attention heads, if no config or known architecture states them.
    """
    from components.learning.export import CARD
    from components.release.weights.export import described, save_model
    from components.release.weights.load import load_model
    from components.release.weights.outputs import check_replaceable

    check_replaceable(out, CARD)  # before gigabytes are read
    model = load_model(source, heads=heads)
    save_model(model, out)
    print(f"{out}: {described(model)}")


@as_options
class ExportOptions:
    """Options of ``export``."""

    model: ModelOption
    to: Literal["safetensors", "huggingface", "official", "onnx", "torch-export"]
    """Layout."""
    out: Path
    """A folder; a file for official, onnx and torch-export."""
    image_size: int | None = None
    """huggingface: resample position embeddings to this size, in pixels."""
    licence: str = ""
    """safetensors: for the model card, such as apache-2.0."""
    scores: Path | None = None
    """safetensors: report of the benchmark, for the model card."""
    receipts: Many[Path] = ()
    """safetensors: reports of `forget` runs, for the model card."""


@app.command
def export(*, options: Options[ExportOptions]) -> None:
    """Write a model for others: safetensors, Hugging Face, Meta's layout, ONNX, torch.export."""
    from components.release.weights.load import load_model

    model, out = load_model(options.model), options.out
    if options.to == "safetensors":
        from components.release.weights.model_card import CardFacts, export_safetensors

        export_safetensors(model, out, CardFacts(options.licence, options.scores, options.model, options.receipts))
    elif options.to == "huggingface":
        from components.release.weights.writers import export_transformers

        print(export_transformers(model, out, options.image_size))
    elif options.to == "official":
        from components.release.weights.writers import export_official

        export_official(model, out)
    else:
        from components.release.weights import graphs

        (graphs.export_onnx if options.to == "onnx" else graphs.export_program)(model, out, keep=False)
    print(f"{out}: {options.to} of {model.card.kind} {model.card.preset}")


@as_options
class FeaturesOptions(EmbedOptions):
    """Options of ``embed``."""

    out: Path | None = None
    """Folder of the features. Without it, the features of one image are printed as JSON."""
    features: Many[Literal["cls", "mean", "patches"]] = ("cls",)
    """Class token, mean of the patches, every patch."""
    format: Literal["parquet", "npy"] = "parquet"
    """A table, or arrays."""


@app.command
def embed(*, options: Options[FeaturesOptions]) -> None:
    """Compute the features of images, as a table, arrays or JSON."""
    from components.release.use.embed import embed_all, embed_one

    spec = options.spec(options.features)
    if options.out is None:
        if not Path(options.images).is_file() or options.images.endswith((".tar", ".parquet")):
            raise VitrailError(f"{options.images}: give --out FOLDER; without it, --images names one image")
        print(json.dumps(embed_one(options.model, Path(options.images), spec, options.device)))
        return
    facts = embed_all(options.model, options.images, options.out, options.embedding(spec, options.format))
    refused = f", {facts['errors']} of them could not be used (column error says why)" if facts["errors"] else ""
    print(f"{options.out}: features of {facts['rows']} images{refused}")


for _more in (
    commands.pca,
    commands.attention,
    commands.classify,
    commands.retrieve,
    serve_commands.explore,
    serve_commands.register,
    serve_commands.serve,
    serve_commands.promote,
    serve_commands.rollback,
):
    app.command(_more)
