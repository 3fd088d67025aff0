"""Why a training run does not learn: known causes, each looked for in the run's curves and parameters.

The rules are pure functions of a :class:`Record`. The levels they compare with are the recipe's (DINOv2, arXiv
2304.07193) or were met in runs of our own (docs/when-it-does-not-learn.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from components.learning.schedules import Schedules, iterations_of
from components.training.loop import Curves
from components.training.params import TrainingParams

FLAT = 0.99  # share of ln K: DINO's cross-entropy of a network that knows nothing about an image is 1
FROZEN = 0.1  # share of the run; the recipes freeze 0.002 of it
UNIFORM = 0.95  # entropy of a teacher's target, share of ln K; sound runs of vitt: 0.80 to 0.86
SMALL_RATE = 1e-4  # effective peak; the recipe: 2e-4 x sqrt(3072 / 1024) = 3.5e-4
RISE = 0.02  # of DINO's cross-entropy, share of ln K, from its lowest to the last
SKIPPED = 0.01  # share of all steps
LOW_SCALE = 16.0  # the first is 65,536; a scale as low leaves most of fp16's gradients at zero
PASSES = 800  # over the data; the published runs: 14 (DINOv2) to 800 (DINO on ImageNet-1k)
RANK, SPREAD, USAGE = 1.5, 0.05, 0.1  # those of `collapse:`
FEW = 64  # images in the contrastive loss of a step
MOVED = 1.0  # sum of 1 - momentum: the teacher has then gone 63 % of its way to a student that stands still


@dataclass(frozen=True)
class Record:
    """What is known of a run."""

    params: TrainingParams
    curves: Curves  # with one point at least
    rows: int | None = None  # images of the training set; None: not known

    @property
    def step(self) -> int:
        """The step of the last point."""
        return int(self.curves.points[-1]["step"])

    @property
    def batch(self) -> int:
        """Images a step, of all ranks."""
        return max(1, round(self.curves.images / max(self.step, 1)))

    @property
    def contrastive(self) -> bool:
        """Whether the objective has no prototypes and no teacher."""
        return self.params.objective.kind == "contrastive"

    def last(self, name: str) -> float:
        """The last value of a curve; NaN where it was not recorded."""
        return float(self.curves.points[-1].get(name, math.nan))

    def all(self, name: str) -> list[float]:
        """The values of a curve that are numbers."""
        return [value for point in self.curves.points if math.isfinite(value := float(point.get(name, math.nan)))]

    def schedules(self) -> Schedules:
        """The run's schedules, for its own batch."""
        return Schedules(self.params.schedule, self.params.run.iterations, self.batch)


@dataclass(frozen=True)
class Diagnosis:
    """One known cause: whether the record shows it, by what, and the value to change."""

    cause: str
    fits: bool
    evidence: str
    change: str


def falls(record: Record) -> str:
    """What the image-level loss has done so far, in one line."""
    values, contrastive = record.all("cross_entropy"), record.contrastive
    loss = "the contrastive loss" if contrastive else "DINO's loss"
    if not values:
        return f"the curves hold no cross_entropy: nothing is known about {loss}"
    said, whole = ("contrastive loss", "ln(other views)") if contrastive else ("DINO's cross-entropy", "ln K")
    said += f": {values[0]:.3f} at first, {values[-1]:.3f} after step {record.step} (share of {whole})"
    return f"{said}; it {'has not begun to fall' if values[-1] >= FLAT else 'falls'}"


def diagnose(record: Record) -> list[Diagnosis]:
    """A finding for every known cause; those that fit come first."""
    rules = CONTRASTIVE_RULES if record.contrastive else RULES
    return sorted((rule(record) for rule in rules), key=lambda finding: not finding.fits)


def _flat(record: Record) -> bool:
    values = record.all("cross_entropy")
    return bool(values) and values[-1] >= FLAT


