"""``python -m components.dedup``: see run.py."""

from components.dedup.run import main
from components.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
