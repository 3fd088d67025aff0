"""``python -m components.benchmark run``."""

from components.benchmark.run import main
from components.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
