"""The benchmark stage's command.

python -m components.benchmark run --params params/benchmark.yaml --benchmarks params/benchmarks.yaml \\
    --checkpoints data/pretrain data/distill --out data/benchmark --report reports/benchmark.json
"""

from __future__ import annotations

from pathlib import Path

from components.benchmark.options import PARAMS, CompareOptions, RunOptions
from components.command_line import Many, Options, Overrides, application, commands_of
from components.params import load_params
from components.pipeline import with_stage

app = application("benchmark", "Compare checkpoints on labelled images.", "components.benchmark")
main = commands_of(app, with_stage)
_COMPARE = CompareOptions()


@app.command
def run(*, options: Options[RunOptions]) -> None:
    """Score every checkpoint and baseline with kNN and linear probes, and draw PCA pictures.

    `--stage gain@NAME` gives the options of that stage in params/pipeline.yaml.
    """
    from components.benchmark.compare_command import measure

    print(measure(options, options.checkpoints, options.report))


@app.command
def compare(sources: tuple[str, ...], /, *, options: Options[CompareOptions] = _COMPARE) -> None:
    """Show checkpoints side by side, with paired tests and a gate.

    Args:
        sources: Folders that `run` wrote, or models, which are measured first.
    """
    from components.benchmark.compare_command import compare as side_by_side

    side_by_side(sources, options)


@app.command
def published(*, params_folder: Path = Path("params")) -> None:
    """Show what released models reached, with source and protocol.

    Args:
        params_folder: Folder of published.yaml.
    """
    from components.benchmark.pages.published import load_published, published_table

    print(published_table(load_published(params_folder)), end="")


@app.command
def choose(
    *, params: Path, benchmarks: Path, checkpoints: Many[str], image_sizes: Many[int], crops: Many[float] = (1.0,)
) -> None:
    """Compare ways to take features, on the training side alone.

    Args:
        params: Parameter file of the stage.
        benchmarks: Parameter file of the labelled images.
        checkpoints: Models, or folders of exported ones.
        image_sizes: Sides of the images, in pixels.
        crops: Shares of the shorter side that are cut out.
    """
    from components.benchmark import stage
    from components.benchmark.methods import choose as choices
    from components.benchmark.methods.protocol import load_protocol
    from components.benchmark.params import BenchmarkStageParams
    from components.evaluation.sets.benchmarks import BenchmarksFile, load_benchmark

    stated = load_params(params, BenchmarkStageParams)
    protocol = load_protocol(params.parent, stated.protocol).params
    for name, spec in load_params(benchmarks, BenchmarksFile).scored.items():
        found = choices.choose(
            load_benchmark(name, spec),
            checkpoints,
            choices.Inputs(image_sizes, crops),
            protocol.features,
            protocol.knn,
            stage.device_of(stated.device),
        )
        print(choices.table(found))


@app.command
def revisited(*, gnd: Path, images: Path, checkpoints: Many[str], params: Path = PARAMS, set: Overrides = ()) -> None:
    """Score retrieval on revisited Oxford or Paris: easy, medium, hard.

    Args:
        gnd: The official ground truth, JSON or pickle.
        images: Folder of its pictures.
        checkpoints: Models, or folders of exported ones.
        params: Parameter file of the stage.
        set: Override a value of --params, or of its protocol.
    """
    from components.benchmark import oxford, stage
    from components.benchmark.features.contenders import gather
    from components.benchmark.methods.protocol import load_protocol, split_overrides
    from components.benchmark.params import BenchmarkStageParams
    from components.evaluation.sets.revisited_set import load_ground_truth

    of_protocol, others = split_overrides(set)
    stated = load_params(params, BenchmarkStageParams, others)
    protocol = load_protocol(params.parent, stated.protocol, of_protocol)
    truth, features = load_ground_truth(gnd), protocol.params.features
    contenders = gather(checkpoints, features, stated.baselines, stage.device_of(stated.device))
    found = oxford.revisited(contenders, truth, images, features.batch_size)
    print(oxford.table(found, protocol.label))
