"""Where a model is named by value, as local files: a path, ``s3://bucket/key``, ``https://...#sha256=HEX``, or
``models:/name@alias`` of the registry.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from components.errors import VitrailError
from components.params import load_params
from components.storage import StorageParams, atomic_file, is_remote, open_store
from components.tracking.registry import WEIGHTS, Registry, is_registered

CACHE = Path("scratch/models")  # pinned downloads, each under its digest
STORAGE = Path("params/storage.yaml")
LIMIT = 16 << 30  # bytes of a download; ViT-g with heads and optimizer is below
TIMEOUT = 60.0  # seconds without a byte
PIN = "#sha256="
_PIN = re.compile(PIN + r"([0-9a-fA-F]{64})$")


def storage_params() -> StorageParams:
    """Those of ``params/storage.yaml``; the defaults where there is no such file."""
    return load_params(STORAGE, StorageParams) if STORAGE.is_file() else StorageParams(root="data")


@contextlib.contextmanager
def local_copy(source: str | Path, cache: Path = CACHE, storage: StorageParams | None = None) -> Iterator[Path]:
    """The file or folder that ``source`` names, as a local path that lasts for the block.

    ``#sha256=HEX`` behind any of them pins a file; a URL must be pinned, for its content may change any day. Pinned
    downloads stay in ``cache``; unpinned ones are fetched again each time.

    Raises:
        VitrailError: not there, not reachable, or of another digest.
    """
    named = str(source)
    if is_registered(named):
        registry = Registry()
        with registry.files(registry.version(named), WEIGHTS) as folder:
            yield folder
        return
    pin = _PIN.search(named)
    if pin is None and PIN in named:
        raise VitrailError(f"{named}: a pin is #sha256= and 64 hex digits")
    place, digest = (named[: pin.start()], pin[1].lower()) if pin else (named, None)
    url = place.startswith(("http://", "https://"))
    if not url and not is_remote(place):
        if "://" in place:
            raise VitrailError(f"{place}: give a path, s3://bucket/key, https://...#sha256=HEX or models:/name@alias")
        if not Path(place).exists():
            raise VitrailError(f"{place}: no such file or folder of a model")
        if digest is not None:
            _check(Path(place), digest, place)
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="vitrail-model-") as folder:
        name = place.rstrip("/").rsplit("/", 1)[-1].partition("?")[0] or "model"
        kept = cache / digest / name if digest is not None else Path(folder) / name
        if digest is None or not kept.exists():
            if url:
                _download(place, digest, kept)
            else:
                _from_store(place, kept, storage or storage_params())
        if digest is not None:
            try:
                _check(kept, digest, place)
            except VitrailError:
                kept.unlink(missing_ok=True)
                raise
        yield kept


def pinned(source: str | Path) -> str | Path:
    """``source``, or where it is an alias of the registry, the version that the alias means now.

    What takes long, or is kept with its model's name, means one model though the alias may move.

    Raises:
        VitrailError: the registry cannot be reached, or has no such model.
    """
    return Registry().pinned(str(source)) if is_registered(source) else source


def file_sha256(*paths: Path) -> str:
    """SHA-256 (hex) of the bytes of ``paths``, one after the other."""
    content = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return content.hexdigest()


def _check(path: Path, digest: str, named: str) -> None:
    if path.is_dir():
        raise VitrailError(f"{named}: #sha256= pins a file, and this is a folder")
    if (found := file_sha256(path)) != digest:
        raise VitrailError(f"{named}: its sha256 is {found}, not {digest}; fetch it again, or mend the digest")


def _from_store(place: str, path: Path, storage: StorageParams) -> None:
    """One object, or all objects below a prefix as a folder."""
    root, _, name = place.rstrip("/").rpartition("/")
    if not name or root in ("", "s3:/"):
        raise VitrailError(f"{place}: no key; write s3://bucket/key")
    store = open_store(storage.model_copy(update={"root": root}))
    if store.exists(name):
        store.get_file(name, path)
        return
    below = list(store.list(name))
    if not below:
        raise VitrailError(f"{place}: no such object, and none below it")
    for each in below:
        store.get_file(each, path / each[len(name) + 1 :])


def _download(url: str, digest: str | None, path: Path) -> None:
    import http.client
    import urllib.request

    if digest is None:
        raise VitrailError(
            f"{url}: a URL needs its digest behind it, as {url}#sha256=HEX; its content may change any day"
        )
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, atomic_file(path) as file:
            size = 0
            while block := answer.read(1 << 20):
                size += len(block)
                if size > LIMIT:
                    raise VitrailError(f"{url}: over {LIMIT >> 30} GiB; no model of this kind")
                file.write(block)
            expected = answer.headers.get("Content-Length")
            if expected is not None and int(expected) != size:
                raise VitrailError(f"{url}: broke off after {size} of {expected} bytes; run again")
    except (OSError, http.client.HTTPException) as fault:  # URLError and HTTPError are OSErrors
        raise VitrailError(f"{url}: cannot be fetched ({fault}); download it yourself and give its path") from None
