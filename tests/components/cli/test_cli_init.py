"""``vitrail init``: from a folder to parameters that the stages read, with nothing to edit."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from components.cli import init
from components.errors import VitrailError
from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark
from components.params import load_params
from components.pipeline import load_pipeline
from components.training.params import TrainingParams

ROOT = Path(__file__).resolve().parents[3]


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)).save(path)


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout's params/ in the current folder, and three photographs beside it."""
    shutil.copytree(ROOT / "params", tmp_path / "work/params")
    monkeypatch.chdir(tmp_path / "work")
    for number in range(3):
        picture(tmp_path / f"it's my photos: #1/sub/{number}.png", number)
    return tmp_path


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_folder_alone_changes_one_value(workspace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(Path("params"))
    folder = workspace / "it's my photos: #1"
    assert init.main([str(folder), "--machine", "cpu"]) == 0
    pipeline = load_pipeline()
    assert pipeline.source == str(folder)
    assert (pipeline.pretrain, list(pipeline.distill)) == (["vitt"], ["vitxt"])
    after = contents(Path("params"))
    assert [name for name in after if after[name] != before[name]] == ["params/pipeline.yaml"]
    changed = set(after["params/pipeline.yaml"].splitlines()) ^ set(before["params/pipeline.yaml"].splitlines())
    assert len(changed) == 2
    out = capsys.readouterr().out
    for words in ("3 images", "left out: scores", "left out: calibration and retrieval", "next: vitrail run"):
        assert words in out


def test_it_can_be_run_again_with_another_folder(workspace: Path) -> None:
    init.main([str(workspace / "it's my photos: #1"), "--machine", "gpu"])
    picture(workspace / "more/1.png", 1)
    init.main([str(workspace / "more"), "--machine", "cpu"])
    assert load_pipeline().source == str(workspace / "more")
    assert load_pipeline().pretrain == ["vitt"]


def test_minutes_become_steps_of_the_presets_and_nothing_else(workspace: Path) -> None:
    before = Path("params/pretrain/vitt.yaml").read_text()
    init.main([str(workspace / "it's my photos: #1"), "--machine", "cpu", "--minutes", "10"])
    after = load_params("params/pretrain/vitt.yaml", TrainingParams)
    assert after.run.iterations == round(0.7 * 10 * init.CPU_STEPS_A_MINUTE)
    assert Path("params/pretrain/vitt.yaml").read_text() == before.replace("iterations: 600", "iterations: 378")
    assert "iterations: 162" in Path("params/distill/vitxt.yaml").read_text()


def test_a_gpu_trains_its_own_preset_for_the_minutes_given(workspace: Path) -> None:
    folder = str(workspace / "it's my photos: #1")
    steps = []
    for minutes in ("30", "60"):
        init.main([folder, "--machine", "gpu", "--minutes", minutes])
        steps.append(load_params("params/pretrain/vits_1gpu.yaml", TrainingParams).run.iterations)
    assert load_pipeline().pretrain == ["vits_1gpu", "vitt"]
    assert steps[1] == pytest.approx(2 * steps[0], abs=1)


def test_a_labelled_folder_becomes_a_benchmark_that_loads(workspace: Path) -> None:
    for label in ("cat", "dog"):
        for number in range(10):
            picture(workspace / f"my labels/{label}/{number}.png", 100 * (label == "dog") + number)
    shutil.copy(workspace / "my labels/cat/0.png", workspace / "my labels/cat/copy of 0.png")
    argv = [str(workspace / "it's my photos: #1"), "--machine", "cpu", "--benchmark", str(workspace / "my labels")]
    init.main(argv)
    init.main(argv)  # again: one entry, not two
    (name, spec) = next(iter(load_params("params/benchmarks.yaml", BenchmarksFile).scored.items()))
    benchmark = load_benchmark(name, spec)
    assert (name, len(benchmark.keys), benchmark.class_names) == ("my_labels", 21, {"label": ["cat", "dog"]})
    for side in (benchmark.test, ~benchmark.test):
        assert set(benchmark.labels["label"][side]) == {0, 1}
    copies = [row for row, key in enumerate(benchmark.keys) if key.endswith(("cat/0.png", "copy of 0.png"))]
    assert len(copies) == 2
    assert len(set(benchmark.test[copies])) == 1  # equal files are on one side
    assert benchmark.images.rgb(0).shape == (16, 16, 3)


def test_a_split_that_is_there_is_kept(workspace: Path) -> None:
    for side, count in (("train", 3), ("val", 2)):
        for label in ("a", "b"):
            for number in range(count):
                picture(workspace / f"split/{side}/{label}/{number}.png", number)
    init.main([str(workspace / "it's my photos: #1"), "--machine", "cpu", "--benchmark", str(workspace / "split")])
    name, spec = next(iter(load_params("params/benchmarks.yaml", BenchmarksFile).scored.items()))
    benchmark = load_benchmark(name, spec)
    assert (int(benchmark.test.sum()), len(benchmark.keys)) == (4, 10)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["nowhere"], "no such folder"),
        (["empty"], "no images in it"),
        (["."], "this checkout lies inside it"),
        (["photos", "--minutes", "nan"], "choose more than 0"),
        (["photos", "--minutes", "0"], "choose more than 0"),
        (["photos", "--benchmark", "empty"], "0 classes found"),
        (["photos", "--benchmark", "nowhere"], "no such folder"),
        (["photos", "--benchmark", "one"], "1 classes found"),
        ([], "name your folder of images"),
    ],
)
def test_what_no_run_could_use_is_refused_and_nothing_changes(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, argv: list[str], words: str
) -> None:
    monkeypatch.setattr("sys.stdin", open("/dev/null"))  # noqa: SIM115 - nobody can answer
    (workspace / "empty").mkdir()
    (workspace / "it's my photos: #1").rename(workspace / "photos")
    for number in range(2):
        picture(workspace / f"one/only/{number}.png", number)
    before = contents(Path("params"))
    given = [str(workspace / word) if word in ("nowhere", "empty", "photos", "one") else word for word in argv]
    with pytest.raises(VitrailError, match=words):
        init.main([".." if word == "." else word for word in given])
    assert contents(Path("params")) == before


def test_on_a_terminal_it_asks_for_three_values(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([str(workspace / "it's my photos: #1"), "cpu", "5"])
    asked = list[str]()
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert init.main([]) == 0
    assert len(asked) == 3
    assert load_params("params/pretrain/vitt.yaml", TrainingParams).run.iterations == 189
