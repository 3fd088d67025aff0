"""``params/pipeline.yaml``: what a workspace reproduces, read by the stages themselves.

No command of dvc.yaml contains a value of it, because a shell would read it: ``source: a b`` would be split and
``source: a; b`` run. The crawl stage reads its source here, and training stages are told their name by DVC, in a
variable of the environment.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from components.errors import VitrailError, nearest
from components.params import Strict, load_params

PIPELINE = Path("params/pipeline.yaml")
Preset = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]  # a file's name below params/, and a folder's


class Student(Strict):
    """One distilled preset: the name of its teacher among the pretrained presets."""

    teacher: Preset


class Continued(Strict):
    """One preset below params/continue/: the model that it goes on from, which takes the place of its ``init``."""

    start: str = Field(min_length=1)  # file or folder of a model, here or on S3: DVC watches it

    @field_validator("start")
    @classmethod
    def _is_watched(cls, start: str) -> str:
        if not is_watched(start):
            raise ValueError(
                f"{start}: DVC watches a file or folder, here or on S3; run: "
                f"vitrail import {shlex.quote(start)} --out data/models/NAME, and set start: data/models/NAME"
            )
        return start


def is_watched(model: str) -> bool:
    """Whether DVC can watch the model of that name: a path, or an object on S3; no URL and no name of the registry."""
    return model.startswith("s3://") or not (re.match(r"\w+:/", model) or "#sha256=" in model)


class PipelineParams(Strict):
    """``params/pipeline.yaml``: what this workspace reproduces. DVC's matrix reads the same file."""

    source: str = Field(min_length=1)
    pretrain: list[Preset] = Field(min_length=1)
    continued: dict[Preset, Continued] = {}
    distill: dict[Preset, Student]


def load_pipeline(root: Path = Path()) -> PipelineParams:
    """``params/pipeline.yaml`` below ``root``."""
    return load_params(root / PIPELINE, PipelineParams)


def with_stage(argv: Sequence[str], root: Path = Path()) -> list[str]:
    """``argv`` with ``--stage pretrain@vitt`` written out: params file, folder, report, and the models it reads.

    ``continue@vitt`` trains on from a model, ``gain@vitt`` is the benchmark of that model and of the one that came
    of it.

    Raises:
        VitrailError: ``params/pipeline.yaml`` has no such stage.
    """
    if "--stage" not in argv:
        return list(argv)
    at = argv.index("--stage")
    stage = argv[at + 1].rpartition(":")[2] if at + 1 < len(argv) else ""
    family, _, preset = stage.partition("@")
    pipeline = load_pipeline(root)
    families = {
        "pretrain": pipeline.pretrain,
        "continue": pipeline.continued,
        "gain": pipeline.continued,
        "distill": pipeline.distill,
    }
    known = [f"{name}@{each}" for name, presets in families.items() for each in presets]
    if stage not in known:
        raise VitrailError(f"--stage {stage!r}: {PIPELINE} lists {', '.join(known)}{nearest(stage, known)}")
    params = "params/benchmark.yaml" if family == "gain" else f"params/{family}/{preset}.yaml"
    written = [
        *("--params", params, "--out", f"data/{family}/{preset}"),
        *("--report", f"reports/{family}-{preset}.json"),
    ]
    if family == "continue":  # a preset of that name may be in training, too: the state lies elsewhere
        start = json.dumps(pipeline.continued[preset].start)
        written += ["--set", f"init={start}", "--scratch", f"scratch/{family}"]
    if family == "gain":
        written += ["--checkpoints", pipeline.continued[preset].start, f"data/continue/{preset}"]
    if family == "distill":
        written += ["--teacher", f"data/pretrain/{pipeline.distill[preset].teacher}"]
    return [*argv[:at], *written, *argv[at + 2 :]]
