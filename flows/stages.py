"""The stages that flows run, in order: names as DVC has them, from ``params/pipeline.yaml``.

DVC owns the graph (dvc.yaml); ``tests/flows/test_stage_order.py`` compares this order with it.
"""

from __future__ import annotations

from flows.settings import PipelineParams

FAMILIES = ("inputs", "crawl", "curate", "dedup", "pretrain", "continue", "gain", "distill", "benchmark")


def stage_names(pipeline: PipelineParams, *families: str) -> list[str]:
    """The DVC stage names of ``families`` (all, when none is given), in the order to run them."""
    continued = list(pipeline.continued)
    presets = {"pretrain": list(pipeline.pretrain), "distill": list(pipeline.distill)}
    presets |= {"continue": continued, "gain": continued}
    names = []
    for family in families or FAMILIES:
        names += [stage_name(family, preset) for preset in presets[family]] if family in presets else [family]
    return names


def stage_name(family: str, preset: str) -> str:
    """The DVC stage that makes ``preset``: ``pretrain@vitt``."""
    return f"{family}@{preset}"


def report_path(stage: str) -> str:
    """The metrics file that dvc.yaml gives ``stage``: ``reports/pretrain-vitt.json``."""
    return f"reports/{stage.replace('@', '-')}.json"
