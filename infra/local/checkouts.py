"""The checkouts that flow runs work in, below ``runs/``: how many bytes they take, and removal.

python -m infra.local.checkouts
python -m infra.local.checkouts remove NAME ...
"""

from __future__ import annotations

import time
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import run_cli
from components.lock import look
from components.progress import duration
from flows.checkouts import RUNS, kept_checkouts, noted, remove

app = application("checkouts", "The checkouts that flow runs work in.", "infra.local.checkouts")
main = commands_of(app)


@app.default
def show() -> None:
    """Show each checkout below runs/: its size, and how its last run ended."""
    found = kept_checkouts(RUNS)
    for folder in found:
        size = sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
        print(f"{folder.name:<30} {size / 1e6:>10,.1f} MB  {_state(folder)}")
    if not found:
        print("there are none")


@app.command(name="remove")
def remove_named(*names: str) -> None:
    """Delete checkouts, with what their runs have not finished.

    Args:
        names: Of the checkouts, such as pretrain-vitt.
    """
    for name in names:
        remove(RUNS / Path(name).name)
        print(f"deleted {RUNS / Path(name).name}")


def _state(folder: Path) -> str:
    held = look(folder.with_name(f".{folder.name}.lock"))
    if held is not None and held.alive:
        return f"in use by {held.holder}"
    about = noted(folder)
    if not about:
        return "nothing is known of its run"
    ago = duration(max(0.0, time.time() - about["at"]))
    return (
        f"ended well {ago} ago" if about.get("done") else f"not finished, or its result is here alone; begun {ago} ago"
    )


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
