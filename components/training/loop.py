"""The training loop of every method: schedules, micro-batches, moving average, curves, checkpoints, clean stops.

A step's randomness is drawn from (seed, step, micro-batch, rank) alone, so that a resumed run needs no generator's
state to go on bit by bit.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from components.errors import VitrailError
from components.images.loader import Loader
from components.learning.collapse import Detector
from components.learning.collate import Crops, normalize_crops
from components.learning.losses.contrastive import chance_level
from components.learning.objective import Centering, Losses
from components.learning.schedules import Schedules, StepValues
from components.progress import Progress
from components.training.checkpoints.checkpoint import Checkpoint, Checkpoints
from components.training.checkpoints.identity import IMAGES
from components.training.guard import GuardParams, fall_of_knn, require_no_fall
from components.training.params import TrainingParams
from components.training.ranks.distributed import World, anywhere, gather_objects, sum_
from components.training.ranks.signals import Signals
from components.training.ranks.watch import Stopped, watched
from components.training.sharded.engine import Engine, StepReport
from components.training.sharded.gram_teacher import GramTeacher


class Learner(Protocol):
    """A method: who teaches, what the student is shown, which losses result."""

    engine: Engine
    centering: Centering
    gram: GramTeacher | None

    def losses(
        self, crops: Crops, values: StepValues, generator: np.random.Generator, detail: bool
    ) -> tuple[Losses, dict[str, Tensor]]:
        """The losses of a micro-batch; with ``detail``, also figures for the curves."""

    def seed_step(self, seed: int) -> None:
        """Start whatever the networks draw at random anew."""


class Observer(Protocol):
    """What is told of a run; called on every rank, and must do the same collectives on each."""

    def begin(self) -> Mapping[str, float]:
        """Score the network before its first step."""

    def point(self, step: int, figures: Mapping[str, float]) -> None:
        """A point of the curves."""

    def probe(self, step: int) -> Mapping[str, float]:
        """Score the averaged network after ``step`` steps."""


@dataclass
class Curves:
    """The curves of a run, kept with its checkpoints."""

    points: list[dict[str, float]] = field(default_factory=list)
    probes: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0
    images: int = 0  # shown, by all ranks
    seconds: float = 0.0  # training time, over all resumptions
    changes: list[dict[str, Any]] = field(default_factory=list)  # step from which on, and what differs, when continued


def step_seed(seed: int, step: int, micro: int, rank: int) -> int:
    """A 63-bit seed of its own for every step, micro-batch and rank."""
    return int(np.random.SeedSequence([seed, step, micro, rank]).generate_state(1, np.uint64)[0] >> 1)


@dataclass(frozen=True)
class Stretch:
    """Which steps of a run one call of :func:`train` trains, and what it goes on from."""

    label: str  # of the progress line
    scratch: Path  # the keys of the images of skipped steps go to skipped/ in this folder
    # Steps trained in an earlier phase: steps are counted, saved and recorded from there on, schedules begin anew.
    first: int = 0
    curves: Curves | None = None  # of the earlier phase, to go on from
    until: int | None = None  # end, with a checkpoint, after this step already, for another call to go on
    # Steps of the whole run, which the progress line counts to, and before which a signal ends it; None: this phase's
    total: int | None = None


def train(
    learner: Learner,
    loader: Loader,
    params: TrainingParams,
    checkpoints: Checkpoints,
    observer: Observer,
    stretch: Stretch,
) -> Curves:
    """Train for ``params.run.iterations`` steps, from the newest good checkpoint if there is one.

    Raises:
        Stopped: a signal came; a checkpoint was written first.
        VitrailError: training diverged or collapsed, data or disk failed, or another rank was lost.
    """
    run, engine, world = params.run, learner.engine, learner.engine.world
    label, first = stretch.label, stretch.first
    images = run.batch * world.size * params.engine.accumulation  # a step
    schedules = Schedules(params.schedule, run.iterations, images, params.init_heads)
    last = min(first + run.iterations, stretch.until or first + run.iterations)
    total = stretch.total or first + run.iterations
    probes = {first + at for at in params.probe.steps(run.iterations)}
    window, detector = _Window(world, params), Detector(params.collapse, run.iterations, first)
    state = _State(learner, loader, checkpoints, window, detector, stretch.curves or Curves())
    step, due = state.resume(first, first + run.iterations)
    curves = state.curves
    if step == 0 and probes:
        _note(curves, step, observer.begin(), params.probe.guard, world)
    if due:  # the stop came before it
        _note(curves, step, observer.probe(step), params.probe.guard, world)
        if step == last:  # nothing is saved any more that would hold its scores
            state.save(step, images)
    progress = Progress(label, total, unit="steps", out=None if world.main else io.StringIO(), start=step)
    window.begin(step)
    skips = stretch.scratch / "skipped" / f"{re.sub(r'[^A-Za-z0-9_]+', '-', label)}-rank-{world.rank:05d}.jsonl"
    saved = step
    # The loader is closed before anything is said of a stop: what its workers print on their way out comes first.
    # Signals are noted until the end: when a rank is lost, its launcher ends the others while they look which it was.
    with (
        Signals() as signals,
        watched(world, params.engine.silence, checkpoints.folder) as watch,
        contextlib.closing(iter(loader)) as batches,
    ):
        while step < last:
            started = time.monotonic()
            watch.step = step
            values = schedules.at(step - first)
            if learner.gram is not None:
                learner.gram.before(step)
            engine.set_rates(
                values.learning_rate, values.weight_decay, values.last_layer_learning_rate, values.backbone_share
            )
            detail = (step + 1) % run.log_every == 0 or step + 1 == last
            shown: list[tuple[list[str], Losses]] = []
            for micro in range(params.engine.accumulation):
                batch = next(batches)
                crops = normalize_crops(batch.data, params.augment, world.device)
                seed = step_seed(run.seed, step, micro, world.rank)
                learner.seed_step(seed)
                found, figures = learner.losses(crops, values, np.random.default_rng(seed), detail)
                engine.backward(found.total)
                shown.append((batch.keys, found))
                if micro + 1 < params.engine.accumulation:
                    engine.micro_step()
            report = engine.step()
            if report.skipped:
                curves.skipped += 1
                _tell_skipped(step, report, shown, skips, world)
                engine.require_progress()
            else:
                engine.ema.update(values.momentum)
                window.add([found for _, found in shown], figures)
            step += 1
            curves.images += images
            curves.seconds += time.monotonic() - started
            if detail:
                point = window.close(step, values, report, images)
                curves.points.append(point)
                observer.point(step, point)
                line = detector.look(step, point)
                if line and world.main:
                    print(line, file=sys.stderr, flush=True)
            progress.advance(1, window.note)
            due, stop = step in probes, anywhere(bool(signals.name), world.device)
            # Before a probe, which can fail in many ways: no step that was trained is lost by one.
            if stop or due or step % run.checkpoint_every == 0 or step == last:
                state.save(step, images, due)
                saved = step
            # A probe takes minutes, and a run that was told to end may not have them: the next start does it.
            if due and not stop:
                asked = time.monotonic()
                _note(curves, step, observer.probe(step), params.probe.guard, world)
                window.leave_out(time.monotonic() - asked)
                due, stop = False, anywhere(bool(signals.name), world.device)
                if stop or step == last:  # else a later checkpoint holds its scores
                    state.save(step, images)
            if stop and (due or step < total):
                by = signals.name or "a signal to another rank"
                raise Stopped(
                    f"{label}: stopped by {by} after step {saved}; the checkpoint is in {checkpoints.folder}: "
                    "run the same command again to resume"
                )
    progress.close(window.note)
    return curves


def _note(curves: Curves, step: int, scores: Mapping[str, float], guard: GuardParams, world: World) -> None:
    """Keep a probe's scores, which the first rank alone has; all ranks heed its guard.

    Raises:
        VitrailError: kNN fell too far, and the guard is to stop the run.
    """
    if scores:
        curves.probes.append({"step": step, **scores})
    line = str(gather_objects(fall_of_knn(curves.probes, guard) if scores else "")[0])
    require_no_fall(line, guard)
    if line and world.main:
        print(f"warning: {line}", file=sys.stderr, flush=True)


@dataclass
class _State:
    """All that a checkpoint holds: read back at the start of a stretch, saved while it is trained."""

    learner: Learner
    loader: Loader
    checkpoints: Checkpoints
    window: _Window
    detector: Detector
    curves: Curves

    def resume(self, first: int, last: int) -> tuple[int, bool]:
        """Take over the newest checkpoint; the step to go on from, and whether its probe is still to be made.

        A checkpoint of a later stretch of the same phase, which ends at ``last``, is as good.
        """
        learner, checkpoints, world = self.learner, self.checkpoints, self.learner.engine.world
        lengths = {name: shard.numel() for name, shard in learner.engine.ema.state().items()}
        state = checkpoints.load(lengths)
        if state is None:
            return first, False
        if state.step > last:
            raise VitrailError(
                f"{checkpoints.folder}: trained {state.step} steps already, of {last} that run.iterations asks for; "
                "raise run.iterations, or set run.on_mismatch: fresh to start anew"
            )
        learner.engine.load(state.shards, state.shared["engine"])
        if learner.gram is not None:
            learner.gram.load(state.shards)
        self.loader.load_state_dict(_place_in_data(state, self.loader))
        for name, center in state.whole.items():
            learner.centering.centers[name] = center.to(world.device)
        self.window.load(state.shared.get("window", self.window.state()))  # older checkpoints have none of these
        self.detector.load(state.shared.get("collapse", self.detector.state()))
        if world.main:
            print(f"resuming after step {state.step} from {checkpoints.folder}", file=sys.stderr, flush=True)
        self.curves = Curves(**state.shared["curves"])
        changed = state.changes | {name: value for name, value in checkpoints.changes.items() if name == IMAGES}
        if changed:
            told = {"after_step": state.step, "changes": {k: list(v) for k, v in changed.items()}}
            self.curves.changes.append(told)
        return state.step, bool(state.shared.get("probe_due"))

    def save(self, step: int, images: int, probe_due: bool = False) -> None:
        """Write a checkpoint after ``step`` steps of ``images`` each."""
        learner = self.learner
        shards, rest = learner.engine.state()
        if learner.gram is not None:
            shards |= learner.gram.state()
        shared = {
            "engine": rest,
            "loader": self.loader.state_dict(),
            "curves": vars(self.curves),
            "global_batch": images,
            "window": self.window.state(),
            "collapse": self.detector.state(),
            "probe_due": probe_due,
        }
        self.checkpoints.save(Checkpoint(step, shards, shared, dict(learner.centering.centers)))


def _place_in_data(state: Checkpoint, loader: Loader) -> dict[str, int]:
    """Where the stream goes on: at its place, or, in other data or another order, with the next pass."""
    place, own = dict(state.shared["loader"]), loader.state_dict()
    if not {"data", "run.seed", "loader.block"} & state.changes.keys():
        return place
    return own | {"epoch": place["epoch"] + 1, "position": 0, "consumed": place["consumed"]}


def _tell_skipped(
    step: int, report: StepReport, shown: list[tuple[list[str], Losses]], record: Path, world: World
) -> None:
    """Say that a step was skipped, and append the keys of its images to ``record``, a JSON object a line.

    Where losses were not finite, only ranks and micro-batches that had such a loss speak and record; where only the sum
    of the gradients was not, any image may be at fault: every rank records its own, and rank 0 speaks.
    """
    bad = [] if not report.bad_losses else [(k, f) for k, f in shown if not bool(torch.isfinite(f.total.detach()))]
    if report.bad_losses and not bad:
        return
    keys = [key for batch, _ in bad or shown for key in batch]
    terms = sorted({name for _, found in bad for name, term in found.terms.items() if not bool(torch.isfinite(term))})
    what = f"non-finite {', '.join(terms) or 'loss'}" if bad else "non-finite gradients"
    record.parent.mkdir(parents=True, exist_ok=True)
    with open(record, "a") as file:
        entry = {"step": step + 1, "rank": world.rank, "reason": what, "loss_scale": report.loss_scale, "keys": keys}
        file.write(json.dumps(entry) + "\n")
    if bad or world.main:
        print(
            f"step {step + 1}, rank {world.rank}: {what}, step skipped (loss scale now {report.loss_scale:g}); images "
            f"{', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}, all of them in {record}",
            file=sys.stderr,
            flush=True,
        )


def _chance(world: World, params: TrainingParams) -> float:
    """What the image-level terms sum to where nothing is learned: DINO's weight times ln K, or ln(other views)."""
    if params.objective.kind == "contrastive":
        return chance_level((2 + params.augment.locals) * params.run.batch * world.size)
    return params.objective.dino_weight * math.log(params.heads.dino.prototypes)