def _too_early(record: Record) -> Diagnosis:
    warmup = iterations_of(record.params.schedule.learning_rate.warmup, record.params.run.iterations)
    return Diagnosis(
        "the run is too young",
        _flat(record) and record.step <= 2 * warmup,
        f"step {record.step}; the learning rate rises until step {warmup}",
        "wait until twice the warm-up",
    )


def _frozen(record: Record) -> Diagnosis:
    total = record.params.run.iterations
    frozen = iterations_of(record.params.schedule.freeze_last_layer, total)
    return Diagnosis(
        "the last layer is frozen",
        record.step <= frozen or frozen > FROZEN * total,
        f"frozen until step {frozen} of {total}; the run is at step {record.step}",
        f"schedule.freeze_last_layer: at most {FROZEN:g} of the run (the recipe: 0.002)",
    )


def _uniform_targets(record: Record) -> Diagnosis:
    entropy = record.last("target_entropy")
    peak = record.params.schedule.teacher_temperature.peak
    return Diagnosis(
        "the teacher's temperature is too high",
        entropy >= UNIFORM,
        f"a target's entropy is {entropy:.3f} of ln K; teacher_temperature.peak is {peak:g}",
        f"schedule.teacher_temperature.peak: {peak / 2:g}; also look at its start",
    )


def _prototypes(record: Record) -> Diagnosis:
    heads, total = record.params.heads, record.params.run.iterations
    count = heads.dino.prototypes
    return Diagnosis(
        "there are too many prototypes for so few steps",
        _flat(record) and count > total,
        f"{count:,} prototypes, {total:,} steps of {record.batch:,} images",
        f"heads.dino.prototypes: a power of two below {total:,} (the recipe: 131,072 for 625,000 steps; vitt: 256 for"
        " 600)",
    )


