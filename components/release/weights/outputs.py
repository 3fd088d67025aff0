"""Folders that the commands of this room replace as a whole."""

from __future__ import annotations

from pathlib import Path

from components.errors import VitrailError


def check_replaceable(out: Path, marker: str) -> None:
    """Nothing when the folder ``out`` may be replaced: not there, empty, or with the ``marker`` of an earlier run.

    Raises:
        VitrailError: it holds something else, such as the images themselves, which would be lost.
    """
    if out.is_dir() and not (out / marker).is_file() and any(out.iterdir()):
        raise VitrailError(f"{out}: a folder with other content, which would be replaced; name a new folder")
