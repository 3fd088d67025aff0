"""``python -m components.cli``: the same as ``vitrail``."""

from components.cli.entry import start

raise SystemExit(start())
