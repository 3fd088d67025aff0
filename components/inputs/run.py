"""The stage ``inputs`` of dvc.yaml, which always runs: digests of what parameters name.

python -m components.inputs run --out data/inputs

dvc.yaml can list the files that it knows. It cannot know a labelled Parquet file of params/benchmarks.yaml, a folder of
masks or of weights. So this stage writes a small file for each stage, with the digest of all that the stage's
parameters name; each stage depends on its own. Nothing named has changed: the files are the same, and nothing reruns.
"""

from __future__ import annotations

import json
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import VitrailError
from components.inputs.content import Contents
from components.inputs.named import named_inputs
from components.params import load_params
from components.pipeline import PipelineParams
from components.storage import StorageParams, atomic_dir

CACHE = Path("scratch/inputs.json")


app = application("inputs", "Digests of what parameters name.", "components.inputs")
main = commands_of(app)


@app.command
def run(*, params: Path = Path("params"), out: Path) -> None:
    """Write a file for each stage: digests of the files and folders that its parameters name.

    Args:
        params: Folder of the parameter files.
        out: Folder for the files.
    """
    write(params, out, CACHE)


def write(params: Path, out: Path, cache: Path) -> None:
    """Write ``out/STAGE.json`` for every stage: parameter -> path, and digest of what is there."""
    try:
        storage = load_params(params / "storage.yaml", StorageParams)
    except VitrailError:  # the stages that store say so themselves
        storage = StorageParams(root="data")
    stages = named_inputs(params, load_params(params / "pipeline.yaml", PipelineParams))
    with Contents(cache, storage) as contents, atomic_dir(out) as folder:
        for stage, named in stages.items():
            found = {key: {"path": path, "content": contents.digest(path)} for key, path in sorted(named.items())}
            (folder / f"{stage}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    count = len({path for named in stages.values() for path in named.values()})
    print(f"inputs: {count} files or folders named by parameters", flush=True)
