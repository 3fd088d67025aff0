"""A small index of a given form, built in a process of its own first.

FAISS takes factory strings whose indexes then write beyond their memory: the process ends by a signal, at once or much
later, and says nothing. A rehearsal on random vectors costs seconds, and what it finds is one line.
"""

from __future__ import annotations

import functools
import os
import re
import signal
import subprocess
import sys
from typing import Any

from components.errors import VitrailError

ROWS = 512  # random vectors, enough for codes of 8 bits
SECONDS = 300.0  # until a rehearsal counts as hung; it takes about two
_CODE = "import sys; from components.neighbours.rehearse import perform; perform(sys.argv[1], int(sys.argv[2]))"


def rehearse(factory: str, dim: int) -> None:
    """Nothing when a small index of ``factory``'s form can be built and searched.

    Raises:
        VitrailError: it cannot; FAISS may have ended the process.
    """
    # neither lists nor the graph over them change the form
    _rehearse(re.sub(r"IVF\d+", "IVF2", factory), dim, factory)


@functools.cache
def _rehearse(small: str, dim: int, factory: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)) or ".", "OMP_NUM_THREADS": "1"}
    where = f"neighbours.factory {factory!r} for {dim} dimensions"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _CODE, small, str(dim)], env=env, capture_output=True, text=True, timeout=SECONDS
        )
    except subprocess.TimeoutExpired:
        raise VitrailError(f"{where}: a small index was not built in {SECONDS:.0f} s; use 'auto'") from None
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise VitrailError(f"{where}: FAISS ends the process by {name} in building a small one; use 'auto'")
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        reason = said[-1].rpartition("Error: ")[2] if said else f"exit code {done.returncode}"
        raise VitrailError(f"{where}: FAISS refuses it ({reason}); use 'auto'")


def perform(factory: str, dim: int) -> None:
    """Build, fill, pack and search an index of ``factory``; for the process of :func:`rehearse`."""
    import faiss
    import numpy as np

    from components.neighbours import index as indexes

    rows = np.random.default_rng(0).standard_normal((ROWS, dim)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index = indexes.made(factory, dim)
    if isinstance(index, faiss.IndexPreTransform):
        chain: Any = index.chain
        turn: Any = faiss.downcast_VectorTransform(chain.at(0))
        turn.niter, turn.niter_pq, turn.niter_pq_0 = 1, 1, 1  # how well it fits is of no account here
    if not index.is_trained:
        index.train(rows)
    indexes.fill(index, rows)
    indexes.Searcher(indexes.packed(index), 2 if "IVF" in factory else 0)(rows[:16], 4)
