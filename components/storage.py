"""Where bytes live: a local path or ``s3://bucket/prefix``, behind one interface. The only module that imports boto3.

A name is a relative POSIX path below the store's root. Objects appear whole or not at all: locally by writing aside
and renaming, on S3 because an object exists only once its upload has ended.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Protocol
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from components.errors import VitrailError, named_faults
from components.loopback import spare_loopback
from components.params import Strict

DEFAULT_ROOT = "data"  # bytes stay inside the stages' outputs, which DVC tracks


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


class Store(Protocol):
    """A flat space of named, immutable byte objects."""

    root: str

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        """The bytes of ``name`` from ``offset``, ``length`` of them or all the rest."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace ``name`` atomically."""

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


def open_store(params: StorageParams | str, *below: str) -> Store:
    """The store at ``params.root`` (or at a bare root string), or at the folder ``below`` it."""
    if isinstance(params, str):
        params = StorageParams(root=params)
    root = "/".join([params.root.rstrip("/") or "/", *below])
    return S3Store(root, params) if root.startswith("s3://") else LocalStore(root)


def is_remote(root: str) -> bool:
    """Whether ``root`` names an object store rather than a local path."""
    return root.startswith("s3://")


def inside_outputs(params: StorageParams) -> bool:
    """Whether the root is the default one, where bytes stay inside the stages' own outputs."""
    return params.root == DEFAULT_ROOT


def publish(params: StorageParams, folder: Path, names: Sequence[str], *below: str) -> str | None:
    """Put the finished files and folders ``names`` of an output ``folder`` on the store; returns their addresses.

    ``below`` names the folder on the store and ends with a digest, so versions never replace each other. If the root
    is the default, the bytes stay in the output: nothing is done, and None is returned.
    """
    if inside_outputs(params):
        return None
    store = open_store(params, *below)
    for name in names:
        path = folder / name
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            store.put_file(file.relative_to(folder).as_posix(), file)
    return store.root


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


class LocalStore:
    """A store in a local folder."""

    def __init__(self, root: str) -> None:
        self.root = root
        self._base = Path(root)

    def _path(self, name: str) -> Path:
        path = self._base / _safe(name)
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
        base = self._base / _safe(prefix) if prefix else self._base
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


