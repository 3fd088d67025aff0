"""Output as a JSON object a line, for those who collect logs: ``VITRAIL_LOGS=json`` in the environment of any command.

    {"time": "2026-01-01T10:00:00.123Z", "level": "info", "stage": "pretrain", "rank": 3, "run": "...", "line": "..."}

``run`` is the id of Prefect's flow run, where one started the command. Lines that a child process prints by itself are
left as they are.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

VARIABLE = "VITRAIL_LOGS"
_MARK = '{"time": "'


class JsonLines(io.TextIOBase):
    """Writes each line that it is given as an object, with ``about`` in it."""

    def __init__(self, out: TextIO, about: Mapping[str, Any]) -> None:
        self._out, self._about, self._begun = out, dict(about), ""

    def write(self, text: str) -> int:
        """Take ``text``; a line is written once its end has come."""
        *lines, self._begun = (self._begun + text.replace("\r", "\n")).split("\n")
        for line in lines:
            self._line(line)
        return len(text)

    def flush(self) -> None:
        """Write through what has ended. A line that has only begun waits for its end."""
        self._out.flush()

    def finish(self) -> None:
        """Write what is left of a line."""
        self._line(self._begun)
        self._begun = ""
        self._out.flush()

    def isatty(self) -> bool:
        """Never: bars and colours are for people."""
        return False

    def fileno(self) -> int:
        """That of what is written to."""
        return self._out.fileno()

    def _line(self, line: str) -> None:
        if not line.strip():
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"
        level = next((name for name in ("error", "warning") if line.startswith(f"{name}: ")), "info")
        self._out.write(json.dumps({"time": stamp, "level": level, **self._about, "line": line}) + "\n")
        self._out.flush()


def begin() -> None:
    """Write this process's output as JSON from here on, if the environment asks for it."""
    if os.environ.get(VARIABLE, "") != "json" or isinstance(sys.stdout, JsonLines):
        return
    about = about_this_process(sys.argv, os.environ)
    sys.stdout, sys.stderr = JsonLines(sys.stdout, about), JsonLines(sys.stderr, about)


def end() -> None:
    """Write what is left of a line, at the end of the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, JsonLines):
            stream.finish()


def about_this_process(argv: list[str], env: Mapping[str, str]) -> dict[str, Any]:
    """Stage, rank and run, as far as they are known: by the command, and by what launchers set."""
    program = Path(argv[0])
    stage = program.parent.name if program.stem in ("__main__", "run") else program.stem
    if stage == "vitrail" and len(argv) > 1:
        stage = argv[1]
    about: dict[str, Any] = {"stage": stage}
    for name in ("RANK", "SLURM_PROCID"):
        if env.get(name, "").isdigit():
            about["rank"] = int(env[name])
            break
    if env.get("VITRAIL_FLOW_RUN_ID"):
        about["run"] = env["VITRAIL_FLOW_RUN_ID"]
    return about


def plain(line: str) -> str:
    """The line that was printed, of one that is JSON; any other as it is."""
    if line.startswith(_MARK):
        try:
            return str(json.loads(line)["line"])
        except (ValueError, KeyError, TypeError):
            return line
    return line
