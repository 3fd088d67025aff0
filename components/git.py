"""The only module that runs git."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

# New files belong to a state where code or parameters are; elsewhere they are somebody's pictures, notes, or passwords.
NEW_FILES = ("params", "components", "flows", "infra", "perf", ":(glob)*.py", ":(glob)*.yaml", ":(glob)*.toml")
_PATIENCE = 600  # seconds for a command that moves a whole commit


def git(folder: Path, *arguments: str, seconds: float = 60) -> str:
    """What ``git`` prints when it runs in ``folder``; names that are no UTF-8 stay as they are (surrogates).

    Raises:
        OSError: there is no git.
        subprocess.SubprocessError: git failed (its words are in ``stderr``), or took longer than ``seconds``.
    """
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, timeout=seconds, check=True)
    return os.fsdecode(done.stdout)


def take_commit(repository: Path, folder: Path, commit: str, history: bool = True) -> None:
    """Make ``folder`` a repository of its own with ``commit`` of ``repository`` checked out, on no branch.

    Files of that commit are replaced, others stay. ``commit`` may be on no branch any more. What happens to
    ``repository`` later changes nothing here. Without ``history``, the commits before it are left out.

    Raises:
        OSError, subprocess.SubprocessError: as :func:`git`.
    """
    allow = "git -c uploadpack.allowAnySHA1InWant=true upload-pack"
    top = git(repository, "rev-parse", "--show-toplevel").rstrip("\n")
    git(folder, "init", "--quiet")
    depth = [] if history else ["--depth=1"]
    git(folder, "fetch", "--quiet", "--no-tags", *depth, f"--upload-pack={allow}", top, commit, seconds=_PATIENCE)
    git(folder, "checkout", "--quiet", "--force", "--detach", commit, seconds=_PATIENCE)


def words_of(fault: OSError | subprocess.SubprocessError) -> str:
    """What git said when it failed, on one line."""
    words = fault.stderr if isinstance(fault, subprocess.CalledProcessError) else str(fault).encode()
    return " ".join(os.fsdecode(words or b"").split())[:300]
