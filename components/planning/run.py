"""What a stage needs, before it runs; and why a run does not learn.

python -m components.planning crawl --warcs 90000 --cores 640
python -m components.planning dedup --images 1.3e9 --set windows=[]
python -m components.planning pretrain --params params/pretrain/vitg.yaml --gpus 96 --gpu h100-80gb --set run.batch=32
python -m components.planning distill --params params/distill/vitl.yaml --teacher params/pretrain/vitg.yaml --gpus 64
python -m components.planning diagnose data/pretrain/vitt --manifest data/dedup/manifest
python -m components.planning advise --minutes 60 --out params/pretrain/mine.yaml
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from components.command_line import Options, Overrides, ParamsOptions, application, as_options, commands_of
from components.params import load_params

if TYPE_CHECKING:
    from components.planning.training import GpuCluster

app = application("plan", "Say what a stage needs (hosts, hours, bytes, memory) before it runs.", "components.planning")
main = commands_of(app)
TRAINING_RATES = Path("params/rates/training.yaml")


@as_options
class CrawlOptions:
    """Options of ``crawl``."""

    warcs: float
    """WARC files, such as 90000, a month of Common Crawl."""
    params: Path = Path("params/crawl.yaml")
    """Parameter file of the crawl."""
    set: Overrides = ()
    """Override a value of --params."""
    rates: Path = Path("params/rates/curate.yaml")
    """Rates and averages."""
    cores: int | None = None
    """Cores to plan for (default: this machine's)."""
    megabits: float | None = None
    """Of the line to the web, a second."""


@app.command
def crawl(*, options: Options[CrawlOptions]) -> None:
    """Hosts, time, bytes and cores for a number of WARC files."""
    from components.crawl.spider import CrawlParams
    from components.planning.crawl import load_rates, plan

    polite = load_params(options.params, CrawlParams, options.set)
    print(plan(options.warcs, polite, load_rates(options.rates), options.cores, options.megabits))


@as_options
class DedupOptions:
    """Options of ``dedup``."""

    images: float
    """Images of the pool, such as 1.3e9."""
    params: Path = Path("params/dedup.yaml")
    """Parameter file of the stage."""
    set: Overrides = ()
    """Override a value of --params."""
    dim: int = 512
    """Numbers of a descriptor; SSCD's has 512."""
    cores: int | None = None
    """Cores to plan for (default: this machine's)."""
    images_per_second: float | None = None
    """Images described a second, by all cores or GPUs together."""
    held_out: float = 1e6
    """Images of all benchmarks."""
    queries: float = 1e6
    """Images that retrieve."""
    gpu_gigabytes: float = 80
    """Memory of one GPU."""
    rates: Path | None = None
    """A JSON file of rates. It is written if missing; without this option, rates are measured."""


@app.command
def dedup(*, options: Options[DedupOptions]) -> None:
    """Index, memory, disk and hours for a number of images."""
    from components.dedup.params import DedupParams
    from components.planning.dedup import Workload, load_rates, plan

    work = Workload(
        options.images,
        options.dim,
        options.cores,
        options.images_per_second,
        options.held_out,
        options.queries,
        options.gpu_gigabytes,
    )
    print(plan(work, load_params(options.params, DedupParams, options.set), load_rates(options.rates)))


@as_options
class TrainingOptions(ParamsOptions):
    """Options of ``pretrain`` and ``distill``; ``--params`` is the preset."""

    gpus: int = 8
    """GPUs in all."""
    gpu: str | None = None
    """A kind of GPU that --rates knows (default: h100-80gb)."""
    memory: float | None = None
    """GB of a GPU, instead of the kind's."""
    tflops: float | None = None
    """Peak TFLOP/s of a GPU, for dense 16-bit products."""
    bandwidth: float | None = None
    """GB/s that a GPU sends to others, one way."""
    utilisation: float | None = None
    """Share of the peak, instead of the kind's."""
    rate: float | None = None
    """Images a second and GPU, as measured. It is used instead of --utilisation."""
    price: float | None = None
    """Price of a GPU-hour."""
    rates: Path = TRAINING_RATES
    """Kinds of GPUs."""


@app.command
def pretrain(*, options: Options[TrainingOptions]) -> None:
    """Memory, traffic, time and scratch space of a preset on GPUs."""
    from components.planning.training import plan
    from components.training.params import TrainingParams

    on = _cluster(options)
    for phase in load_params(options.params, TrainingParams, options.set).phases():
        head = f"{phase.name} phase:\n" if phase.name else ""
        print(head + plan(options.params, phase.params, on, phase.first))


@app.command
def distill(*, teacher: Path, options: Options[TrainingOptions]) -> None:
    """Memory, traffic, time and scratch space of a distillation on GPUs.

    Args:
        teacher: Preset of the teacher.
    """
    from components.distill.method import DistillParams
    from components.planning.training import plan
    from components.training.params import TrainingParams

    on = _cluster(options)
    params = load_params(options.params, DistillParams, options.set)
    print(plan(options.params, params, on, teacher=load_params(teacher, TrainingParams)))


def _cluster(options: TrainingOptions) -> GpuCluster:
    from components.errors import VitrailError
    from components.planning.training import GpuCluster
    from components.planning.training_rates import TrainingRates, pick_gpu, positive

    if options.gpus < 1:
        raise VitrailError(f"--gpus {options.gpus}: choose 1 or more")
    rate, price = positive("rate", options.rate), positive("price", options.price)
    rates = load_params(options.rates, TrainingRates)
    figures = {"memory": options.memory, "tflops": options.tflops, "bandwidth": options.bandwidth}
    kind, gpu = pick_gpu(rates, options.gpu, figures, options.utilisation)
    return GpuCluster(options.gpus, kind, gpu, rates.gpus_per_machine, rate, price)


@app.command
def diagnose(run: Path, /, *, params: Path | None = None, manifest: Path | None = None) -> None:
    """Say why a training run does not learn, with the evidence and the value to change.

    Args:
        run: An exported model, a run's folder in scratch, or a checkpoint.
        params: The run's preset (default: by the folder's name).
        manifest: The training set, to count how often images repeat.
    """
    from components.planning.diagnosis import told
    from components.planning.records import load_record

    print(told(load_record(run, params, manifest)))


@as_options
class AdviseOptions:
    """Options of ``advise``."""

    minutes: float
    """Minutes that training may take."""
    manifest: Path = Path("data/dedup/manifest")
    """The training set."""
    gpu: str | None = None
    """A kind of GPU that --rates knows, such as a100-40gb (default: this CPU)."""
    like: Path | None = None
    """A run made on this machine, whose rate is taken."""
    rates: Path = TRAINING_RATES
    """Kinds of GPUs."""
    out: Path | None = None
    """The preset to write, such as params/pretrain/mine.yaml (default: print it)."""


@app.command
def advise(*, options: Options[AdviseOptions]) -> None:
    """Write a preset for your images, machine and minutes, with a reason for each value."""
    from components.errors import VitrailError
    from components.planning.advice import DataAndMachine
    from components.planning.advice import advise as advice
    from components.planning.facts import images_of, rate_of_cpu, rate_of_run
    from components.planning.training_rates import TrainingRates, pick_gpu
    from components.storage import atomic_file

    out = options.out
    if out is not None and out.exists():
        raise VitrailError(f"{out}: there already; take another --out, or delete it")
    images, side = images_of(options.manifest)
    if options.like is not None:
        flops, measured = rate_of_run(options.like, None)
    elif options.gpu is not None:
        none = dict.fromkeys(("memory", "tflops", "bandwidth"))
        kind, gpu = pick_gpu(load_params(options.rates, TrainingRates), options.gpu, none, None)
        flops, measured = 1e12 * gpu.teraflops * gpu.utilisation, f"one {kind} by {options.rates}"
    else:
        flops, measured = rate_of_cpu()
    text, told = advice(DataAndMachine(images, side, options.minutes, flops, measured, options.gpu is not None))
    if out is None:
        print(text + "\n".join(f"# {line}" for line in told))
        return
    with atomic_file(out, "w") as file:
        file.write(text)
    print("\n".join([*told, f"next: name {out.stem} under `pretrain` in params/pipeline.yaml"]))
