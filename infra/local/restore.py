"""Bring back what ``infra.local.backup`` copied: runs, models, deployments and artifacts.

python -m infra.local.restore FOLDER [--replace]
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from components.command_name import prog
from components.errors import VitrailError, run_cli
from flows.settings import load_platform
from infra.local.stack import Stack
from infra.local.state import restore, state_of


def main(argv: Sequence[str]) -> int:
    """Restore the platform of the checkout in the current directory."""
    parser = argparse.ArgumentParser(prog=prog("infra.local.restore"), description="bring a backup back")
    parser.add_argument("folder", type=Path, help="of python -m infra.local.backup")
    parser.add_argument("--replace", action="store_true", help="lose what the databases hold now")
    given = parser.parse_args(argv)
    root = Path.cwd()
    for name, service in Stack(root, load_platform(root)).services.items():
        if service.process() is not None:
            raise VitrailError(f"{name} is running; end the platform first: make down")
    manifest = restore(state_of(root, os.environ), given.folder, given.replace)
    print(f"{given.folder}: restored, as of {manifest['made']}; next: make platform")
    return 0


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
