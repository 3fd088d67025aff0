"""Which code is at work: the commit of this checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

from components.git import git

ROOT = Path(__file__).resolve().parents[1]


def commit() -> str | None:
    """The commit of this code, 40 hex digits, with ``-dirty`` behind it where tracked files differ from it.

    None where it cannot be known: git is not there, or the code lies in no repository.
    """
    try:
        found = git(ROOT, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*", seconds=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.strip() or None
