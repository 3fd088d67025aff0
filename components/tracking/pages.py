"""Addresses of MLflow's pages, and what is written on them: the UI opens on model training, not on language models.

The UI's start page has another mode, remembered by the browser; ``workflowType`` in an address overrules it.
"""

from __future__ import annotations

import sys

from components.errors import VitrailError
from components.tracking.store import database, existing_experiment, explained, open_client, probe

MODE = "workflowType=machine_learning"
_NOTES = {
    "curate": "Filters, decodes and shards images. Look at: `curate.kept` and the counts of each reason.",
    "dedup": "Removes copies and held-out images, and chooses the training set. Look at: the counts `dedup.REASON`.",
    "pretrain": "Trains a vision transformer with DINO, iBOT and KoLeo. Look at: *Model metrics*; `train/loss` falls "
    "and the scores of the probes rise; the artifacts hold PCA pictures.",
    "distill": "Trains a student from a frozen teacher. Look at: *Model metrics*, `train/loss` falls; compare the "
    "student with its teacher in the experiment's *Models* tab.",
    "benchmark": "Scores every checkpoint, raw pixels and the untrained network on the same labelled images. Look at: "
    "the experiment's *Models* tab, one row a checkpoint, and PCA pictures among the artifacts.",
}


def note(stage: str) -> dict[str, str]:
    """The tag that MLflow shows as the description of a run of ``stage``; none for a stage without one."""
    return {"mlflow.note.content": _NOTES[stage]} if stage in _NOTES else {}


def run_page(uri: str, experiment: str, run: str) -> str:
    """The page of a run, on the server ``uri``."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs/{run}?{MODE}"


def charts_page(uri: str, experiment: str) -> str:
    """The charts of all runs of an experiment: every curve and score side by side."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/runs?{MODE}&compareRunsMode=CHART"


def models_page(uri: str, experiment: str) -> str:
    """The experiment's models, one row a checkpoint with its scores."""
    return f"{uri.rstrip('/')}/#/experiments/{experiment}/models?{MODE}"


def look_at(shown_by: str, store: str, name: str) -> list[str]:
    """Lines with the pages of the experiment ``name`` in ``store``, on the server ``shown_by``.

    Where the store is away or does not have the experiment yet, one line with the server alone.
    """
    found = None
    try:
        probe(store)
        if not store.startswith("sqlite") or database(store).is_file():
            with explained(store):
                found = existing_experiment(open_client(store), name)
    except VitrailError as fault:
        print(f"tracking: {fault}", file=sys.stderr)
    if found is None:
        return [f"{shown_by}/#/experiments?{MODE}"]
    return [
        f"{charts_page(shown_by, found)}   curves and scores",
        f"{models_page(shown_by, found)}   one row a checkpoint",
    ]
