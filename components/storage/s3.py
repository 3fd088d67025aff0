"""A store on S3. The only module that imports boto3."""

from __future__ import annotations

import contextlib
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.loopback import spare_loopback
from components.storage.atomic import atomic_file
from components.storage.interface import ObjectUnreadable, StorageParams, safe_name


class S3Store:
    """A store below ``s3://bucket/prefix``, on AWS or any S3-compatible server."""

    def __init__(self, root: str, params: StorageParams) -> None:
        bucket, _, prefix = root.removeprefix("s3://").partition("/")
        if not bucket:
            raise VitrailError(f"storage root {root!r}: no bucket; write s3://bucket/prefix")
        self.root = root.rstrip("/")
        self._params, self._bucket, self._prefix = params, bucket, prefix.strip("/")
        self._made: Any = None
        self._conditional: bool | None = None

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
                read_timeout=self._params.read_timeout,
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            )
            self._made = boto3.client(
                "s3", endpoint_url=self._params.endpoint_url, region_name=self._params.region, config=config
            )
        return self._made

    def _key(self, name: str) -> str:
        return f"{self._prefix}/{safe_name(name)}" if self._prefix else safe_name(name)

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

    def create(self, name: str, data: bytes) -> bool:
        if not self.conditional() and self.exists(name):
            return False
        with self._explained(name):
            return self._put_new(self._key(name), data)

    def conditional(self) -> bool:
        """Whether the server refuses to replace an object where it is asked not to (``If-None-Match: *``).

        It is tried once, on an object of its own: some servers refuse the header, and some take no notice of it.
        """
        if self._conditional is None:
            from botocore.exceptions import ClientError

            name = f".vitrail-probe-{uuid.uuid4().hex}"
            with self._explained(name):
                try:
                    self._conditional = True
                    self._conditional = self._put_new(self._key(name), b"1") and not self._put_new(
                        self._key(name), b"2"
                    )
                except ClientError as fault:
                    if _code(fault) not in ("NotImplemented", "InvalidArgument", "InvalidRequest", "501", "400"):
                        self._conditional = None
                        raise
                    self._conditional = False
            self.delete(name)
        return self._conditional

    def _put_new(self, key: str, data: bytes) -> bool:
        from botocore.exceptions import ClientError

        only_new = {"IfNoneMatch": "*"} if self._conditional else {}
        try:
            self._client.put_object(Bucket=self._bucket, Key=key, Body=data, **only_new)
        except ClientError as fault:
            # 409: another conditional write of the same name is under way
            if _code(fault) in ("PreconditionFailed", "ConditionalRequestConflict", "412", "409"):
                return False
            raise
        return True

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


def _code(fault: Any) -> str:
    """Of a ``ClientError``."""
    return str(fault.response.get("Error", {}).get("Code", ""))


def _upload_failed() -> type[Exception]:
    from boto3.exceptions import S3UploadFailedError

    failed: type[Exception] = S3UploadFailedError
    return failed
