"""Bring back what ``infra.local.backup`` copied: runs, models, deployments and artifacts.

python -m infra.local.restore FOLDER [--replace]
"""

from __future__ import annotations

import os
from pathlib import Path

from components.command_line import application, commands_of
from components.errors import VitrailError, run_cli
from flows.settings import load_platform
from infra.local.stack import Stack
from infra.local.state import restore, state_of

app = application("restore", "Bring a backup back.", "infra.local.restore")
main = commands_of(app)


@app.default
def bring_back(folder: Path, /, *, replace: bool = False) -> None:
    """Bring back what the backup copied: runs, models, deployments and artifacts.

    Args:
        folder: Folder of python -m infra.local.backup.
        replace: Lose what the databases hold now.
    """
    root = Path.cwd()
    for name, service in Stack(root, load_platform(root)).services.items():
        if service.process() is not None:
            raise VitrailError(f"{name} is running; end the platform first: make down")
    manifest = restore(state_of(root, os.environ), folder, replace)
    print(f"{folder}: restored, as of {manifest['made']}; next: make platform")


if __name__ == "__main__":
    raise SystemExit(run_cli(main))
