"""The demo's chain at its smallest, run once through ``dvc repro`` in a copy of the checkout, and shared by the tests.

A test that changes files works in a copy of that copy (``chain_copy``), so no test depends on another.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chain_helpers import SMALLEST, Chain, copy_checkout, edit, repro


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Every stage, run once at its smallest."""
    root = tmp_path_factory.mktemp("chain")
    copy_checkout(root)
    for name, changes in SMALLEST.items():
        edit(root / name, changes)
    first = repro(root)
    assert first.code == 0, first.text[-6000:]
    return Chain(root, first)


@pytest.fixture
def chain_copy(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the finished chain that a test may change."""
    target = tmp_path / "work"
    shutil.copytree(chain.root, target, symlinks=True)
    return target


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Ports of loopback that nothing listens on."""
    import socket

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return int(probe.getsockname()[1])

    return find
