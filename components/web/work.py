"""The work folder of a stage that can be killed: named by a fingerprint of what it works on, beside its output."""

from __future__ import annotations

import glob
import shutil
from pathlib import Path


def work_folder(out: Path, digest: str) -> Path:
    """The folder for work of fingerprint ``digest`` on the output ``out``.

    What other fingerprints left is removed, and what a run left that was killed while it put its output in place.
    """
    parent = out.parent / f".{out.name}.work"
    for unfinished in out.parent.glob(f".{glob.escape(out.name)}.*.partial"):
        if unfinished.is_dir():  # a lock's file is its run's own
            shutil.rmtree(unfinished)
    for other in parent.iterdir() if parent.is_dir() else ():
        if other.name != digest:
            shutil.rmtree(other)
    work = parent / digest
    work.mkdir(parents=True, exist_ok=True)
    return work
