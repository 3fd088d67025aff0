"""``python -m components.inputs``: see :mod:`components.inputs.run`."""

from components.errors import run_cli
from components.inputs.run import main

raise SystemExit(run_cli(main))
