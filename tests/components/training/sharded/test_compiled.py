"""Compiled blocks: what they need. That they compute what eager ones do: test_pretrain_phases.py, perf/compiled.py."""

from __future__ import annotations

import shutil

import pytest
import torch

from components.errors import VitrailError
from components.training.sharded.compiled import require_compiler


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(VitrailError, match=r"^run.compile: needs a C\+\+ compiler .* set it to false$"):
        require_compiler(torch.device("cpu"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(VitrailError, match="found none"):
        require_compiler(torch.device("cpu"))


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_any_of_the_usual_compilers_will_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(shutil, "which", lambda asked: f"/usr/bin/{asked}" if asked == name else None)
    monkeypatch.delenv("CXX", raising=False)
    require_compiler(torch.device("cpu"))
