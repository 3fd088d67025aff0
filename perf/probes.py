"""Seconds of one online probe of vitt on the demo's sample, part by part, and once a run for the sample itself.

The forward passes are what no probe can do without; the fits are given as shares of them, taken in the same run.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def main() -> dict[str, Any]:
    """Measure once."""
    import sklearn.linear_model  # noqa: F401 - its import is not the probe's time
    import torch

    from components.evaluation.probing.probes import ProbeFeatures, Prober
    from components.evaluation.probing.sample import draw
    from components.evaluation.sets.benchmarks import load_named
    from components.learning.vit import VisionTransformer
    from components.params import load_params
    from components.training.params import TrainingParams

    params = load_params(ROOT / "params/pretrain/vitt.yaml", TrainingParams)
    benchmark = load_named(ROOT / "params/benchmarks.yaml", "elpv")
    seconds: dict[str, float] = {}
    since = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal since
        seconds[name] = round(time.perf_counter() - since, 2)
        since = time.perf_counter()

    prober = Prober(draw(benchmark, params), params, torch.device("cpu"))
    lap("once: sample read and decoded")
    prober.raw()
    lap("once: raw pixels scored")
    model = VisionTransformer(params.vit).eval()
    prober.features(model, torch.float32)
    since = time.perf_counter()
    found = prober.features(model, torch.float32)
    lap("forward passes")
    prober.scores(ProbeFeatures(found.cls, None, None))
    lap("kNN and linear probe")
    prober.scores(ProbeFeatures(None, found.fitted, found.held_out))
    lap("dense probe")
    forward = seconds["forward passes"]
    fits = seconds["kNN and linear probe"] + seconds["dense probe"]
    return {"seconds": seconds, "threads": torch.get_num_threads(), "fits / forward passes": round(fits / forward, 2)}
