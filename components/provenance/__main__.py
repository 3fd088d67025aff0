"""``python -m components.provenance``: see :mod:`components.provenance.run`."""

from components.errors import run_cli
from components.provenance.run import main

raise SystemExit(run_cli(main))
