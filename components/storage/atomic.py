"""Files and folders that appear whole or not at all: written aside, then renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from components.errors import named_faults


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that takes the name ``path`` only when the block ends without an exception.

    Raises:
        VitrailError: the disk is full, read-only or the like; names ``path`` where the exception names no file.
    """
    with named_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = tempfile.NamedTemporaryFile(  # noqa: SIM115 - closed below, renamed after
            mode, dir=path.parent, prefix=f".{path.name}.", suffix=".partial", delete=False
        )
        try:
            with handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            os.chmod(handle.name, 0o644)
            os.replace(handle.name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(handle.name)
            raise


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` only when the block ends without an exception.

    Raises:
        VitrailError: as :func:`atomic_file`.
    """
    with named_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".partial"))
        try:
            yield aside
            aside.chmod(0o755)
            if path.exists():
                shutil.rmtree(path)
            os.replace(aside, path)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
