"""Plug-ins: a function or class of the user's own that a parameter names as ``package.module:name``."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterable
from typing import Any

from components.errors import VitrailError
from components.input_paths import plugin_file


def load_plugin(name: str, key: str) -> Any:
    """What ``name`` names; ``key`` is the parameter that says so, for the error line.

    The module may be installed, or lie in the current folder.

    Raises:
        VitrailError: no such module, or nothing of that name in it.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise VitrailError(f"{key}: {name!r}: name a plug-in as package.module:function")
    if "" not in sys.path and os.getcwd() not in sys.path:  # `vitrail` is started from another folder than `python -m`
        sys.path.append(os.getcwd())
    try:
        found = importlib.import_module(module)
    except ImportError as fault:
        raise VitrailError(
            f"{key}: {name}: {fault}; install it, or put {module.split('.')[0]} into this folder"
        ) from None
    if not hasattr(found, attribute):
        raise VitrailError(f"{key}: {name}: {found.__file__} has no {attribute!r}")
    return getattr(found, attribute)


def code_digests(names: Iterable[str]) -> list[str]:
    """SHA-256 of the file of each plug-in that lies in the current folder; "" for an installed one."""
    files = [plugin_file(name) for name in names]
    return ["" if file is None else hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
