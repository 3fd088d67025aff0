"""The code that each DVC stage depends on: the closure of its module's imports, listed in dvc.yaml.

python -m infra.stage_code           # says what is missing or too much; exit code 1 when something is
python -m infra.stage_code --write   # rewrites the lists in dvc.yaml

A stage is stale when code that it runs has changed, and only then. Imports inside functions count like those at the top
of a file. A folder is listed where the stage imports all of its files, else the files are.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "# code: python -m infra.stage_code --write", "# end of code"
# Stage -> the room whose command it runs
STAGES = {stage: stage for stage in ("crawl", "curate", "dedup", "pretrain", "distill", "benchmark")}
STAGES |= {"continue": "pretrain", "gain": "benchmark"}
# What every stage imports and what decides nothing of its output, with the reason.
EXEMPT = {
    "components/__init__.py": "a docstring",
    "components/errors.py": "how faults are told",
    "components/command_line.py": "how command lines are read",
    "components/unedited.py": "refuses a result; it changes none",
    "components/code_version.py": "names the commit",
    "components/git.py": "runs git, for the commit",
    "components/deferred_imports.py": "when a library's modules are loaded",
    "components/progress.py": "what is printed meanwhile",
    "components/params.py": "reads parameter files, which are dependencies themselves",
    "components/input_paths.py": "as components/params.py",
    "components/layers.py": "as components/params.py",
    "components/pipeline.py": "as components/params.py",
    "components/leftover.py": "what is printed where little is left",
    "components/text.py": "reads text files, which are dependencies themselves",
    "components/yaml_core.py": "as components/params.py",
    "components/context.py": "names what stages are given",
    "components/storage/": "moves bytes as they are",
    "components/executor.py": "where work runs; results are equal wherever",
    "components/tracking/": "what MLflow is told",
    "components/quality/__init__.py": "names the room",
    "components/quality/offline.py": "how outcomes are shown",
    "components/quality/project.py": "as components/quality/checks.py",
    "components/quality/checks.py": "how Great Expectations is asked; the suites themselves count",
}


def imported(path: Path, root: Path = ROOT) -> set[str]:
    """The files of ``components`` that ``path`` imports, relative to ``root``, packages' ``__init__`` among them."""
    names = set[str]()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    found = set[str]()
    for name in names:
        parts = name.split(".")
        if parts[0] != "components":
            continue
        for end in range(1, len(parts) + 1):
            place = root.joinpath(*parts[:end])
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if file.is_file():
                    found.add(file.relative_to(root).as_posix())
    return found


def exempt(file: str) -> bool:
    """Whether ``file`` is one that no stage lists."""
    return any(file == one or (one.endswith("/") and file.startswith(one)) for one in EXEMPT)


def closure(stage: str, root: Path = ROOT) -> set[str]:
    """All files that the command of ``stage`` may import, but the exempt ones and what only those import."""
    waiting = [f"components/{STAGES.get(stage, stage)}/{name}.py" for name in ("__init__", "__main__", "run", "stage")]
    found = set[str]()
    while waiting:
        file = waiting.pop()
        if file in found or exempt(file):
            continue
        found.add(file)
        waiting += imported(root / file, root) - found
    return found


def listed(files: Iterable[str], root: Path = ROOT) -> list[str]:
    """``files`` as dvc.yaml names them: a folder, without a slash at its end, where all of its files are among them."""
    left, entries = set(files), list[str]()
    folders = sorted({Path(file).parent.as_posix() for file in left})
    for folder in folders:
        inside = {path.relative_to(root).as_posix() for path in (root / folder).rglob("*.py")}
        if inside and inside <= left:
            entries.append(folder)
            left -= inside
    return sorted(entries + list(left))


def in_dvc_yaml(text: str) -> dict[str, list[str]]:
    """The code that each stage of ``dvc.yaml``'s ``text`` lists."""
    found: dict[str, list[str]] = {}
    stage, inside = "", False
    for line in text.splitlines():
        if head := re.match(r"  (\w+):$", line):
            stage = head[1]
        if line.strip() == BEGIN:
            inside, found[stage] = True, []
        elif line.strip() == END:
            inside = False
        elif inside:
            found[stage].append(line.strip().removeprefix("- "))
    return found


def rewritten(text: str, root: Path = ROOT) -> str:
    """``dvc.yaml``'s ``text`` with every stage's list made anew."""
    lines, stage, inside = list[str](), "", False
    for line in text.splitlines():
        if head := re.match(r"  (\w+):$", line):
            stage = head[1]
        if line.strip() == END:
            inside = False
        if not inside:
            lines.append(line)
        if line.strip() == BEGIN:
            inside = True
            indent = " " * (len(line) - len(line.lstrip()))
            lines += [f"{indent}- {entry}" for entry in listed(closure(stage, root), root)]
    return "\n".join(lines) + "\n"


def faults(root: Path = ROOT) -> list[str]:
    """A line for every entry that a stage's list in dvc.yaml lacks or has too much."""
    told = list[str]()
    have = in_dvc_yaml((root / "dvc.yaml").read_text(encoding="utf-8"))
    for stage in STAGES:
        wanted, given = set(listed(closure(stage, root), root)), set(have.get(stage, ()))
        told += [f"dvc.yaml, {stage}: {entry} is missing, which the stage imports" for entry in sorted(wanted - given)]
        told += [f"dvc.yaml, {stage}: {entry} is too much" for entry in sorted(given - wanted)]
    return told


def main(argv: list[str]) -> int:
    """Check the lists, or write them."""
    path = ROOT / "dvc.yaml"
    if argv == ["--write"]:
        path.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    found = faults()
    print("\n".join(found) or "dvc.yaml lists the code of every stage", file=sys.stderr if found else sys.stdout)
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
