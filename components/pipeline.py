"""``params/pipeline.yaml``: what a workspace reproduces, read by the stages themselves.

No command of dvc.yaml contains a value of it, because a shell would read it: ``source: a b`` would be split and
``source: a; b`` run. The crawl stage reads its source here, and training stages are told their name by DVC, in a
variable of the environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field

from components.errors import VitrailError, nearest
from components.params import Strict, load_params

PIPELINE = Path("params/pipeline.yaml")
Preset = Annotated[str, Field(pattern=r"^\w[\w.-]*$", max_length=100)]  # a file's name below params/, and a folder's


class Student(Strict):
    """One distilled preset: the name of its teacher among the pretrained presets."""

    teacher: Preset


class PipelineParams(Strict):
    """``params/pipeline.yaml``: what this workspace reproduces. DVC's matrix reads the same file."""

    source: str = Field(min_length=1)
    pretrain: list[Preset] = Field(min_length=1)
    distill: dict[Preset, Student]


def load_pipeline(root: Path = Path()) -> PipelineParams:
    """``params/pipeline.yaml`` below ``root``."""
    return load_params(root / PIPELINE, PipelineParams)


def with_stage(argv: Sequence[str], root: Path = Path()) -> list[str]:
    """``argv`` with ``--stage pretrain@vitt`` written out: its params file, folder, report, and teacher if it has one.

    Raises:
        VitrailError: ``params/pipeline.yaml`` has no such stage.
    """
    if "--stage" not in argv:
        return list(argv)
    at = argv.index("--stage")
    stage = argv[at + 1].rpartition(":")[2] if at + 1 < len(argv) else ""
    family, _, preset = stage.partition("@")
    pipeline = load_pipeline(root)
    known = [f"pretrain@{name}" for name in pipeline.pretrain] + [f"distill@{name}" for name in pipeline.distill]
    if stage not in known:
        raise VitrailError(f"--stage {stage!r}: {PIPELINE} lists {', '.join(known)}{nearest(stage, known)}")
    written = [
        *("--params", f"params/{family}/{preset}.yaml", "--out", f"data/{family}/{preset}"),
        *("--report", f"reports/{family}-{preset}.json"),
    ]
    if family == "distill":
        written += ["--teacher", f"data/pretrain/{pipeline.distill[preset].teacher}"]
    return [*argv[:at], *written, *argv[at + 2 :]]
