"""The parameters that pretraining and distillation share, section by section as in ``params/*/*.yaml``."""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from components.images.loader import LoaderParams
from components.input_paths import InputPath
from components.learning.augment import AugmentParams
from components.learning.collapse import CollapseParams
from components.learning.masks import MaskParams
from components.learning.objective import HeadsParams, ObjectiveParams
from components.learning.param_groups import ParamGroupParams
from components.learning.schedules import InitHeadsParams, ScheduleParams, compressed
from components.learning.vit import ViTConfig
from components.params import CHANGES, NEUTRAL, Seed, Strict, defaults, results
from components.training.checkpoints.identity import Identity
from components.training.checkpoints.resolution import HighResolutionParams
from components.training.probe_params import ProbeParams
from components.training.sharded.engine_params import EngineParams
from components.training.sharded.gram_teacher import GramParams


class RunParams(Strict):
    """How long, how much at a time, and what is kept on the way."""

    # optimizer steps; schedules are functions of it, so that a longer run is another one (see on_mismatch)
    iterations: Annotated[int, CHANGES] = Field(ge=1, le=10**12)
    # images a rank and micro-batch; the global batch is this x ranks x engine.accumulation, and another split of the
    # same global batch is the same run
    batch: Annotated[int, NEUTRAL] = Field(ge=1, le=1_000_000)
    # images a step that rates, momentum and length were chosen for: `plan` says so where ranks make another; null: any
    recipe_batch: Annotated[int | None, NEUTRAL] = Field(None, ge=1, le=1_000_000)
    # of a run resumed on other ranks: keep the images a step (batch changes, and must come out whole), or the batch
    global_batch: Annotated[Literal["keep", "follow"], NEUTRAL] = "keep"
    # that `run` starts on this machine where neither torchrun nor srun did; auto: one a GPU, one on a CPU
    processes: Annotated[Annotated[int, Field(ge=1, le=1_000_000)] | Literal["auto"], NEUTRAL] = "auto"
    seed: Annotated[Seed, CHANGES] = 0
    log_every: Annotated[int, NEUTRAL] = Field(10, ge=1, le=1_000_000)  # steps between two points of the curves
    checkpoint_every: Annotated[int, NEUTRAL] = Field(1000, ge=1, le=10**12)  # steps
    keep: Annotated[int, NEUTRAL] = Field(2, ge=1, le=1000)  # newest checkpoints kept
    keep_every: Annotated[int, NEUTRAL] = Field(
        0, ge=0, le=10**12
    )  # steps; checkpoints at multiples are kept for good; 0: none
    keep_state: Annotated[bool, NEUTRAL] = False  # keep the training state after the export
    # a checkpoint of other params or data: stop; continue with it under the new ones; set it aside and start afresh
    on_mismatch: Annotated[Literal["stop", "continue", "fresh"], NEUTRAL] = "stop"
    # minutes; state of less training than this is set aside without a question; 0: never
    disposable_minutes: Annotated[float, NEUTRAL] = Field(10.0, ge=0, le=1_000_000)
    threads: Annotated[int, NEUTRAL] = Field(0, ge=0, le=4096)  # of torch on a CPU; 0: as torch chooses
    # blocks by torch.compile: no gain on a CPU (docs/decisions.md); GPUs not measured
    compile: Annotated[bool, NEUTRAL] = False
    # compute blocks again in backward: less memory, a third more work, the same weights
    activation_checkpointing: Annotated[bool, NEUTRAL] = False


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
    # a model to start from, named as for every command (docs/using.md); null: from random weights. Its weights count,
    # not its name
    init: Annotated[InputPath | None, NEUTRAL] = None
    init_heads: InitHeadsParams | None = None  # train new heads on init's backbone first; null: init brings its own
    gram: GramParams | None = None  # hold patch similarities to an earlier average; null: not
    # a second phase on larger images; null: none. It changes nothing of the first, and has an identity of its own
    high_resolution: Annotated[HighResolutionParams | None, NEUTRAL] = None
    collapse: CollapseParams = CollapseParams()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        patch = self.vit.patch_size
        for name in ("global_size", "local_size"):
            size = getattr(self.augment, name)
            if size % patch:
                raise ValueError(f"augment.{name} {size} is no multiple of vit.patch_size {patch}")
        self.objective.check(self.heads)
        if self.gram is not None and self.objective.kind != "dino":
            raise ValueError("gram: of objective.kind: dino; set null")
        if self.high_resolution is not None:
            self.high_resolution.check(patch)
        if self.init_heads is not None and self.init is None:
            raise ValueError("init_heads: of a run that starts from a model; set init, too")
        if self.groups.frozen_blocks and self.init is None:
            raise ValueError("groups.frozen_blocks: of a run that starts from a model; set init, too")
        if self.groups.frozen_blocks >= self.vit.depth:
            raise ValueError(
                f"groups.frozen_blocks {self.groups.frozen_blocks}: must be below vit.depth {self.vit.depth}, or no "
                "block learns"
            )
        if self.init_heads is not None and self.init_heads.iterations >= self.run.iterations:
            raise ValueError(
                f"init_heads.iterations {self.init_heads.iterations}: must be below run.iterations "
                f"{self.run.iterations}, or the backbone never learns"
            )
        if self.gram is not None:
            self.gram.check(self.run.iterations, patch)
        if self.vit.in_channels != 3:
            raise ValueError("vit.in_channels must be 3: gray images are given as three equal channels")
        return self

    def patches_taught(self) -> float:
        """Mean share of the global crops' patches that the iBOT loss is on: those that masks hide."""
        if self.objective.kind == "contrastive":
            return 0.0
        return self.masks.probability * (self.masks.ratio_min + self.masks.ratio_max) / 2

    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches of a global crop."""
        side = self.augment.global_size // self.vit.patch_size
        return side, side

    def phases(self) -> list[Phase]:
        """The run, and its high-resolution phase as a run of its own that goes on counting where the first ends."""
        first = Phase("", self.model_copy(update={"high_resolution": None}), 0)
        larger = self.high_resolution
        if larger is None:
            return [first]
        # Put together of checked parts: gram's iterations, which are of the whole run, would not fit the phase alone.
        schedule = compressed(self.schedule, self.run.iterations, larger.iterations)
        rate = schedule.learning_rate.model_copy(update={"peak": larger.learning_rate})
        crops = {"global_size": larger.size, "local_size": larger.local_size or self.augment.local_size}
        run = {"iterations": larger.iterations, "batch": larger.batch or self.run.batch}
        gram = self.gram and self.gram.resolved(self.run.iterations)
        second = self.model_copy(
            update={
                "init": None,
                "init_heads": None,
                "high_resolution": None,
                "vit": self.vit.model_copy(update={"image_size": larger.size}),
                "augment": self.augment.model_copy(update=crops),
                "schedule": schedule.model_copy(update={"learning_rate": rate}),
                "engine": self.engine.model_copy(
                    update={"accumulation": larger.accumulation or self.engine.accumulation}
                ),
                "run": self.run.model_copy(update=run),
                "gram": gram and gram.model_copy(update={"size": larger.gram_size}),
            }
        )
        return [first, Phase("high-resolution", second, self.run.iterations)]

    def identity(self, data_digest: str, **inputs: str) -> Identity:
        """What the numbers of a run depend on: parameters that change results, and digests of all that it reads."""
        images = self.run.batch * self.engine.accumulation
        return Identity(results(self), {"data": data_digest, **inputs}, images, defaults(self))

    def fingerprint(self, data_digest: str, **inputs: str) -> str:
        """Of the identity."""
        return self.identity(data_digest, **inputs).fingerprint


class Phase(NamedTuple):
    """A part of a run with parameters of its own."""

    name: str  # "" of the first
    params: TrainingParams
    first: int  # steps trained before it

    @property
    def last(self) -> int:
        """Steps trained when it ends."""
        return self.first + self.params.run.iterations

    def stretches(self) -> list[tuple[int, int | None]]:
        """The phase cut where the loader's work changes: the step that each stretch ends at, and the size in pixels of
        the crops that it makes for a gram teacher (None: it makes none)."""
        gram = self.params.gram
        if gram is None or gram.size is None:
            return [(self.last, None)]
        start = int(gram.resolved(self.params.run.iterations).start)
        return [(start, None)] * (start > self.first) + [(self.last, gram.size)]
