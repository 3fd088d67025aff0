"""What the shipped files say for anybody's pictures, and for the demo's; sections are switched off by null."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from components.benchmark.methods.protocol import load_protocol
from components.benchmark.params import BenchmarkStageParams
from components.curate.params import CurateParams
from components.dedup.params import DedupParams
from components.distill.method import DistillParams
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.params import load_params
from components.training.params import TrainingParams
from components.training.probe_params import ProbeParams

ROOT = Path(__file__).resolve().parents[3]
TRAINED = {"pretrain/vitt": TrainingParams, "distill/vitxt": DistillParams}


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped params with one changed value."""
    root = tmp_path_factory.mktemp("own")
    shutil.copytree(ROOT / "params", root / "params")
    pipeline = root / "params/pipeline.yaml"
    text = pipeline.read_text()
    assert "source: params/site/demo.yaml" in text
    pipeline.write_text(text.replace("source: params/site/demo.yaml", "source: /data/photographs"))
    return root / "params"


@pytest.mark.parametrize("preset", TRAINED)
def test_photographs_are_trained_in_colour_and_upright_and_cells_gray_and_turned(own: Path, preset: str) -> None:
    for params, gray, turned in ((own, False, 0.0), (ROOT / "params", True, 0.5)):
        augment = load_params(params / f"{preset}.yaml", TRAINED[preset]).augment
        assert (augment.gray, augment.vflip, augment.rot90, augment.hflip) == (gray, turned, turned, 0.5)
        assert (augment.jitter.hue > 0) is not gray
        assert (augment.grayscale > 0) is not gray


@pytest.mark.parametrize("preset", TRAINED)
def test_only_the_demo_is_probed(own: Path, preset: str) -> None:
    assert load_params(own / f"{preset}.yaml", TRAINED[preset]).probe.benchmark is None
    assert load_params(ROOT / f"params/{preset}.yaml", TRAINED[preset]).probe.benchmark == "elpv"


def test_nothing_of_the_demo_is_in_anybodys_values(own: Path) -> None:
    assert load_params(own / "benchmarks.yaml", BenchmarksFile).benchmarks == {}
    dedup = load_params(own / "dedup.yaml", DedupParams)
    assert (dedup.calibration, dedup.retrieval, dedup.graph.threshold) == (None, None, "auto")
    benchmark = load_params(own / "benchmark.yaml", BenchmarkStageParams)
    assert (benchmark.pca.photographs, benchmark.pca.own, benchmark.protocol) == ([], 8, "quick")
    assert load_protocol(own, benchmark.protocol).params.features.image_size is None
    demo = load_params(ROOT / "params/dedup.yaml", DedupParams)
    assert demo.calibration is not None
    assert demo.retrieval is not None
    assert (demo.calibration.benchmark, demo.retrieval.queries) == ("elpv", ["elpv"])


@pytest.mark.parametrize("off", ["null", "false"])
def test_a_section_is_switched_off_by_null(own: Path, off: str) -> None:
    trained = load_params(own / "pretrain/vitt.yaml", TrainingParams, [f"probe={off}"])
    assert trained.probe == ProbeParams(benchmark=None)
    curate = load_params(own / "curate.yaml", CurateParams, [f"nsfw={off}", f"faces={off}", f"sandbox={off}"])
    assert [section.enabled for section in (curate.nsfw, curate.faces, curate.sandbox)] == [False] * 3
