"""``params/benchmark.yaml``."""

from __future__ import annotations

from components.benchmark.features.contenders import BaselineParams
from components.benchmark.features.own import OwnParams
from components.benchmark.methods.scoring import IntervalParams
from components.benchmark.pages.pictures import PcaParams
from components.evaluation.features.patch_kmeans import PatchKmeansParams
from components.executor import ExecutorParams
from components.params import Name, Strict


class BenchmarkStageParams(Strict):
    """The file."""

    device: str = "auto"  # auto, cpu or cuda
    protocol: Name  # a file in params/protocols/
    feature_cache: str | None = None  # folder of the feature store; None: features are not kept
    executor: ExecutorParams = ExecutorParams(workers=0)
    baselines: BaselineParams
    patch_kmeans: PatchKmeansParams | None = None  # None: not a baseline
    intervals: IntervalParams
    pca: PcaParams
    own: OwnParams | None = OwnParams()  # None: no figures of the training images' features
