"""Writes the lock files anew: every version that an install takes, with the SHA-256 of each of its files.

    python -m infra.local.lock                     # after a change in pyproject.toml; versions stay where they can
    python -m infra.local.lock --upgrade boto3     # a newer boto3, and what it asks for

It needs uv and the package index. ``requirements.lock`` is what Vitrail needs to run; each file of ``requirements/``
is what an extra of pyproject.toml adds to it. One set serves every promised Python, x86-64 and arm64: pip takes the
file that fits, and refuses one that is not listed. torch and NVIDIA's packages, which it asks for by exact version, are
left out: their builds differ by machine, so ``requirements/torch.txt`` has no hash.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from components.command_line import application, commands_of
from components.errors import VitrailError, run_cli
from components.storage import atomic_file

ROOT = Path(__file__).resolve().parents[2]
BASE = "requirements.lock"
ADDED = ("cpu", "gpu", "dev", "docs", "perf", "ray", "servers", "yuface")  # extras of pyproject.toml
ALONE = {  # files that need nothing of the base
    "build": ("setuptools>=77", "wheel"),
    "security": ("bandit", "cyclonedx-bom", "pip-audit"),
}
_BY_MACHINE = re.compile(r"^(torch|triton|(nvidia|cuda)-.*)$")  # builds that differ by machine
_ENTRY = re.compile(r"^([A-Za-z0-9._-]+)(?:\[[^]]*\])?==([^\s;\\]+)")


def entries(text: str) -> dict[str, str]:
    """The entries of a lock file by plain name, each with its marker and hashes."""
    found, name = dict[str, str](), ""
    for line in text.splitlines():
        match = _ENTRY.match(line)
        if match:
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            found[name] = line
        elif name and line.startswith(" "):
            found[name] += f"\n{line}"
        else:
            name = ""
    return found


def _resolved(source: Sequence[str], given: str, known: Sequence[Path], upgrade: Sequence[str]) -> dict[str, str]:
    """What uv makes of ``source`` (``-`` reads ``given``); versions of ``known`` stay, but for those of ``upgrade``."""
    there = {name: entry for path in known for name, entry in entries(path.read_text(encoding="utf-8")).items()}
    constraints = [entry.partition("\\")[0] for name, entry in there.items() if name not in upgrade]  # markers, too
    command = ["uv", "pip", "compile", "--universal", "--python-version", "3.11", "--generate-hashes", "--no-header"]
    command += ["--no-annotate", "--quiet"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(constraints))
        file.flush()
        try:
            done = subprocess.run(
                [*command, "--constraint", file.name, *source], cwd=ROOT, input=given, capture_output=True, text=True
            )
        except FileNotFoundError:
            raise VitrailError("uv is not installed here: pip install uv") from None
    if done.returncode != 0:
        raise VitrailError(f"uv pip compile: {' '.join(done.stderr.split())[:600]}")
    return {name: entry for name, entry in entries(done.stdout).items() if not _BY_MACHINE.match(name)}


def _write(path: Path, what: str, found: dict[str, str]) -> None:
    with atomic_file(path, "w") as file:
        file.write(f"# {what}. Made by: python -m infra.local.lock\n")
        file.write("".join(f"{entry}\n" for _, entry in sorted(found.items())))
    print(f"{path.relative_to(ROOT)}: {len(found)} packages")


app = application("lock", "Write the lock files anew, with the SHA-256 of every file.", "infra.local.lock")
main = commands_of(app)


@app.default
def lock(upgrade: Annotated[list[str] | None, Parameter(help="packages to take newer versions of")] = None) -> None:
    """Resolve pyproject.toml and each of its extras, and write all lock files."""
    folder, newer = ROOT / "requirements", upgrade or []
    known = [path for path in (ROOT / BASE, *sorted(folder.glob("*.lock"))) if path.is_file()]
    base = _resolved(["pyproject.toml"], "", known, newer)
    _write(ROOT / BASE, "What Vitrail needs to run, beside torch (requirements/torch.txt)", base)
    known.append(ROOT / BASE)
    for extra in ADDED:
        found = _resolved(["pyproject.toml", "--extra", extra], "", known, newer)
        added = {name: entry for name, entry in found.items() if name not in base}
        _write(folder / f"{extra}.lock", f"What the extra '{extra}' adds to requirements.lock", added)
    for name, wanted in ALONE.items():
        _write(folder / f"{name}.lock", f"For {name}, complete", _resolved(["-"], "\n".join(wanted), known, newer))


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
