"""The demo's chain at its smallest, run once through ``dvc repro`` in a copy of the checkout, and shared by the tests.

A test that changes files works in a copy of that copy (``chain_copy``), so no test depends on another.
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from chain_helpers import SMALLEST, Chain, Repro, copy_checkout, edit, fewer_labels, run
from filelock import FileLock
from patience import PATIENCE

LONGEST = 3000  # seconds for the whole chain: five minutes on two quiet cores, a quarter of an hour on busy ones


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever comes first makes the chain, and the others wait for it: all need its time."""
    for item in items:
        if "chain" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.timeout(LONGEST + PATIENCE))


@pytest.fixture(scope="session")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Every stage, run once at its smallest; of several test processes, by the one that comes first."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    root, told = base / "chain", base / "chain.json"
    with FileLock(base / "chain.lock"):
        if not told.exists():
            copy_checkout(root)
            for name, changes in SMALLEST.items():
                edit(root / name, changes)
            fewer_labels(root, base / "elpv.parquet")
            told.write_text(json.dumps(asdict(run(root, "dvc", "repro", timeout=LONGEST))))
    first = Repro(**json.loads(told.read_text()))
    assert first.code == 0, first.text[-6000:]
    return Chain(root, first)


@pytest.fixture
def chain_copy(chain: Chain, tmp_path: Path) -> Path:
    """A copy of the finished chain that a test may change."""
    target = tmp_path / "work"
    shutil.copytree(chain.root, target, symlinks=True)
    return target
