"""The only module that runs git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git(folder: Path, *arguments: str, seconds: float = 60) -> str:
    """What ``git`` prints when it runs in ``folder``; names that are no UTF-8 stay as they are (surrogates).

    Raises:
        OSError: there is no git.
        subprocess.SubprocessError: git failed (its words are in ``stderr``), or took longer than ``seconds``.
    """
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=seconds, check=True)
    return os.fsdecode(done.stdout)
