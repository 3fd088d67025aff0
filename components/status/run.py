"""Show what is running in this checkout, how far it is, and how long it will take.

python -m components.status [--watch]
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from components.command_line import application, commands_of
from components.lock import Held, look
from components.progress import duration, published

# Here the stages make their outputs and keep their state. The workspaces below runs/ have the same folders.
_PLACES = ("data", "data/*", "scratch", "scratch/*", "scratch/*/*")
_EVERY = 2.0  # seconds between two looks of --watch


app = application("status", "Show what is running in this checkout, and how far it is.", "components.status")
main = commands_of(app)


@app.default
def status(*, watch: bool = False) -> None:
    """Show what is running in this checkout, and how far it is.

    Args:
        watch: Look again every 2 s until nothing runs.
    """
    while True:
        running = [held for held in held_folders(Path()) if held.alive]
        print("\n".join(shown(running, time.time())), flush=True)
        if not (watch and running):
            return
        time.sleep(_EVERY)


def held_folders(root: Path) -> list[Held]:
    """The runs that hold a folder of the checkout ``root``, alive or not, one a folder."""
    found = []
    for lock in sorted(set(_locks(root))):
        held = look(lock)
        if held is not None:
            found.append(held)
    return found


def _locks(root: Path) -> Iterator[Path]:
    for top in (root, *root.glob("runs/*")):
        for place in _PLACES:
            yield from top.glob(f"{place}/.*.lock")


def shown(running: Sequence[Held], now: float) -> list[str]:
    """What a terminal shows of ``running``; ``now`` in seconds since 1970. A run with two folders is one entry."""
    if not running:
        return ["nothing is running here"]
    lines = []
    by_run: dict[tuple[str, int], list[Held]] = {}
    for held in running:
        by_run.setdefault((held.holder.host, held.holder.pid), []).append(held)
    for one in by_run.values():
        lines.append(f"{', '.join(str(held.folder) for held in one)}")
        lines.append(f"  {one[0].holder}")
        said = [found for held in one if (found := published(held.progress)) is not None]
        if said:
            line, when = max(said, key=lambda found: found[1])
            lines.append(f"  {line}   ({duration(now - when)} ago)")
        else:
            lines.append("  no progress has been shown yet")
    return lines
