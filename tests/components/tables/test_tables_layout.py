"""What becomes of each file of an output in a take-down is declared, and what is not declared is refused."""

from __future__ import annotations

import pytest

from components.errors import VitrailError
from components.tables.layout import CURATE, DEDUP, declared_file


@pytest.mark.parametrize("files", [CURATE, DEDUP])
def test_names_are_declared_once_and_aligned_files_name_a_table(files: tuple) -> None:  # type: ignore[type-arg]
    names = [file.name for file in files]
    assert len(set(names)) == len(names)
    tables = {file.name for file in files if file.role == "table"}
    for file in files:
        assert (file.of in tables) == (file.role in ("rows", "pairs"))


def test_an_unknown_file_is_refused_by_name() -> None:
    assert declared_file("keys", DEDUP, "data/dedup").role == "rows"
    with pytest.raises(VitrailError, match=r"data/dedup/to-held-out2.npy: no stage declares .*mean 'to-held-out.npy'"):
        declared_file("to-held-out2.npy", DEDUP, "data/dedup")
