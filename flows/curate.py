"""Flow ``curate``: pictures in (a crawl, WARC files or a folder), shards and index out."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_families


@flow(name="curate")
def curate(again: bool = False) -> State[Any]:
    """Run the stages crawl and curate.

    Args:
        again: crawl although nothing changed here, for the web may have. What it finds is a new version of the data.
    """
    return run_families("crawl", "curate", anew=("crawl",) if again else ())
