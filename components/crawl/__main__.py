"""``python -m components.crawl``: see :mod:`components.crawl.run`."""

from components.crawl.run import main
from components.errors import run_cli

raise SystemExit(run_cli(main))
