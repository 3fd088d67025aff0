"""``python -m components.distill``: see :mod:`components.distill.run`."""

from components.distill.run import main
from components.errors import run_cli

raise SystemExit(run_cli(main))
