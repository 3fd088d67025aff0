"""``python -m components.planning``: see :mod:`components.planning.run`."""

from components.errors import run_cli
from components.planning.run import main

raise SystemExit(run_cli(main))
