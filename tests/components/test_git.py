"""What git prints, and what is raised where it fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from components.git import git


def test_names_that_are_no_utf8_come_back_as_they_are(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_text("x")
    assert git(tmp_path, "ls-files", "-z", "--others").split("\0") == [name, ""]


def test_what_git_says_of_a_fault_is_kept(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q")
    with pytest.raises(subprocess.CalledProcessError) as fault:
        git(tmp_path, "rev-parse", "nothing-of-this-name")
    assert b"nothing-of-this-name" in fault.value.stderr
