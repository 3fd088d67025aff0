"""Copy what the platform's servers keep, while they run: Prefect's and MLflow's databases, MLflow's artifacts.

python -m infra.local.backup [FOLDER] [--no-artifacts] [--keep N]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.errors import VitrailError, run_cli
from infra.local.state import back_up, remove, state_of

BACKUPS = Path("backups")


def main(argv: Sequence[str]) -> int:
    """Back up the platform of the checkout in the current directory."""
    parser = argparse.ArgumentParser(prog=prog("infra.local.backup"), description="copy what the servers keep")
    parser.add_argument("folder", nargs="?", type=Path, help="must not be there yet; default: backups/TIME")
    parser.add_argument(
        "--no-artifacts", action="store_true", help="databases alone: artifacts lie on a store of their own"
    )
    parser.add_argument(
        "--keep", type=int, default=0, metavar="N", help="afterwards delete all but the N newest in backups/"
    )
    given = parser.parse_args(argv)
    if given.keep < 0:
        raise VitrailError("--keep: must be 0 (delete nothing) or more")
    folder = given.folder or BACKUPS / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
    manifest = back_up(state_of(Path.cwd(), os.environ), folder, not given.no_artifacts)
    size = sum(file["bytes"] for file in manifest["files"].values())
    print(f"{folder}: {len(manifest['files'])} files, {size / 1e6:,.1f} MB")
    for gone in remove(BACKUPS, given.keep):
        print(f"{gone}: deleted (--keep {given.keep})")
    print(f"bring it back: make down; python -m infra.local.restore {folder}")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
