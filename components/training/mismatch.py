"""Checkpoints of other parameters or data: stop, go on with them under the new ones, or set them aside.

Hours of training are never thrown away unasked. What may be done is said in ``run.on_mismatch``:

- ``stop`` (the default) ends the run with a line that lists the differences. Only state of less than
  ``run.disposable_minutes`` of training is set aside without a question.
- ``continue`` goes on from the newest checkpoint under the new values. The differences are printed, and kept with the
  curves, in every later checkpoint, in ``curve.json`` and as a tag of the MLflow run.
- ``fresh`` moves the folder aside, whatever is in it, and starts anew.

Schedules are functions of a run's length. A longer run that is continued follows the schedules of the new length from
its next step on: the learning rate jumps to where it would have been. So ``run.iterations`` counts as a change.
"""

from __future__ import annotations

from typing import Any

from components.errors import VitrailError
from components.training.checkpoints.checkpoint import Checkpoints
from components.training.checkpoints.identity import IMAGES, Changes, Identity, changes, listed
from components.training.params import RunParams
from components.training.ranks.distributed import World, gather_objects

FIRST = "steps before this phase"
NO_SHAPE = (".drop_path", ".interpolation", ".init_std")  # of the network's parameters


def resolve_mismatch(store: Checkpoints, run: RunParams, world: World) -> str:
    """Decide what becomes of the checkpoints in ``store``; returns a line to print, "" when there is nothing to say.

    Raises:
        VitrailError: they are of another run, and ``run.on_mismatch`` does not say what to do; on every rank.
    """
    verdict, line, accepted, found = "", "", list[str](), Changes()
    if world.main:
        verdict, line, accepted, found = _verdict(store, run, world)
    verdict, line, accepted, found = gather_objects((verdict, line, accepted, found))[0]
    if verdict == "stop":
        raise VitrailError(line)
    store.accepted.update(accepted)
    store.changes = found
    return str(line)


def _verdict(store: Checkpoints, run: RunParams, world: World) -> tuple[str, str, list[str], Changes]:
    own = store.identity
    path, manifest = store.newest_here()
    if path is None:
        return "", "", [], {}
    if manifest is None:
        what = f"{path} was written by another version of this program, in another format"
        if run.on_mismatch == "fresh":
            return "fresh", f"{what}: moved aside to {store.move_aside()}, starting anew", [], {}
        return "stop", f"{what}; finish with that version, or set run.on_mismatch: fresh to set it aside", [], {}
    lineage = [*manifest.get("lineage", []), manifest["fingerprint"]]
    found = changes(manifest.get("identity"), own) | _images(manifest, own, world)
    # Fingerprints also differ by parameters that were added since; only an identity tells.
    known = manifest.get("identity") is not None
    if not found and (known or manifest["fingerprint"] == store.fingerprint):
        return "same", "", lineage, {}
    minutes = float(manifest["shared"].get("curves", {}).get("seconds", 0.0)) / 60
    what = f"{path} was trained with other params or data ({listed(found) or 'which ones, it does not say'})"
    if run.on_mismatch == "fresh" or (run.on_mismatch == "stop" and minutes < run.disposable_minutes):
        little = "" if run.on_mismatch == "fresh" else f" (less than {run.disposable_minutes:g} minutes of training)"
        return "fresh", f"{what}: moved aside to {store.move_aside()}, starting anew{little}", [], {}
    barred = _barred(manifest, found)
    if run.on_mismatch == "continue" and not barred:
        return "continue", f"{what}: continuing after step {manifest['step']} under the new ones", lineage, found
    ways = "restore its params and data to go on with it as it was"
    ways += f" (run.on_mismatch: continue cannot: {barred})" if barred else ""
    ways += "" if barred else ", set run.on_mismatch: continue to go on with it under the new ones"
    ways += ", or run.on_mismatch: fresh to set it aside and start anew"
    return "stop", f"{what}, {minutes:.0f} minutes of training: {ways}", [], {}


def _images(manifest: dict[str, Any], own: Identity, world: World) -> Changes:
    """Another number of images a step, where params ask for it; other ranks are for ``session.keep_global_batch``."""
    asked = (manifest.get("identity") or {}).get("images", 0)
    before = manifest["shared"].get("global_batch")
    now = own.images * world.size
    return {IMAGES: (before, now)} if before and asked and own.images not in (0, asked) and now != before else {}


def _barred(manifest: dict[str, Any], found: Changes) -> str:
    """Why the checkpoint cannot be continued under these changes; "" when it can."""
    if manifest.get("identity") is None:
        return "the checkpoint does not say what it was trained with"
    if FIRST in found:
        return "the phase before it has another length"
    shapes = [name for name in found if name.startswith(("vit.", "heads.")) and not name.endswith(NO_SHAPE)]
    return f"{', '.join(shapes)} make it another network" if shapes else ""
