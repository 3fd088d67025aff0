"""A preset for the images, the machine and the minutes at hand, with the reason of each value as a comment.

It starts from the shipped preset nearest to the budget and changes what depends on the number of images, their size,
the batch and the length. Rates are measured where a run is given; all else is a rule, and the file says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from components.errors import VitrailError
from components.params import parse_params
from components.training.costs.flops import flops_per_step
from components.training.params import TrainingParams
from components.yaml_core import parse_yaml

PRESETS = Path("params/pretrain")
CPU, ONE_GPU = ("vitt",), ("vits_1gpu", "vitb_1gpu")  # smallest first
LEAST_IMAGES = 50  # below, every image is in every second batch or so: nothing to learn but these images
LEAST_STEPS = 200  # vitt's DINO loss begins to fall between steps 100 and 200
ENOUGH_STEPS = 50_000  # of 128 images and more: a larger network is taken only where so many fit
MOST_PASSES = 800  # DINO's on ImageNet-1k, the most of the published runs
SHORT = 20_000  # steps; below, a momentum that ends at 1 leaves the teacher behind
CPU_FLOPS = 3.8e10  # a second of two cores: the demo's vitt, 54 steps a minute


@dataclass(frozen=True)
class DataAndMachine:
    """What is known before the run."""

    images: int
    side: int  # pixels: the median shorter side
    minutes: float
    flops: float  # operations a second, of all that train
    measured: str  # where that rate is from, in words
    gpu: bool


def advise(facts: DataAndMachine) -> tuple[str, list[str]]:
    """The preset as YAML text, and what to tell beside it, a line each.

    Raises:
        VitrailError: too few images, images smaller than a patch, or a time too short for anything.
    """
    if facts.images < LEAST_IMAGES:
        raise VitrailError(
            f"{facts.images} images: too few to learn from; collect at least {LEAST_IMAGES}, or use a released model "
            "(vitrail import)"
        )
    if not (math.isfinite(facts.minutes) and facts.minutes > 0):
        raise VitrailError(f"--minutes {facts.minutes:g}: choose more than 0")
    name, base = _base(facts)
    changes = _changes(facts, name, base)
    content = _content(name, changes)
    reasons = {key: why for key, (_, why) in changes.items()}
    head = [
        f"# Advised for {facts.images:,} images of about {facts.side} px and {facts.minutes:g} minutes.",
        f"# Rate: {facts.flops:.3g} operations a second ({facts.measured}).",
        f"# Values without a comment are those of params/pretrain/{name}.yaml, which gives their sources.",
    ]
    steps, batch = changes["run.iterations"][0], _images_a_step(base, changes)
    told = [
        f"network: that of {name}; {steps:,} steps of {batch} images, {steps * batch / facts.images:.1f} passes",
        f"measured: {facts.measured}" if "measured" in facts.measured else f"not measured, a rule: {facts.measured}",
        "all other values are rules; none was tuned on your images. Look at the curves: vitrail diagnose RUN",
    ]
    return "\n".join([*head, *_lines(content, reasons)]) + "\n", told


def _base(facts: DataAndMachine) -> tuple[str, TrainingParams]:
    """The largest network that the budget trains long enough, or the smallest of the machine's."""
    found = [(name, _params(name, {})) for name in (ONE_GPU if facts.gpu else CPU)]
    fitting = [one for one in found if _steps_in(facts, one[1]) >= ENOUGH_STEPS]
    name, params = fitting[-1] if fitting else found[0]
    if facts.side < params.vit.patch_size * 2:
        raise VitrailError(
            f"images of {facts.side} px: {name} has patches of {params.vit.patch_size} px and needs two a side; "
            "take larger images"
        )
    return name, params


def _steps_in(facts: DataAndMachine, params: TrainingParams) -> int:
    step = sum(flops_per_step(params, 1).values()) * params.engine.accumulation
    return int(facts.minutes * 60 * facts.flops / step)


