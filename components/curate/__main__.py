"""``python -m components.curate run``: see :mod:`components.curate.run`."""

from components.curate.run import main
from components.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
