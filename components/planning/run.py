"""What a stage needs, before it runs; and why a run does not learn.

python -m components.planning crawl --warcs 90000 --cores 640
python -m components.planning dedup --images 1.3e9 --set windows=[]
python -m components.planning pretrain --params params/pretrain/vitg.yaml --gpus 96 --gpu h100-80gb --set run.batch=32
python -m components.planning distill --params params/distill/vitl.yaml --teacher params/pretrain/vitg.yaml --gpus 64
python -m components.planning diagnose data/pretrain/vitt --manifest data/dedup/manifest
python -m components.planning advise --minutes 60 --out params/pretrain/mine.yaml
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from components.command_name import prog
from components.params import load_params

_SET = "overlay a value of --params"


def main(argv: Sequence[str]) -> int:
    """Parse ``argv`` and print the plan it asks for."""
    parser = argparse.ArgumentParser(prog=prog("components.planning"), description="Hosts, hours, bytes and memory.")
    commands = parser.add_subparsers(dest="command", required=True)
    crawl = commands.add_parser("crawl", help="hosts, time, bytes and cores for a number of WARC files")
    crawl.add_argument("--warcs", type=float, required=True, help="such as 90000, a month of Common Crawl")
    crawl.add_argument("--params", type=Path, default=Path("params/crawl.yaml"))
    crawl.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    crawl.add_argument("--rates", type=Path, default=Path("params/rates/curate.yaml"), help="rates and averages")
    crawl.add_argument("--cores", type=int, help="to plan for (default: this machine's)")
    crawl.add_argument("--megabits", type=float, help="a second, of the line to the web")
    dedup = commands.add_parser("dedup", help="index, memory, disk and hours for a number of images")
    dedup.add_argument("--images", type=float, required=True, help="such as 1.3e9")
    dedup.add_argument("--params", type=Path, default=Path("params/dedup.yaml"))
    dedup.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET)
    dedup.add_argument("--dim", type=int, default=512, help="of a descriptor (default: 512, SSCD's)")
    dedup.add_argument("--cores", type=int, help="to plan for (default: this machine's)")
    dedup.add_argument("--images-per-second", type=float, help="described, all cores or GPUs together")
    dedup.add_argument("--held-out", type=float, default=1e6, help="images of all benchmarks (default: 1e6)")
    dedup.add_argument("--queries", type=float, default=1e6, help="images that retrieve (default: 1e6)")
    dedup.add_argument("--gpu-gigabytes", type=float, default=80, help="memory of one GPU (default: 80)")
    dedup.add_argument("--rates", type=Path, help="a JSON file of rates; written if missing, measured if left out")
    _add_training(commands)
    why = commands.add_parser("diagnose", help="why a training run does not learn: known causes, with their evidence")
    why.add_argument("run", type=Path, help="an exported model, a run's folder in scratch, or a checkpoint")
    why.add_argument("--params", type=Path, help="the run's preset (default: by the folder's name)")
    why.add_argument("--manifest", type=Path, help="the training set, to count how often images repeat")
    advise = commands.add_parser("advise", help="write a preset for your images, machine and minutes, with reasons")
    advise.add_argument("--manifest", type=Path, default=Path("data/dedup/manifest"), help="the training set")
    advise.add_argument("--minutes", type=float, required=True, help="that training may take")
    advise.add_argument("--gpu", help="a kind of GPU that --rates knows, such as a100-40gb (default: this CPU)")
    advise.add_argument("--like", type=Path, help="a run made on this machine, whose rate is taken")
    advise.add_argument("--rates", type=Path, default=Path("params/rates/training.yaml"), help="kinds of GPUs")
    advise.add_argument("--out", type=Path, help="the preset to write, such as params/pretrain/mine.yaml; else printed")
    arguments = parser.parse_args(argv)
    plans = {"crawl": _crawl, "dedup": _dedup, "pretrain": _training, "distill": _training, "diagnose": _diagnose}
    plans["advise"] = _advise
    print(plans[arguments.command](arguments))
    return 0


def _add_training(commands: Any) -> None:
    pretrain = commands.add_parser("pretrain", help="memory, traffic, time and scratch space of a preset on GPUs")
    distill = commands.add_parser("distill", help="the same of a distillation")
    distill.add_argument("--teacher", type=Path, required=True, help="preset of the teacher")
    for command in (pretrain, distill):
        command.add_argument("--params", type=Path, required=True, help="the preset")
        command.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=_SET)
        command.add_argument("--gpus", type=int, default=8)
        command.add_argument("--gpu", help="a kind that --rates knows (default: h100-80gb)")
        command.add_argument("--memory", type=float, help="GB of a GPU, in the place of the kind's")
        command.add_argument("--tflops", type=float, help="peak TFLOP/s of a GPU, dense 16-bit products")
        command.add_argument("--bandwidth", type=float, help="GB/s that a GPU sends to others, one way")
        command.add_argument("--utilisation", type=float, help="share of the peak, in the place of the kind's")
        command.add_argument("--rate", type=float, help="images a second and GPU, as measured; goes before utilisation")
        command.add_argument("--price", type=float, help="of a GPU-hour")
        command.add_argument("--rates", type=Path, default=Path("params/rates/training.yaml"), help="kinds of GPUs")


def _diagnose(arguments: argparse.Namespace) -> str:
    from components.planning.diagnosis import told
    from components.planning.records import load_record

    return told(load_record(arguments.run, arguments.params, arguments.manifest))


def _advise(arguments: argparse.Namespace) -> str:
    from components.errors import VitrailError
    from components.planning.advice import Facts, advise
    from components.planning.facts import images_of, rate_of_cpu, rate_of_run
    from components.planning.training_rates import TrainingRates, pick_gpu
    from components.storage import atomic_file

    if arguments.out is not None and arguments.out.exists():
        raise VitrailError(f"{arguments.out}: there already; take another --out, or delete it")
    images, side = images_of(arguments.manifest)
    if arguments.like is not None:
        flops, measured = rate_of_run(arguments.like, None)
    elif arguments.gpu is not None:
        none = dict.fromkeys(("memory", "tflops", "bandwidth"))
        kind, gpu = pick_gpu(load_params(arguments.rates, TrainingRates), arguments.gpu, none, None)
        flops, measured = 1e12 * gpu.teraflops * gpu.utilisation, f"one {kind} by {arguments.rates}"
    else:
        flops, measured = rate_of_cpu()
    text, told = advise(Facts(images, side, arguments.minutes, flops, measured, arguments.gpu is not None))
    if arguments.out is None:
        return text + "\n".join(f"# {line}" for line in told)
    with atomic_file(arguments.out, "w") as file:
        file.write(text)
    return "\n".join([*told, f"next: name {arguments.out.stem} under `pretrain` in params/pipeline.yaml"])


def _crawl(arguments: argparse.Namespace) -> str:
    from components.crawl.spider import CrawlParams
    from components.planning.crawl import load_rates, plan

    polite = load_params(arguments.params, CrawlParams, arguments.set)
    return plan(arguments.warcs, polite, load_rates(arguments.rates), arguments.cores, arguments.megabits)


def _dedup(arguments: argparse.Namespace) -> str:
    from components.dedup.params import DedupParams
    from components.planning.dedup import Workload, load_rates, plan

    work = Workload(
        arguments.images,
        arguments.dim,
        arguments.cores,
        arguments.images_per_second,
        arguments.held_out,
        arguments.queries,
        arguments.gpu_gigabytes,
    )
    return plan(work, load_params(arguments.params, DedupParams, arguments.set), load_rates(arguments.rates))


def _training(arguments: argparse.Namespace) -> str:
    from components.distill.method import DistillParams
    from components.errors import VitrailError
    from components.planning.training import Cluster, plan
    from components.planning.training_rates import TrainingRates, pick_gpu, positive
    from components.training.params import TrainingParams

    if arguments.gpus < 1:
        raise VitrailError(f"--gpus {arguments.gpus}: choose 1 or more")
    rate, price = positive("rate", arguments.rate), positive("price", arguments.price)
    rates = load_params(arguments.rates, TrainingRates)
    figures = {name: getattr(arguments, name) for name in ("memory", "tflops", "bandwidth")}
    kind, gpu = pick_gpu(rates, arguments.gpu, figures, arguments.utilisation)
    on = Cluster(arguments.gpus, kind, gpu, rates.gpus_per_machine, rate, price)
    if arguments.command == "distill":
        params = load_params(arguments.params, DistillParams, arguments.set)
        teacher = load_params(arguments.teacher, TrainingParams)
        return plan(arguments.params, params, on, teacher=teacher)
    phases = load_params(arguments.params, TrainingParams, arguments.set).phases()
    found = [
        (f"{phase.name} phase:\n" if phase.name else "") + plan(arguments.params, phase.params, on, phase.first)
        for phase in phases
    ]
    return "\n".join(found)
