"""An empty MLflow store that is made once, for it takes seconds."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The SQLite file of a store without runs or models, to be copied."""
    from components.tracking.store import open_client

    file = tmp_path_factory.mktemp("store") / "mlflow.db"
    client = open_client(f"sqlite:///{file}")
    assert client.search_registered_models() == []
    return file
