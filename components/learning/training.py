"""The parameters that pretraining and distillation share, section by section as they stand in ``params/*/*.yaml``."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from components.images.loader import LoaderParams
from components.learning.augment import AugmentParams
from components.learning.engine import EngineParams
from components.learning.masks import MaskParams
from components.learning.objective import HeadsParams, ObjectiveParams
from components.learning.param_groups import ParamGroupParams
from components.learning.probe import ProbeParams
from components.learning.schedules import ScheduleParams
from components.learning.vit import ViTConfig
from components.params import Strict, fingerprint


class RunParams(Strict):
    """How long, how much at a time, and what is kept on the way."""

    iterations: int = Field(ge=1)  # optimizer steps
    batch: int = Field(ge=1)  # images a rank and micro-batch; the global batch is this x ranks x engine.accumulation
    seed: int = 0
    log_every: int = Field(10, ge=1)  # steps between two points of the curves
    checkpoint_every: int = Field(1000, ge=1)  # steps
    keep: int = Field(2, ge=1)  # newest checkpoints kept
    keep_every: int = Field(0, ge=0)  # steps; checkpoints at multiples are kept for good; 0: none
    keep_state: bool = False  # keep the training state after the export
    on_mismatch: Literal["fresh", "refuse"] = "fresh"  # a checkpoint of other params or data: set it aside, or stop
    threads: int = Field(0, ge=0)  # of torch on a CPU; 0: as torch chooses
    activation_checkpointing: bool = False  # compute blocks again in backward: less memory, a third more work


class TrainingParams(Strict):
    """Everything a training run depends on."""

    vit: ViTConfig
    heads: HeadsParams
    augment: AugmentParams
    masks: MaskParams = MaskParams()
    objective: ObjectiveParams = ObjectiveParams()
    schedule: ScheduleParams
    groups: ParamGroupParams = ParamGroupParams()
    engine: EngineParams = EngineParams()
    loader: LoaderParams = LoaderParams()
    run: RunParams
    probe: ProbeParams = ProbeParams()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        patch = self.vit.patch_size
        for name in ("global_size", "local_size"):
            size = getattr(self.augment, name)
            if size % patch:
                raise ValueError(f"augment.{name} {size} is no multiple of vit.patch_size {patch}")
        if self.vit.in_channels != 3:
            raise ValueError("vit.in_channels must be 3: gray images are given as three equal channels")
        return self

    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a global crop."""
        side = self.augment.global_size // self.vit.patch_size
        return side, side

    def fingerprint(self, data_digest: str, *more: str) -> str:
        """Of all that decides the numbers: device, logging and worker counts are left out."""
        content = self.model_dump(mode="json")
        for section, keys in VOLATILE.items():
            for key in keys:
                content[section].pop(key)
        del content["probe"]
        return fingerprint(content, data_digest, *more)


VOLATILE = {
    "run": ("log_every", "checkpoint_every", "keep", "keep_every", "keep_state", "on_mismatch", "threads"),
    "engine": ("device", "zero", "max_skipped"),
    "loader": ("workers", "prefetch"),
}