def _changes(facts: DataAndMachine, name: str, base: TrainingParams) -> dict[str, tuple[Any, str]]:
    """New values by dotted key, each with its reason."""
    found: dict[str, tuple[Any, str]] = {}
    patch = base.vit.patch_size
    side = min(base.augment.global_size, facts.side // patch * patch)
    if side < base.augment.global_size:
        why = f"rule: crops are not larger than the images ({facts.side} px)"
        found |= {"vit.image_size": (side, why), "augment.global_size": (side, why)}
        local = max(patch, side * base.augment.local_size // base.augment.global_size // patch * patch)
        found["augment.local_size"] = (local, "rule: the same share of the global crop, whole patches")
    batch = base.run.batch
    while batch * base.engine.accumulation > max(8, facts.images // 4):
        batch //= 2
    if batch < base.run.batch:
        found["run.batch"] = (batch, f"rule: at most a quarter of the {facts.images:,} images in a step")
        if base.schedule.learning_rate_rule == "none":
            rate = base.schedule.learning_rate.peak * math.sqrt(batch / base.run.batch)
            found["schedule.learning_rate.peak"] = (float(f"{rate:.3g}"), "rule: the root of the batch's ratio")
        if base.objective.centering == "softmax":
            kept = base.objective.center_momentum ** (batch / base.run.batch)
            found["objective.center_momentum"] = (float(f"{kept:.5g}"), "rule: the same memory in images")
    params = _params(name, found)
    images = params.run.batch * params.engine.accumulation
    fits, most = _steps_in(facts, params), max(1, MOST_PASSES * facts.images // images)
    steps = min(fits, most)
    if steps < LEAST_STEPS:
        raise VitrailError(
            f"{fits:,} steps fit into {facts.minutes:g} minutes, {most:,} into {MOST_PASSES} passes over the images; "
            f"fewer than {LEAST_STEPS} teach nothing: give more minutes or images"
        )
    why = f"{steps * images / facts.images:.1f} passes"
    why += (
        f"; {facts.measured}" if steps == fits else f"; rule: at most {MOST_PASSES} passes, fewer than the time allows"
    )
    found["run.iterations"] = (steps, why)
    found["run.checkpoint_every"] = (max(1, min(base.run.checkpoint_every, steps // 4)), "rule: four a run, or more")
    found["run.log_every"] = (max(1, min(base.run.log_every, steps // 20)), "rule: 20 points of the curves, or more")
    prototypes = 2 ** max(6, min(16, int(math.log2(steps)) - 1))
    if prototypes < params.heads.dino.prototypes:
        why = "rule: at most half as many as steps (256 for 600 steps; with 1,024 nothing was learned in 150)"
        found["heads.dino.prototypes"] = (prototypes, why)
        if params.heads.ibot is not None:
            found["heads.ibot.prototypes"] = (prototypes, "as DINO's")
    if steps < SHORT and params.schedule.momentum.end == 1.0:
        why = f"rule: below {SHORT:,} steps an average that goes to 1 stays behind the student"
        found["schedule.momentum.peak"] = (0.98, why)
        found["schedule.momentum.end"] = (0.995, "as above")
    return found


def _images_a_step(base: TrainingParams, changes: Mapping[str, tuple[Any, str]]) -> int:
    return int(changes.get("run.batch", (base.run.batch, ""))[0]) * base.engine.accumulation


def _content(name: str, changes: Mapping[str, tuple[Any, str]]) -> dict[str, Any]:
    """The shipped preset ``name`` with ``changes``. The demo's own values in params/demo/ are left aside."""
    content: dict[str, Any] = parse_yaml(
        (PRESETS / f"{name}.yaml").read_text(encoding="utf-8"), f"{PRESETS}/{name}.yaml"
    )
    for key, (value, _) in changes.items():
        _put(content, key, value)
    return content


def _params(name: str, changes: Mapping[str, tuple[Any, str]]) -> TrainingParams:
    return parse_params(_content(name, changes), TrainingParams, str(PRESETS / f"{name}.yaml"))


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    for name in above:
        content = content[name]
    content[last] = value


def _lines(content: Mapping[str, Any], reasons: Mapping[str, str], above: str = "", indent: int = 0) -> list[str]:
    """``content`` as YAML, one key a line, with the reasons behind the values."""
    lines = []
    for name, value in content.items():
        key, pad = f"{above}{name}", " " * indent
        if isinstance(value, dict):
            lines += [f"{pad}{name}:", *_lines(value, reasons, f"{key}.", indent + 2)]
            continue
        text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
        lines.append(f"{pad}{name}: {text}" + (f"   # {reasons[key]}" if key in reasons else ""))
    return lines