def _slow_teacher(record: Record) -> Diagnosis:
    schedules, total = record.schedules(), record.params.run.iterations
    moved = float((1 - schedules.momentum[total // 2 :]).sum())
    end = float(schedules.momentum[-1])
    return Diagnosis(
        "the teacher's momentum ends at 1 too soon",
        moved < MOVED,
        f"the momentum ends at {end:.4f}; in the second half of {total:,} steps the teacher goes "
        f"{1 - math.exp(-moved):.0%} of its way to the student",
        "schedule.momentum: a lower start and end (vitt: 0.98 to 0.995 for 600 steps), or a longer run",
    )


def _features(record: Record) -> Diagnosis:
    rank, spread = record.last("feature_rank"), record.last("feature_std")
    return Diagnosis(
        "features collapse: all images get one vector",
        rank <= RANK or spread <= SPREAD,
        f"effective rank {rank:.1f}, spread {spread:.3f}",
        "heads.dino.batch_norm: true; a lower schedule.learning_rate.peak"
        if record.contrastive
        else "objective.centering: sinkhorn; objective.koleo_weight: 0.1; a lower schedule.learning_rate.peak",
    )


def _usage(record: Record) -> Diagnosis:
    usage = record.last("prototype_usage")
    return Diagnosis(
        "prototypes collapse: all images get one target",
        usage <= USAGE,
        f"the mean target uses {usage:.3f} of ln K",
        "objective.centering: sinkhorn; a higher schedule.teacher_temperature.peak",
    )


def _repeats(record: Record) -> Diagnosis:
    if record.rows is None:
        return Diagnosis("images repeat too often", False, "not known; give --manifest", "")
    shown = record.curves.images
    passes = shown / record.rows
    return Diagnosis(
        "images repeat too often",
        passes > PASSES or record.rows < 2 * record.batch,
        f"{shown:,} images shown of {record.rows:,}: {passes:.1f} passes, in batches of {record.batch:,}",
        "more images (a lower dedup threshold, a wider retrieval), or fewer run.iterations",
    )


def _rate_too_high(record: Record) -> Diagnosis:
    values = record.all("cross_entropy")
    rise = values[-1] - min(values) if values else 0.0
    peak = float(record.schedules().learning_rate.max())
    broken = [point["step"] for point in record.curves.points if not math.isfinite(point.get("loss", 0.0))]
    return Diagnosis(
        "the learning rate is too high",
        bool(broken) or rise > RISE,
        f"effective peak {peak:.2g}; cross-entropy is {rise:.3f} above its lowest; "
        f"{len(broken)} points without a finite loss",
        f"schedule.learning_rate.peak: a third of {record.params.schedule.learning_rate.peak:g}; or a longer warm-up",
    )


def _rate_too_low(record: Record) -> Diagnosis:
    schedule = record.params.schedule
    peak = float(record.schedules().learning_rate.max())
    given = f"{schedule.learning_rate.peak:g} for {schedule.reference_batch:,}"
    rule = schedule.learning_rate_rule
    return Diagnosis(
        "the learning rate is too low",
        _flat(record) and peak < SMALL_RATE,
        f"effective peak {peak:.2g} for {record.batch:,} images a step (rule: {rule}"
        f"{'' if rule == 'none' else f', {given}'})",
        "schedule.learning_rate.peak, or schedule.learning_rate_rule: none",
    )


def _fp16(record: Record) -> Diagnosis:
    scales = record.all("loss_scale")
    scaled = bool(scales) and max(scales) > 1  # 1 throughout: bf16 or fp32
    share = record.curves.skipped / max(record.step, 1)
    lowest = min(scales) if scales else math.nan
    return Diagnosis(
        "fp16's range is too small for the losses or gradients",
        scaled and (lowest < LOW_SCALE or share > SKIPPED),
        f"loss scale {scales[-1]:g} (lowest {lowest:g}); {record.curves.skipped:,} of {record.step:,} steps skipped"
        if scaled
        else "no loss scaling in this run",
        "a lower schedule.learning_rate.peak; look for bad images in scratch/.../skipped; or engine.precision: bf16",
    )


RULES: tuple[Callable[[Record], Diagnosis], ...] = (
    _too_early,
    _frozen,
    _uniform_targets,
    _prototypes,
    _slow_teacher,
    _features,
    _usage,
    _repeats,
    _rate_too_high,
    _rate_too_low,
    _fp16,
)


def _few_negatives(record: Record) -> Diagnosis:
    images = record.batch // record.params.engine.accumulation
    return Diagnosis(
        "too few other images in a batch",
        _flat(record) and images < FEW,
        f"an image is told apart from {images - 1} others",
        f"run.batch: {FEW} or more; engine.accumulation adds none (SimCLR: 256 to 8,192)",
    )


def _no_batch_norm(record: Record) -> Diagnosis:
    return Diagnosis(
        "the head has no batch norm",
        _flat(record) and not record.params.heads.dino.batch_norm,
        f"heads.dino.batch_norm is {str(record.params.heads.dino.batch_norm).lower()}",
        "heads.dino.batch_norm: true (on CIFAR-10, 300 s: 41 % instead of 32 %)",
    )


# Without prototypes, a teacher's targets and their last layer, these causes remain.
CONTRASTIVE_RULES: tuple[Callable[[Record], Diagnosis], ...] = (
    _too_early,
    _few_negatives,
    _no_batch_norm,
    _slow_teacher,
    _features,
    _repeats,
    _rate_too_high,
    _rate_too_low,
    _fp16,
)


def told(record: Record) -> str:
    """The whole diagnosis, to read."""
    findings = diagnose(record)
    fitting = [finding for finding in findings if finding.fits]
    lines = [falls(record), "", "causes that fit:" if fitting else "none of the known causes fits."]
    for finding in fitting:
        lines += [f"  {finding.cause}", f"    seen:   {finding.evidence}", f"    change: {finding.change}"]
    lines += ["", "looked for and not found:"]
    lines += [f"  {finding.cause} ({finding.evidence})" for finding in findings if not finding.fits]
    return "\n".join(lines)
