"""``python -m components.release``: see :mod:`components.release.run`."""

from components.errors import run_cli
from components.release.run import main

raise SystemExit(run_cli(main))
