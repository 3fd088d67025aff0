"""Copy what the platform's servers keep, while they run: Prefect's and MLflow's databases, MLflow's artifacts.

python -m infra.local.backup [FOLDER] [--no-artifacts] [--keep N]
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import VitrailError, run_cli
from infra.local.state import back_up, remove, state_of

BACKUPS = Path("backups")


app = application("backup", "Copy what the platform's servers keep.", "infra.local.backup")
main = commands_of(app)


@app.default
def backup(folder: Path | None = None, /, *, no_artifacts: bool = False, keep: int = 0) -> None:
    """Copy what the platform's servers keep, while they run.

    Args:
        folder: Folder to make; it must not be there yet (default: backups/TIME).
        no_artifacts: Copy the databases alone, if artifacts lie on a store of their own.
        keep: Delete all but this many of the newest in backups/ afterwards; 0: delete nothing.
    """
    if keep < 0:
        raise VitrailError("--keep: must be 0 (delete nothing) or more")
    folder = folder or BACKUPS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    manifest = back_up(state_of(Path.cwd(), os.environ), folder, not no_artifacts)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{folder}: {len(manifest['files'])} files, {size / 1e6:,.1f} MB")
    for gone in remove(BACKUPS, keep):
        print(f"{gone}: deleted (--keep {keep})")
    print(f"bring it back: make down; python -m infra.local.restore {folder}")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
