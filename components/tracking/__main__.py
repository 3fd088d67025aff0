"""``python -m components.tracking``: see :mod:`components.tracking.command`."""

from components.errors import run_cli
from components.tracking.command import main

raise SystemExit(run_cli(main))
