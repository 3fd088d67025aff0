"""Flow ``curate``: pictures in (a crawl, WARC files or a folder), shards and index out."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State

from flows.launch import run_families


@flow(name="curate")
def curate() -> State[Any]:
    """Run the stages crawl and curate."""
    return run_families("crawl", "curate")
