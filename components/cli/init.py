"""Set up this checkout for your own images.

vitrail init ~/photographs
vitrail init ~/photographs --machine gpu --minutes 120 --benchmark ~/labelled

It changes params/pipeline.yaml, and only what was asked for beyond it. Then ``vitrail run`` does all stages.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from components.cli import labelled
from components.command_line import application, commands_of
from components.errors import VitrailError
from components.params import load_params
from components.pipeline import PIPELINE, load_pipeline
from components.storage import StorageParams, atomic_file

BENCHMARKS = Path("params/benchmarks.yaml")
SMALL, STUDENT, ONE_GPU = "vitt", "vitxt", "vits_1gpu"
# Both networks together on two CPU cores, in colour. The demo's gray images take 160 steps a minute, and gray crops are
# a third of the work (params/pretrain/vitt.yaml): an estimate, not a measurement.
CPU_STEPS_A_MINUTE = 54
TEACHERS_SHARE = 0.7  # of the steps; vitt has 600 and vitxt 250 where no time is given
PLANNED_GPU = "a100-40gb"  # of params/rates/training.yaml
LEAST_STEPS = 20


@dataclass(frozen=True)
class InitRequest:
    """What the user gave."""

    source: str
    machine: str  # cpu or gpu
    minutes: float | None
    benchmark: Path | None


app = application("init", "Set up this checkout for your own folder of images.", "components.cli.init")
main = commands_of(app)
Processor = Literal["cpu", "gpu"]


@app.default
def init(
    folder: str | None = None,
    /,
    *,
    machine: Processor | None = None,
    minutes: float | None = None,
    benchmark: Path | None = None,
) -> None:
    """Set up this checkout for your own folder of images. On a terminal it asks for what you leave out.

    Args:
        folder: Your images, in any depth (also WARC files or tar shards).
        machine: Where training runs (default: gpu if nvidia-smi is installed).
        minutes: Minutes that training may take, about (default: the presets' own lengths).
        benchmark: Labelled images: a folder with a sub-folder for each class.
    """
    for line in write(_asked(folder, machine, minutes, benchmark, sys.stdin.isatty())):
        print(line)


def write(wanted: InitRequest) -> list[str]:
    """Change the parameters of the checkout in the current folder; returns what to tell the user, a line each.

    Raises:
        VitrailError: a folder or value that no run could use. Nothing was changed then.
    """
    source, found = _source(wanted.source)
    if wanted.minutes is not None and not 0 < wanted.minutes <= 1e6:
        raise VitrailError(f"--minutes {wanted.minutes:g}: choose more than 0, at most 1,000,000")
    steps = None if wanted.minutes is None else _steps(wanted.machine, wanted.minutes)
    lines = [f"source: {source}: {found}"]
    lines += _write_benchmark(wanted.benchmark)
    presets = [ONE_GPU, SMALL] if wanted.machine == "gpu" else [SMALL]
    text = PIPELINE.read_text(encoding="utf-8")
    text = re.sub(r"(?m)^source:.*$", lambda _: f"source: {json.dumps(source, ensure_ascii=False)}", text, count=1)
    listed = "pretrain:\n" + "".join(f"  - {preset}\n" for preset in presets)
    text = re.sub(r"(?m)^pretrain:.*\n(?:[ \t]+.*\n|[ \t]*-.*\n)*", lambda _: listed, text, count=1)
    students = f"distill:\n  {STUDENT}:\n    teacher: {SMALL}\n"
    text = re.sub(r"(?m)^distill:.*\n(?:[ \t]+.*\n?)*", lambda _: students, text, count=1)
    _save(PIPELINE, text)
    if load_pipeline().source != source:
        raise VitrailError(f"{PIPELINE}: could not set `source`; write it there by hand: {source}")
    lines.append(f"networks: {', '.join(presets)}, then the student {STUDENT} of {SMALL}")
    if wanted.machine == "gpu":
        lines.append(f"left out: a student of {ONE_GPU}; its preset would need the same prototypes, and there is none")
    for preset, count in (steps or {}).items():
        path = Path(f"params/{preset}.yaml")
        old = path.read_text(encoding="utf-8")
        _save(path, re.sub(r"(?m)^(\s+iterations:)\s*\d+", rf"\g<1> {count}", old, count=1))
        lines.append(f"{path}: {count:,} steps, estimated from --minutes; the log shows the real rate")
    if steps is None:
        lines.append("left out: --minutes; the presets keep their own lengths")
    return [*lines, "next: vitrail run, then vitrail report"]


def _asked(
    folder: str | None, machine: str | None, minutes: float | None, benchmark: Path | None, terminal: bool
) -> InitRequest:
    """What was given, with answers for what is missing; without a terminal, defaults."""
    here = "gpu" if shutil.which("nvidia-smi") else "cpu"
    whole = folder is not None  # a folder on the command line: nothing is asked
    if folder is None:
        if not terminal:
            raise VitrailError("vitrail init: name your folder of images, as in: vitrail init ~/photographs")
        folder = input("Where are your images? ").strip()
    if machine is None:
        machine = here if whole else input(f"Which machine, cpu or gpu? [{here}] ").strip() or here
        if machine not in ("cpu", "gpu"):
            raise VitrailError(f"machine {machine!r}: choose cpu or gpu")
    if minutes is None and not whole:
        answer = input("About how many minutes may training take? [the presets' own lengths] ").strip()
        try:
            minutes = float(answer) if answer else None
        except ValueError:
            raise VitrailError(f"minutes {answer!r}: expected a number") from None
    return InitRequest(folder, machine, minutes, benchmark)


def _source(folder: str) -> tuple[str, str]:
    """The value of ``source``, and what is there in words."""
    from components.web.sources.listing import listing

    path = Path(folder).expanduser()
    if not folder or not path.is_dir():
        raise VitrailError(f"{folder or 'vitrail init'}: no such folder; name the folder that holds your images")
    path = path.resolve()
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise VitrailError(f"{folder!r}: its name is not UTF-8, which DVC cannot keep; rename it") from None
    if "${" in str(path):
        raise VitrailError(f"{path}: DVC reads '${{' in a name as a variable; rename the folder")
    if Path.cwd().resolve().is_relative_to(path):
        raise VitrailError(f"{path}: this checkout lies inside it; move the images to a folder of their own")
    files = listing(str(path), load_params("params/storage.yaml", StorageParams)).found
    found = (("images", files.get("images")), ("tar shards", files.get("tars")), ("WARC files", files.get("warc")))
    counts = [f"{len(paths):,} {words}" for words, paths in found if paths]
    if not counts:
        raise VitrailError(f"{path}: no images in it (nor tar shards or WARC files); name another folder")
    return str(path), ", ".join(counts)


def _write_benchmark(folder: Path | None) -> list[str]:
    """Turn the labelled folder into a benchmark of params/benchmarks.yaml."""
    if folder is None:
        return [
            "left out: scores, because no labelled images were given (--benchmark); the benchmark shows PCA pictures",
            "left out: calibration and retrieval; copies are found with the threshold of params/dedup.yaml",
        ]
    folder = folder.expanduser()
    if not folder.is_dir():
        raise VitrailError(f"--benchmark {folder}: no such folder")
    name = re.sub(r"\W+", "_", folder.resolve().name, flags=re.ASCII).strip("_")[:40] or "labelled"
    table = Path("benchmarks") / f"{name}.parquet"
    counts = labelled.write(folder.resolve(), table)
    text = BENCHMARKS.read_text(encoding="utf-8").rstrip("\n")
    if not re.search(rf"(?m)^{re.escape(name)}:", text):
        entry = f"{name}:\n  kind: parquet\n  path: {table}\n  labels: [label]\n  key: key\n"
        _save(BENCHMARKS, f"{text}\n\n{entry}")
    return [
        f"benchmark {name}: {counts['train']:,} images to train the probes, {counts['test']:,} held out -> {table}",
        "left out: calibration and retrieval with these labels; docs/dedup.md says how to turn them on",
    ]


def _steps(machine: str, minutes: float) -> dict[str, int]:
    """Steps of each preset (its file below params/) that about fill ``minutes``."""
    total = CPU_STEPS_A_MINUTE * minutes
    if machine == "cpu":
        return {
            f"pretrain/{SMALL}": max(LEAST_STEPS, round(TEACHERS_SHARE * total)),
            f"distill/{STUDENT}": max(LEAST_STEPS, round((1 - TEACHERS_SHARE) * total)),
        }
    from components.planning.training_rates import TrainingRates
    from components.training.costs.flops import flops_per_step
    from components.training.params import TrainingParams

    gpu = load_params("params/rates/training.yaml", TrainingRates).gpus[PLANNED_GPU]
    flops = sum(flops_per_step(load_params(f"params/pretrain/{ONE_GPU}.yaml", TrainingParams), 1).values())
    rate = 1e12 * gpu.teraflops * gpu.utilisation / flops  # steps a second
    return {f"pretrain/{ONE_GPU}": max(LEAST_STEPS, round(60 * minutes * rate))}


def _save(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
