"""``make demo``: the whole chain through ``dvc repro``, then what it learned and where to look closer.

    python -m infra.local.demo [STAGE ...]

The exit code is DVC's. Run it again to carry on after a fault, or to see that nothing is left to do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path
from typing import Any

from components.command_line import application, commands_of
from components.errors import VitrailError, run_cli
from components.progress import duration, share_done
from flows.process import run_streaming
from flows.settings import load_pipeline, load_platform
from flows.stages import report_path, stage_names
from flows.workspace import checkout_files
from infra.local.report import mlflow_pages, write_report

_FREE = 3 * 1024**3  # bytes that shards, cache, checkpoints and MLflow's store take at most
_STARTS = re.compile(r"Running stage '([^']+)'")
_SKIPS = re.compile(r"Stage '([^']+)' didn't change, skipping")
_RATE = re.compile(r"/s\b")  # a line of progress that is not the last one
_BAR, _ERASE = 20, "\r\x1b[K"  # characters of a bar; back to the line's beginning, and clear it
# Of DVC's chatter, what is no news to somebody who runs a demo.
_CHATTER = re.compile(
    r"^(> |\s*$|To track the changes|To enable auto staging|\s+(git add|dvc config core\.autostage)|Use `dvc push`"
    r"|Updating lock file|Generating lock file|Verifying data sources)"
)


class StageClock:
    """Follows DVC's lines: prints them, and how long each stage took."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self.skipped: list[str] = []
        self.errors: list[str] = []
        self._stage = ""
        self._since = time.monotonic()
        self._bar = False  # whether the cursor is behind a bar

    def line(self, line: str) -> None:
        """Take one line of ``dvc repro``."""
        if match := _STARTS.search(line):
            self.close()
            self._stage, self._since = match[1], time.monotonic()
            print(f"\n== {match[1]}", flush=True)
        elif match := _SKIPS.search(line):
            self.close()
            self.skipped.append(match[1])
            print(f"== {match[1]}: nothing changed", flush=True)
        elif not _CHATTER.match(line):
            if line.startswith(("error: ", "ERROR: ")):
                self.errors.append(line)
            self._show(line)

    def _show(self, line: str) -> None:
        """Print ``line``; on a terminal, progress is one bar that is drawn again and again."""
        share = share_done(line) if sys.stdout.isatty() and _RATE.search(line) else None
        print(_ERASE if self._bar else "", end="")
        self._bar = share is not None
        if share is None:
            print(f"   {line}", flush=True)
            return
        drawn = f"   [{'#' * round(_BAR * share):.<{_BAR}}] {line}"
        print(drawn[: shutil.get_terminal_size().columns - 1], end="", flush=True)

    def close(self) -> None:
        """Account for the stage that has just ended."""
        if self._bar:
            print(_ERASE, end="")
            self._bar = False
        if self._stage:
            self.times[self._stage] = time.monotonic() - self._since
            print(f"== {self._stage}: {duration(self.times[self._stage])}", flush=True)
        self._stage = ""


def preflight(root: Path) -> None:
    """Raise VitrailError for what would stop the chain minutes later."""
    if shutil.which("git") is None:
        raise VitrailError("git is not installed, and DVC versions data beside a git checkout; install git")
    checkout_files(root)  # raises where there is no checkout
    free = shutil.disk_usage(root).free
    if free < _FREE:
        raise VitrailError(f"{root.resolve()}: {free / 1e9:.1f} GB free, the demo needs {_FREE / 1e9:.1f}; free some")
    load_pipeline(root)


app = application("run", "Bring every stage up to date, and print the results.", "infra.local.demo")
main = commands_of(app)


@app.default
def run(*stages: str) -> int:
    """Bring every stage up to date, from source to benchmark, and print the results.

    Args:
        stages: Only these stages, with what they need.
    """
    root = Path.cwd()
    preflight(root)
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    env["PATH"] = os.pathsep.join([sysconfig.get_path("scripts"), env.get("PATH", os.defpath)])
    clock = StageClock()
    began = time.monotonic()
    command = [sys.executable, "-m", "dvc", "repro", *stages]
    grace = load_platform(root).stage_grace
    code = run_streaming(command, cwd=root, env=env, on_line=clock.line, grace=grace)
    clock.close()
    took = duration(time.monotonic() - began)
    if code != 0:
        print(f"\nstopped after {took}; finished stages are kept, run the same command again to carry on")
        own = [line for line in clock.errors if line.startswith("error: ")]
        print((own or clock.errors or [f"error: dvc repro ended with code {code}"])[-1], file=sys.stderr, flush=True)
        return code if code > 0 else 1
    print_summary(root, clock, took)
    return 0


def print_summary(root: Path, clock: StageClock, took: str) -> None:
    """What the chain learned, and the three commands to look closer."""
    print(f"\n{'=' * 100}\nthe chain is up to date after {took}")
    for stage, seconds in clock.times.items():
        print(f"  {stage:<20} {duration(seconds)}")
    if clock.skipped:
        print(f"  nothing changed for {', '.join(clock.skipped)}")
    names = [report_path(stage) for stage in stage_names(load_pipeline(root)) if stage != "benchmark"]
    for report in (root / name for name in names if (root / name).is_file()):
        print(f"\n{report.stem}\n{format_report(json.loads(report.read_text(encoding='utf-8')))}")
    table = root / "data/benchmark/table.md"
    if table.is_file():
        print(f"\nbenchmark, 95 % confidence intervals\n\n{table.read_text(encoding='utf-8').strip()}")
    pages = "\n".join(f"    {line}" for line in mlflow_pages(root, load_platform(root)))
    report = write_report(root)
    print(
        f"""
look closer:
  vitrail report                                   the whole run on one page: {report}
  make platform                                    then, in a browser:
{pages}
  .venv/bin/prefect deployment run pretrain/vitt --watch       trains on the worker of that platform
  .venv/bin/dvc metrics show                       every number above; `dvc dag` draws the stages"""
    )


def format_report(content: dict[str, Any], indent: str = "  ") -> str:
    """A report's numbers as aligned lines; a section of plain numbers takes one line."""
    lines = []
    for name, value in content.items():
        if isinstance(value, dict) and any(isinstance(inner, dict) for inner in value.values()):
            lines += [f"{indent}{name}:", format_report(value, indent + "  ")]
        elif isinstance(value, dict):
            inner = ", ".join(f"{key} {_short(number)}" for key, number in value.items())
            lines.append(f"{indent}{name}: {inner or 'none'}")
        else:
            lines.append(f"{indent}{name}: {_short(value)}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
