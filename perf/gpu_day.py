"""All that waits for a GPU, in one command of at most nine minutes: ``python -m perf gpu_day``.

Parts, each a process of its own with its share of the time, so that one that fails or hangs takes no other with it:

- the tests that need a GPU;
- whole training steps of vits, vitb, vitl and vitg (:mod:`perf.gpu`);
- the loader's rate with all its processes, for the crops of vits, beside that step's rate;
- a curve of 20-NN on CIFAR-10 through the engine, ZeRO-3 and fp16, by ``params/pretrain/vits_cifar.yaml``
  (:mod:`perf.cifar`), as long as the time allows.

Beyond torch this needs DeepSpeed, whose pure wheel is enough (``DS_BUILD_OPS=0 pip wheel deepspeed --no-deps``), and
hjson, pydantic and simplejpeg. A part whose packages are missing says so. ``--data`` names the Parquet table of
CIFAR-10. ``python -m perf.gpu_day --device cpu`` runs the same parts on a CPU with a tiny network, to see that they
run. ``python -m perf.gpu_day --write`` puts the figures of perf/results/gpu_day.json into docs/performance.md, under
the device's name.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
PAGE = ROOT / "docs" / "performance.md"
PRESETS = ROOT / "params" / "pretrain"
HEADING = "## On a GPU"
DATA = ROOT.parent / "shared" / "data" / "cifar10-24k.parquet"
TRIAL = 30  # steps of the curve's run that measures how many fit; 6 on a CPU
SPARED = 0.6  # of the curve's time is training: the rest is start, trial, decoding and scores
BATCHES = 40  # of the loader


@dataclass(frozen=True)
class Day:
    """Where it runs, for how long."""

    device: str = "cuda"
    minutes: float = 9.0
    data: Path = DATA

    @property
    def small(self) -> bool:
        """On a CPU everything is tiny."""
        return self.device == "cpu"


@dataclass(frozen=True)
class Part:
    """A process: what it runs, and its share of the time."""

    name: str
    command: Sequence[str]  # after "python -m"; figures go to the file that {out} names
    share: float


def plan(day: Day) -> list[Part]:
    """The parts but for the curve, which takes the time that they leave."""
    tests = Part("tests", ["pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/components/learning"], 0.15)
    loader = Part("loader", ["perf.gpu_day", "--loader", "vitt" if day.small else "vits", "--json", "{out}"], 0.1)
    if day.small:
        tiny = ["--device", "cpu", "--precisions", "fp32", "--rounds", "2", "--side", "1024", "--ways", "packed, eager"]
        steps = [Part("step vitt", ["perf.gpu", "--presets", "vitt", *tiny, "--json", "{out}"], 0.3)]
    else:
        shares = {"vits": 0.07, "vitb": 0.08, "vitl": 0.1, "vitg": 0.15}
        steps = [
            Part(f"step {preset}", ["perf.gpu", "--presets", preset, "--json", "{out}"], share)
            for preset, share in shares.items()
        ]
    return [tests, *steps, loader]


def main(day: Day | None = None) -> dict[str, object]:
    """Every part's figures, or why there are none."""
    day = day or Day()
    if day.device == "cuda" and not _cuda():
        return {"left out": "no CUDA device"}
    started, seconds, found = time.monotonic(), 60 * day.minutes, {}
    for part in plan(day):
        found[part.name] = run(part.command, part.share * seconds)
        print(f"{part.name}: {found[part.name]}", flush=True)
        _keep(found)
    found["curve"] = curve(day, seconds - (time.monotonic() - started))
    _keep(found)
    return {"device": _device(day), **found}


