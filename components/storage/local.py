"""A store in a local folder."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from components.errors import VitrailError
from components.storage.atomic import atomic_file
from components.storage.interface import ObjectUnreadable, of_one_file, safe_name


class LocalStore:
    """A store in a local folder."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._base = Path(root)

    def _path(self, name: str) -> Path:
        path = self._base / safe_name(name)
        return path

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        try:
            with open(self._path(name), "rb") as file:
                file.seek(offset)
                return file.read() if length is None else file.read(length)
        except FileNotFoundError:
            raise ObjectUnreadable(
                f"{self._path(name)}: no such file; was it moved, or is its stage still to run?", missing=True
            ) from None
        except OSError as fault:
            if not of_one_file(fault):
                raise
            raise ObjectUnreadable(f"{self._path(name)}: cannot be read: {fault.strerror}") from None

    def write(self, name: str, data: bytes) -> None:
        with atomic_file(self._path(name)) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        if path.exists():
            return False
        aside = f"{safe_name(name)}.{uuid.uuid4().hex}.partial"
        self.write(aside, data)
        try:
            os.link(self._path(aside), path)  # fails where another was faster; a rename would replace it
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL, 0o644))
            except FileExistsError:
                return False
            os.replace(self._path(aside), path)
        finally:
            self._path(aside).unlink(missing_ok=True)
        return True

    def put_file(self, name: str, path: Path) -> None:
        with open(path, "rb") as source, atomic_file(self._path(name)) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def get_file(self, name: str, path: Path) -> None:
        try:
            with open(self._path(name), "rb") as source, atomic_file(path) as file:
                shutil.copyfileobj(source, file, 1 << 20)
        except FileNotFoundError:
            raise VitrailError(
                f"{self._path(name)}: no such file; was it moved, or is its stage still to run?"
            ) from None

    def exists(self, name: str) -> bool:
        return self._path(name).is_file()

    def size(self, name: str) -> int:
        try:
            return self._path(name).stat().st_size
        except FileNotFoundError:
            raise VitrailError(
                f"{self._path(name)}: no such file; was it moved, or is its stage still to run?"
            ) from None

    def list(self, prefix: str = "") -> Iterator[str]:
        base = self._base / safe_name(prefix) if prefix else self._base
        for path in sorted(base.rglob("*")):
            if path.is_file() and not path.name.endswith(".partial"):
                yield path.relative_to(self._base).as_posix()

    def version(self, name: str) -> str:
        try:
            stat = self._path(name).stat()
        except OSError as fault:  # its reader says what is wrong with it
            return f"unreadable: {fault.strerror}"
        return f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"

    def versions(self, prefix: str = "") -> dict[str, str]:
        return {name: self.version(name) for name in self.list(prefix)}

    def copy(self, name: str, to: str) -> None:
        self.get_file(name, self._path(to))

    def delete(self, name: str) -> None:
        self._path(name).unlink(missing_ok=True)
