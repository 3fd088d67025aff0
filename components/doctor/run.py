"""Check this machine and checkout, and say what to do about each thing that is not right.

python -m components.doctor
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from components.command_line import application, commands_of
from components.doctor import machine, workspace
from components.doctor.finding import Check, CheckResult

CHECKS: tuple[Check, ...] = (
    machine.python,
    machine.packages,
    machine.machine,
    machine.gpu,
    machine.disk,
    machine.clock,
    workspace.parameters,
    workspace.store,
    workspace.servers,
    workspace.locks,
    workspace.dvc,
)


app = application("doctor", "Check this machine and checkout, and say what to do.", "components.doctor")
main = commands_of(app)


@app.default
def doctor() -> int:
    """Check this machine and checkout, and say what to do. The exit code is 1 if something is bad."""
    bad = 0
    for finding in examine(Path.cwd()):
        print(finding, flush=True)
        bad += finding.level == "bad"
    print("\nall is well" if not bad else f"\n{bad} to mend: see the lines that begin with BAD")
    return 1 if bad else 0


def examine(root: Path) -> Iterator[CheckResult]:
    """What each check found, in order."""
    for check in CHECKS:
        yield from check(root)