def run(command: Sequence[str], limit: float) -> dict[str, Any]:
    """Figures of one process, which is ended after ``limit`` seconds; what it printed last, if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        started = time.monotonic()
        line = [sys.executable, "-m", *(word.format(out=out) for word in command)]
        try:
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=limit)
            failed, said = done.returncode, done.stdout + done.stderr
        except subprocess.TimeoutExpired as late:
            failed, said = f"ended after {limit:.0f} s", _text(late.stdout) + _text(late.stderr)
        took = {"seconds": round(time.monotonic() - started, 1)}
        figures: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
        if failed:
            return {"failed": failed, "said": said[-600:], **figures, **took}
        return {**(figures or {"said": said.strip().splitlines()[-1] if said.strip() else ""}), **took}


def _text(said: bytes | str | None) -> str:
    return said.decode(errors="replace") if isinstance(said, bytes) else said or ""


def curve(day: Day, seconds: float) -> dict[str, Any]:
    """The learning curve of as many steps as fit: a short run measures how long one takes."""
    preset = PRESETS / ("vitt_cifar.yaml" if day.small else "vits_cifar.yaml")
    command = ["perf.cifar", "--preset", str(preset), "--data", str(day.data), "--json", "{out}"]
    first = 6 if day.small else TRIAL
    trial = run([*command, "--set", f"run.iterations={first}", "--points", "1"], 0.4 * seconds)
    if "training_minutes" not in trial:
        return trial
    left = SPARED * seconds - trial["seconds"]
    steps = int(left / max(60 * trial["training_minutes"] / first, 1e-4))
    if steps < first:
        return {"left out": f"only {steps} steps would fit", "trial": trial}
    found = run([*command, "--set", f"run.iterations={steps}", "--points", "8"], seconds - trial["seconds"])
    return {**found, "trial": trial}


def loader_rate(preset: str) -> dict[str, object]:
    """Images a second that the loader's processes hand over for the crops of ``preset``, on this machine."""
    from components.images.loader import Loader, Stream
    from components.learning.augment import MultiCrop
    from components.learning.collate import collate_bytes
    from components.params import load_params
    from components.training.params import TrainingParams
    from perf.loader import as_dataset, photographs

    params = load_params(PRESETS / f"{preset}.yaml", TrainingParams)
    workers = max(1, min((os.cpu_count() or 2) - 2, 14))
    how = params.loader.model_copy(update={"workers": workers})
    with tempfile.TemporaryDirectory() as folder:
        jpegs = next(iter(photographs().values()))
        crops, stream = (
            MultiCrop(params.augment, defer_color=not preset.startswith("vitt")),
            Stream(params.run.batch, 0),
        )
        batches = iter(Loader(as_dataset(Path(folder), jpegs), crops, stream, collate=collate_bytes, params=how))
        for _ in range(workers):  # start the processes
            next(batches)
        started, images = time.monotonic(), 0
        for _ in range(BATCHES):
            images += len(next(batches).keys)
        return {"images_per_second": round(images / (time.monotonic() - started), 1), "processes": workers}


def page(text: str, figures: Mapping[str, Any]) -> str:
    """``text`` of docs/performance.md with a section of these figures; an older section of the same device goes."""
    device = figures["device"]
    title = f"### {device['name']}, torch {device['torch']}"
    lines = [title, "", "`python -m perf gpu_day`. One run.", ""]
    for name, part in figures.items():
        if name.startswith("step "):
            lines += [*_steps(name.removeprefix("step "), part), ""]
        elif name != "device":
            lines += [f"**{name.capitalize()}**: {_words(part)}.", ""]
    section = "\n".join(lines)
    head, _, rest = text.partition(f"{HEADING}\n")
    if not rest:
        return f"{text.rstrip()}\n\n{HEADING}\n\n{section}"
    ours, next_heading, after = rest.partition("\n## ")
    others = [part.strip() for part in f"\n{ours}".split("\n### ")[1:]]
    kept = [f"### {part}\n" for part in others if f"### {part.splitlines()[0]}" != title]
    return f"{head}{HEADING}\n\n" + "\n".join([*kept, section]) + next_heading + after


def _steps(preset: str, part: Mapping[str, Any]) -> list[str]:
    """A table of one network's steps."""
    if preset not in part:
        return [f"**{preset}**: {_words(part)}."]
    lines = [
        f"**{preset}**, batch {part[preset]['batch']}:",
        "",
        "| precision, way | images a second | share of a dense product's rate | peak memory, GB |",
        "|---|---|---|---|",
    ]
    for precision, rows in part[preset].items():
        for way, row in rows.items() if isinstance(rows, dict) else ():
            if isinstance(row, dict):
                cells = [row.get(key, "-") for key in ("images_per_second", "share_of_matmul_rate", "peak_memory_gb")]
                lines.append(f"| {precision}, {way} | {' | '.join(map(str, cells))} |")
    return lines


def _words(part: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in part.items() if key != "trial")


def _keep(found: Mapping[str, object]) -> None:
    """Keep what is known so far, should the machine go away."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "gpu_day.part.json").write_text(json.dumps(found, indent=1) + "\n")


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _device(day: Day) -> dict[str, str]:
    import platform

    import torch

    name = platform.processor() or "CPU" if day.small else torch.cuda.get_device_name()
    return {"name": name, "torch": torch.__version__}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="All that waits for a GPU.")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--data", type=Path, default=DATA, help="Parquet of CIFAR-10: image (JPEG), label, split")
    parser.add_argument("--write", action="store_true", help="put the last run's figures into docs/performance.md")
    parser.add_argument("--loader", metavar="PRESET", help="measure the loader alone")
    parser.add_argument("--json", type=Path, help="file for the loader's figures")
    given = parser.parse_args()
    if given.loader:
        rate = loader_rate(given.loader)
        print(rate)
        if given.json:
            given.json.write_text(json.dumps(rate))
    elif given.write:
        record = json.loads((RESULTS / "gpu_day.json").read_text())
        PAGE.write_text(page(PAGE.read_text(), record["measured"]))
    else:
        measured = main(Day(given.device, given.minutes, given.data.resolve()))
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "gpu_day.json").write_text(json.dumps({"measured": measured}, indent=1) + "\n")
        print(json.dumps(measured, indent=1))
