"""Weights that others publish: bytes from a file, an S3 object or a URL, held to a SHA-256."""

from __future__ import annotations

import hashlib
from pathlib import Path

from components.errors import VitrailError
from components.storage import StorageParams, atomic_file, is_remote, open_store

LIMIT = 2 << 30  # bytes; SSCD's largest is a tenth of it
TIMEOUT = 60.0  # seconds without a byte


def read_weights(path: str, sha256: str | None, cache: Path, storage: StorageParams, where: str) -> bytes:
    """The bytes at ``path``; those from S3 and URLs are kept in ``cache`` under their digest where one is given.

    Args:
        sha256: hex digest they must have. A URL must be pinned by one, for its content may change any day.
        where: the parameter that named the file, for messages.

    Raises:
        VitrailError: not there, too large, not reachable, or of another digest.
    """
    fetched = is_remote(path) or _is_url(path)
    kept = cache / sha256 if fetched and sha256 else None
    if kept is not None and kept.exists():
        return _checked(kept.read_bytes(), sha256, str(kept))
    if _is_url(path):
        data = _download(path, where)
        if sha256 is None:
            raise VitrailError(
                f"{where} {path}: a URL needs its digest beside it; what is there now has "
                f"sha256: {hashlib.sha256(data).hexdigest()}"
            )
    elif is_remote(path):
        root, _, name = path.rpartition("/")
        data = open_store(storage.model_copy(update={"root": root})).read(name)
    else:
        try:
            data = Path(path).read_bytes()
        except OSError as fault:
            raise VitrailError(f"{where} {path}: {fault.strerror}; download SSCD's weights there") from None
    data = _checked(data, sha256, f"{where} {path}")
    if kept is not None:
        with atomic_file(kept) as file:
            file.write(data)
    return data


def _is_url(path: str) -> bool:
    return path.startswith(("http://", "https://"))


def _checked(data: bytes, sha256: str | None, where: str) -> bytes:
    found = hashlib.sha256(data).hexdigest()
    if sha256 is not None and found != sha256.lower():
        raise VitrailError(f"{where}: its sha256 is {found}, not {sha256}; fetch it again, or mend the digest")
    return data


def _download(url: str, where: str) -> bytes:
    import http.client
    import urllib.request

    data = bytearray()
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            while block := answer.read(1 << 20):
                data += block
                if len(data) > LIMIT:
                    raise VitrailError(f"{where} {url}: over {LIMIT >> 20} MiB; not a network of this kind")
            expected = answer.headers.get("Content-Length")
    except (OSError, http.client.HTTPException) as fault:  # URLError and HTTPError are OSErrors
        raise VitrailError(
            f"{where} {url}: cannot be fetched ({fault}); download it yourself and give its path"
        ) from None
    if expected is not None and int(expected) != len(data):
        raise VitrailError(f"{where} {url}: broke off after {len(data)} of {expected} bytes; run again")
    return bytes(data)
