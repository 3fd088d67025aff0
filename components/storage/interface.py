"""What every store offers, and what its user sets."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from components.errors import VitrailError
from components.params import Strict


class ObjectUnreadable(VitrailError):
    """One object cannot be read: it is gone, denied, archived, or its disk fails. Others may be fine."""

    def __init__(self, message: str, *, missing: bool = False, archived: bool = False) -> None:
        super().__init__(message)
        self.missing, self.archived = missing, archived


_OF_THIS_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def of_one_file(fault: OSError) -> bool:
    """Whether ``fault`` is about the file that was read, not about this process or a full disk."""
    return fault.errno not in _OF_THIS_MACHINE


class StorageParams(Strict):
    """``params/storage.yaml``: where shards, manifests and exports go."""

    root: str = Field(min_length=1)  # a local path, or s3://bucket/prefix
    endpoint_url: str | None = None  # an S3-compatible server; None: AWS, or AWS_ENDPOINT_URL
    region: str | None = None

    @field_validator("endpoint_url")
    @classmethod
    def _without_login(cls, value: str | None) -> str | None:
        if value is not None and urlsplit(value).username is not None:
            raise ValueError("holds a login; keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws")
        return value

    checkpoints: str | None = Field(None, min_length=1)  # where copies of the training state go; None: nowhere
    max_attempts: int = Field(3, ge=1, le=1000)  # tries a request, with boto3's standard back-off
    connect_timeout: float = Field(10.0, gt=0, le=1_000_000)  # seconds
    read_timeout: float = Field(60.0, gt=0, le=1_000_000)  # seconds without a byte before a request is lost


class Store(Protocol):
    """A flat space of named, immutable byte objects."""

    root: str

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of ``name`` from ``offset``, ``length`` of them or all the rest."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace ``name`` atomically."""

    def create(self, name: str, data: bytes) -> bool:
        """Create ``name`` atomically if nothing is there; whether this call did. Of several at once, one does.

        On S3 that needs a server with conditional writes, see :meth:`S3Store.conditional`; without, it looks first.
        Where the answer to a write is lost on the way, a second try finds the first one's object, and says no.
        """

    def put_file(self, name: str, path: Path) -> None:
        """Create or replace ``name`` atomically with the content of the local file ``path``."""

    def get_file(self, name: str, path: Path) -> None:
        """Copy ``name`` into the local file ``path``, which appears whole or not at all."""

    def exists(self, name: str) -> bool:
        """Whether ``name`` is there."""

    def size(self, name: str) -> int:
        """The length of ``name`` in bytes."""

    def list(self, prefix: str = "") -> Iterator[str]:
        """Names below ``prefix`` (a folder), sorted."""

    def version(self, name: str) -> str:
        """What tells this content of ``name`` from another: size and ETag on S3, size and times locally.

        No byte is read.
        """

    def versions(self, prefix: str = "") -> dict[str, str]:
        """:meth:`version` of all names below ``prefix`` (a folder)."""

    def copy(self, name: str, to: str) -> None:
        """Create or replace ``to`` atomically with the content of ``name``; on S3 no byte comes through here."""

    def delete(self, name: str) -> None:
        """Remove ``name``; no error when it is not there."""


def safe_name(name: str) -> str:
    """``name`` if it stays below the root."""
    if name.startswith("/") or ".." in name.split("/"):
        raise VitrailError(f"object name {name!r}: must be relative and must not contain '..'")
    return name