class _Window:
    """Means over the steps since the last point, without those that were skipped."""

    def __init__(self, world: World, params: TrainingParams) -> None:
        self.note = ""
        self._chance = _chance(world, params)
        self._world = world
        self._sums: dict[str, Tensor] = {}
        self._micro = 0
        self._figures: dict[str, Tensor] = {}
        self.begin(0)

    def begin(self, step: int) -> None:
        """Rates count from here on, ``step`` steps into the run."""
        self._steps_from, self._since = step, time.monotonic()

    def state(self) -> dict[str, Any]:
        """For a checkpoint between two points: every rank's sums, and of how many micro-batches. A collective."""
        sums = {name: float(value) for name, value in self._sums.items()}
        return {"sums": gather_objects(sums), "micro": self._micro}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` gave; ranks of another number share what there was."""
        ranks, size = state["sums"], self._world.size
        if len(ranks) == size:
            own = ranks[self._world.rank]
        else:
            own = {name: math.fsum(sums[name] for sums in ranks) / len(ranks) for name in ranks[0]}
        self._sums = {name: torch.tensor(value, device=self._world.device) for name, value in own.items()}
        self._micro = int(state["micro"])

    def add(self, step: list[Losses], figures: Mapping[str, Tensor]) -> None:
        """Take a step's losses, one a micro-batch, and the figures of its last micro-batch."""
        for found in step:
            for name, term in {"loss": found.total, **found.terms}.items():
                value = term.detach().float()
                self._sums[name] = self._sums[name] + value if name in self._sums else value
            self._micro += 1
        self._figures = dict(figures)

    def leave_out(self, seconds: float) -> None:
        """Time that was not spent on training."""
        self._since += seconds

    def close(self, step: int, values: StepValues, report: StepReport, images: int) -> dict[str, float]:
        names = list(self._sums)
        # nothing at all when every step was skipped, which is so on all ranks or on none
        rows = [self._sums[name] / self._micro for name in names] + [f.float() for f in self._figures.values()]
        row = (sum_(torch.stack(rows)) / self._world.size).tolist() if rows else []
        point: dict[str, float] = {"step": step, **dict(zip([*names, *self._figures], row, strict=True))}
        if self._chance > 0 and names:
            known = sum(point.get(name, 0.0) for name in ("dino_global", "dino_local", "contrastive"))
            point["cross_entropy"] = known / self._chance
        now = time.monotonic()
        point["images_per_second"] = (step - self._steps_from) * images / max(now - self._since, 1e-9)
        point |= {f"grad_norm_{name}": norm for name, norm in report.norms.items()}
        point |= {"learning_rate": values.learning_rate, "momentum": values.momentum, "loss_scale": report.loss_scale}
        self.note = ", ".join(f"{name} {point[name]:.3f}" for name in names)
        self.note += f", {point['images_per_second']:.0f} images/s"
        self._sums, self._micro, self._figures, self._steps_from, self._since = {}, 0, {}, step, now
        return point