class S3Store:
    """A store below ``s3://bucket/prefix``, on AWS or any S3-compatible server."""

    def __init__(self, root: str, params: StorageParams) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise VitrailError(f"storage root {root!r}: no bucket; write s3://bucket/prefix")
        self.root = root.rstrip("/")
        self._params, self._bucket, self._prefix = params, bucket, prefix.strip("/")
        self._made: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A client cannot travel to a worker process; each makes its own.
        return {**self.__dict__, "_made": None}

    @property
    def _client(self) -> Any:
        if self._made is None:
            import boto3
            from botocore.config import Config

            spare_loopback()
            # Checksums only where the operation needs them: S3-compatible servers refuse boto3's newer default.
            config = Config(
                signature_version="s3v4",
                s3={"addressing_style": "path"} if self._params.endpoint_url else {},
                retries={"mode": "standard", "max_attempts": self._params.max_attempts},
                connect_timeout=self._params.connect_timeout,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            self._made = boto3.client(
                "s3", endpoint_url=self._params.endpoint_url, region_name=self._params.region, config=config
            )
        return self._made

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{_safe(name)}" if self._prefix else _safe(name)

    @contextlib.contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        where = f"{self.root}/{name}"
        try:
            yield
        except ClientError as fault:
            code = str(fault.response.get("Error", {}).get("Code", ""))
            if code in ("404", "NoSuchKey"):
                raise ObjectUnreadable(f"{where}: no such object; is its stage still to run?", missing=True) from None
            if code == "InvalidObjectState":
                raise ObjectUnreadable(f"{where}: in an archive class; restore it first", archived=True) from None
            if code in ("AccessDenied", "403"):
                said = fault.response["Error"].get("Message", "")
                raise ObjectUnreadable(f"{where}: S3 refused with {code}: {said}") from None
            if code == "NoSuchBucket":
                raise VitrailError(f"{where}: the bucket {self._bucket!r} does not exist; create it first") from None
            raise VitrailError(
                f"{where}: S3 refused with {code}: {fault.response['Error'].get('Message', '')}"
            ) from None
        except BotoCoreError as fault:
            server = self._params.endpoint_url or "AWS"
            raise VitrailError(
                f"{where}: cannot reach S3 at {server} ({' '.join(str(fault).split())}); "
                "check storage.yaml's endpoint_url and the AWS_* variables"
            ) from None
        except _upload_failed() as fault:
            server = self._params.endpoint_url or "AWS"
            raise VitrailError(f"{where}: upload to {server} failed: {' '.join(str(fault).split())}") from None

    def read(self, name: str, offset: int = 0, length: int | None = None) -> bytes:
        if length == 0:
            return b""
        ranged = {}
        if offset or length is not None:
            ranged = {"Range": f"bytes={offset}-{'' if length is None else offset + length - 1}"}
        with self._explained(name):
            try:
                return self._whole_body(self._key(name), ranged)
            except self._client.exceptions.ClientError as fault:
                if fault.response.get("Error", {}).get("Code") == "InvalidRange":  # an empty object, or behind the end
                    return b""
                raise

    def _whole_body(self, key: str, ranged: dict[str, str]) -> bytes:
        """The answer's bytes; asked again, after a random pause, where the connection breaks within them.

        botocore tries again only what fails before the first byte.
        """
        from botocore.exceptions import BotoCoreError

        for attempt in range(1, self._params.max_attempts + 1):
            answer = self._client.get_object(Bucket=self._bucket, Key=key, **ranged)
            try:
                body: bytes = answer["Body"].read()
                return body
            except BotoCoreError:
                if attempt == self._params.max_attempts:
                    raise
            time.sleep(random.Random().uniform(0, min(20.0, 0.5 * 2**attempt)))  # full jitter: many readers, one server
        raise AssertionError("unreachable: the last attempt returns or raises")

    def write(self, name: str, data: bytes) -> None:
        with self._explained(name):
            self._client.put_object(Bucket=self._bucket, Key=self._key(name), Body=data)

    def put_file(self, name: str, path: Path) -> None:
        with self._explained(name):
            self._client.upload_file(str(path), self._bucket, self._key(name))

    def get_file(self, name: str, path: Path) -> None:
        with self._explained(name), atomic_file(path) as file:
            self._client.download_fileobj(self._bucket, self._key(name), file)

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with self._explained(name):
            try:
                self._client.head_object(Bucket=self._bucket, Key=self._key(name))
            except ClientError as fault:
                if str(fault.response.get("Error", {}).get("Code")) == "404":
                    return False
                raise
        return True

    def size(self, name: str) -> int:
        with self._explained(name):
            return int(self._client.head_object(Bucket=self._bucket, Key=self._key(name))["ContentLength"])

    def version(self, name: str) -> str:
        with self._explained(name):
            head = self._client.head_object(Bucket=self._bucket, Key=self._key(name))
        return f"{head['ContentLength']} {head['ETag'].strip(chr(34))}"

    def versions(self, prefix: str = "") -> dict[str, str]:
        return {name: f"{entry['Size']} {entry['ETag'].strip(chr(34))}" for name, entry in self._entries(prefix)}

    def list(self, prefix: str = "") -> Iterator[str]:
        yield from (name for name, _ in self._entries(prefix))

    def _entries(self, prefix: str) -> Sequence[tuple[str, Any]]:
        full = self._key(prefix.rstrip("/")) + "/" if prefix else (f"{self._prefix}/" if self._prefix else "")
        skip = len(self._prefix) + 1 if self._prefix else 0
        with self._explained(prefix):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=full)
            return [(entry["Key"][skip:], entry) for page in pages for entry in page.get("Contents", [])]

    def copy(self, name: str, to: str) -> None:
        with self._explained(name):
            self._client.copy({"Bucket": self._bucket, "Key": self._key(name)}, self._bucket, self._key(to))

    def delete(self, name: str) -> None:
        with self._explained(name):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(name))


def _upload_failed() -> type[Exception]:
    from boto3.exceptions import S3UploadFailedError

    failed: type[Exception] = S3UploadFailedError
    return failed


def _safe(name: str) -> str:
    """``name`` if it stays below the root."""
    if name.startswith("/") or ".." in name.split("/"):
        raise VitrailError(f"object name {name!r}: must be relative and must not contain '..'")
    return name
