"""Which commit the code is of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from components import code_version


def test_the_commit_is_named_and_a_change_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@t")
        done = subprocess.run(["git", *who, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    monkeypatch.setattr(code_version, "ROOT", tmp_path)
    assert code_version.commit() is None
    git("init", "-q")
    assert code_version.commit() is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "x")
    git("tag", "v1")  # would be named in its place
    assert code_version.commit() == git("rev-parse", "HEAD")
    (tmp_path / "a").write_text("2")
    assert code_version.commit() == git("rev-parse", "HEAD") + "-dirty"
