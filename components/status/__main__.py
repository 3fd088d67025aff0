"""``python -m components.status``: see run.py."""

from components.errors import run_cli
from components.status.run import main

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
