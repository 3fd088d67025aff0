"""``python -m components.crawl run|run``."""

from components.curate.run import main
from components.errors import run_cli

if __name__ == "__main__":
    raise SystemExit(run_cli(main))
