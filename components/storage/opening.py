"""Which store a root names, and what goes there of a finished output."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from components.storage.interface import StorageParams, Store
from components.storage.local import LocalStore
from components.storage.s3 import S3Store

DEFAULT_ROOT = "data"  # bytes stay inside the stages' outputs, which DVC tracks


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
