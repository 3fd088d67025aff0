"""``python -m components.pretrain``: see :mod:`components.pretrain.run`."""

from components.errors import run_cli
from components.pretrain.run import main

raise SystemExit(run_cli(main))
