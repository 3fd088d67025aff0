"""Where bytes live: a local path or ``s3://bucket/prefix``, behind one interface.

A name is a relative POSIX path below the store's root. Objects appear whole or not at all: locally by writing aside
and renaming, on S3 because an object exists only once its upload has ended.
"""

from components.storage.atomic import atomic_dir, atomic_file
from components.storage.interface import ObjectUnreadable, StorageParams, Store, of_one_file
from components.storage.local import LocalStore
from components.storage.opening import DEFAULT_ROOT, inside_outputs, is_remote, open_store, publish
from components.storage.s3 import S3Store

__all__ = [
    "DEFAULT_ROOT",
    "LocalStore",
    "ObjectUnreadable",
    "S3Store",
    "StorageParams",
    "Store",
    "atomic_dir",
    "atomic_file",
    "inside_outputs",
    "is_remote",
    "of_one_file",
    "open_store",
    "publish",
]
