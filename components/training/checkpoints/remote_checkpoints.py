"""Copies of a run's checkpoints on an object store, from which another machine goes on.

A checkpoint is written to the local folder first (:mod:`components.training.checkpoints.checkpoint`); then each rank
uploads its own file, rank 0 the manifest, and last of all ``latest.json``, which points to it. Objects of a checkpoint
lie in ``step-00000500.DIGEST/``, named by the manifest's digest, so that no upload ever replaces a file of another one:
what ``latest.json`` names is whole at every moment. What is fetched is compared with the manifest's SHA-256s.

The ranks share the local folder, as they do without a store.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from components.errors import VitrailError
from components.storage import ObjectUnreadable, Store
from components.training.ranks.distributed import World, barrier, gather_objects

LATEST = "latest.json"
ASIDE = "aside-"  # before the names of what on_mismatch: fresh has set aside
_FOLDER = re.compile(r"^step-(\d{8,})\.([0-9a-f]{16})$")


class RemoteCheckpoints:
    """The copies in ``store``, whose root belongs to one run (a phase has a folder below it).

    Args:
        store: e.g. at ``s3://bucket/checkpoints/pretrain/vitg``.
    """

    def __init__(self, store: Store, world: World) -> None:
        self.store, self.world = store, world
        self._writer = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex}"
        self._seen: dict[str, Any] | None = None  # what latest.json said when this run last looked

    # -- writing ----------------------------------------------------------------------------------------------------

    def push(self, local: Path, kept: Callable[[list[int]], set[int]]) -> bool:
        """Copy the finished checkpoint ``local``; ``kept`` says which of these steps stay on the store.

        A store that is away costs a warning, not the run: the local copy is there, and the next checkpoint is pushed
        again. Returns whether the copy is complete.

        Raises:
            VitrailError: another run has written to the store since this one looked; on every rank.
        """
        manifest, refused, error = {}, "", ""
        if self.world.main:
            manifest = json.loads((local / "manifest.json").read_text())
            try:
                refused = self._refusal()
            except VitrailError as fault:
                error = str(fault)
        manifest, refused, error = gather_objects((manifest, refused, error))[0]
        if refused:
            raise VitrailError(refused)
        folder = f"{local.name}.{manifest['sha256'][:16]}"
        mine = sorted(manifest["files"])[self.world.rank :: self.world.size]

        def upload() -> None:
            for name in mine:
                self._put(folder, local / name, manifest["files"][name])

        error = error or self._tried(upload)
        if not error and self.world.main:
            error = self._tried(lambda: self._publish(folder, local, int(manifest["step"]), kept), also=False)
        error = next((found for found in gather_objects(error) if found), "")
        if error and self.world.main:
            print(
                f"warning: the checkpoint of step {manifest['step']} is in {local}, but not on {self.store.root}: "
                f"{error}; training goes on, and the next one is copied again",
                flush=True,
            )
        return not error

    def _tried(self, work: Callable[[], None], *, also: bool = True) -> str:
        """What went wrong in ``work``, on any rank if ``also``; "" when nothing did."""
        error = ""
        try:
            work()
        except (VitrailError, OSError) as fault:
            error = f"rank {self.world.rank}: {' '.join(str(fault).split())}"
        return next((found for found in gather_objects(error) if found), "") if also else error

    def _put(self, folder: str, path: Path, entry: Mapping[str, Any]) -> None:
        name = f"{folder}/{path.name}"
        self.store.put_file(name, path)
        if self.store.size(name) != entry["bytes"]:
            raise VitrailError(f"{self.store.root}/{name}: another size than {path}; was it written to meanwhile?")

    def _publish(self, folder: str, local: Path, step: int, kept: Callable[[list[int]], set[int]]) -> None:
        for note in sorted(local.parent.iterdir()):  # e.g. the id of the MLflow run, which goes on, too
            if note.is_file() and not note.name.startswith("."):
                self.store.put_file(f"notes/{note.name}", note)
        self.store.put_file(f"{folder}/manifest.json", local / "manifest.json")
        latest = {"version": 1, "step": step, "folder": folder, "writer": self._writer}
        content = (json.dumps(latest) + "\n").encode()
        if self._seen is not None:
            self.store.write(LATEST, content)
        # Two that began at once both saw none: one gets the place. An answer that was lost is no other run.
        elif not self.store.create(LATEST, content) and (self._latest() or {}).get("writer") != self._writer:
            raise VitrailError(f"{self.store.root}: another run has written there at this moment; end one of the two")
        self._seen = latest
        self._prune(folder, step, kept)

    def _prune(self, newest: str, step: int, kept: Callable[[list[int]], set[int]]) -> None:
        """Delete what the run no longer keeps, and what was left half uploaded, of steps up to ``step``."""
        names: dict[str, list[str]] = {}
        for name in self.store.list():
            names.setdefault(name.partition("/")[0], []).append(name)
        whole = {folder for folder, inside in names.items() if _step(folder) and f"{folder}/manifest.json" in inside}
        stay = kept(sorted({_step(folder) or 0 for folder in whole if (_step(folder) or 0) <= step}))
        for folder, inside in names.items():
            at = _step(folder)
            if at is None or at > step or folder == newest or (folder in whole and at in stay and at != step):
                continue
            for name in sorted(inside, key=lambda name: not name.endswith("/manifest.json")):
                self.store.delete(name)

    def _refusal(self) -> str:
        """Why this run must not write: another one has, since this one looked. "" when none has."""
        now = self._latest()
        if now is None or now == self._seen or now.get("writer") == self._writer:
            return ""
        host = str(now.get("writer", "?")).partition(":")[0]
        return (
            f"{self.store.root}: another run, on {host}, has written step {now.get('step')} there since this one "
            "began; end one of the two, then run the same command again to resume from the newest"
        )

    def move_aside(self) -> None:
        """Keep all that is there under another name, so that a run can start anew. On one rank."""
        aside = f"{ASIDE}{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
        names = [name for name in self.store.list() if not name.startswith(ASIDE)]
        for name in names:
            self.store.copy(name, f"{aside}/{name}")
        for name in sorted(names, key=lambda name: not name.endswith(LATEST)):  # from here on nothing is resumed
            self.store.delete(name)
        self._seen = None

    def remove(self) -> None:
        """Delete the run's copies; what was set aside stays. A store that is away costs a warning. On one rank."""
        try:
            names = [name for name in self.store.list() if not name.startswith(ASIDE)]
            for name in sorted(names, key=lambda name: not name.endswith(LATEST)):
                self.store.delete(name)
        except VitrailError as fault:
            print(f"warning: training state stays on the store: {fault}", flush=True)
        self._seen = None

    # -- reading ----------------------------------------------------------------------------------------------------

    def pull(self, folder: Path, have: int) -> Path | None:
        """Fetch the newest whole checkpoint beyond step ``have`` into ``folder``; None when there is none.

        Raises:
            VitrailError: the store cannot be read (a run that began anew instead would lose what is there), or it holds
                checkpoints, of which none is whole, and there is none here; on every rank.
        """
        candidates, error = list[str](), ""
        if self.world.main:
            try:
                candidates = self._candidates(have)
            except VitrailError as fault:
                error = str(fault)
        candidates, error = gather_objects((candidates, error))[0]
        if error:
            raise VitrailError(f"{error}; it may hold checkpoints of this run, so nothing is trained without it")
        for name in candidates:
            target: Path = folder / name.partition(".")[0]
            damage = self._fetch(name, target)
            if not damage:
                if self.world.main:
                    print(f"{self.store.root}/{name}: fetched to {target}", flush=True)
                return target
            if self.world.main:
                print(f"{self.store.root}/{name}: damaged ({damage}), trying the one before", flush=True)
        if candidates and have < 0:
            raise VitrailError(f"{self.store.root}: every checkpoint is damaged; remove {LATEST} there to start anew")
        return None

    def _candidates(self, have: int) -> list[str]:
        self._seen = latest = self._latest()
        if latest is None:
            return []
        top = str(latest["folder"])
        names = (name.partition("/")[0] for name in self.store.list() if name.count("/") == 1)
        older = {name for name in names if (_step(name) or 0) < int(latest["step"]) and _step(name) is not None}
        found = [top, *sorted(older, reverse=True)]
        return [name for name in found if (_step(name) or 0) > have]

    def _fetch(self, name: str, target: Path) -> str:
        """Bring one checkpoint to ``target``; returns what is damaged, "" when nothing is.

        Raises:
            VitrailError: the store cannot be reached, or the disk is full; on every rank.
        """
        aside = target.with_name(f".{target.name}.partial")
        manifest, damage, error = dict[str, Any](), "", ""
        if self.world.main:
            try:
                manifest = json.loads(self.store.read(f"{name}/manifest.json"))
                if not str(manifest.get("sha256")).startswith(name.partition(".")[2]):
                    damage = "its manifest is another one's"
                shutil.rmtree(aside, ignore_errors=True)
                aside.mkdir(parents=True)
                (aside / "manifest.json").write_text(json.dumps(manifest))
            except (ObjectUnreadable, ValueError, AttributeError) as fault:
                damage = f"no manifest: {fault}"
            except (VitrailError, OSError) as fault:
                error = str(fault)
        manifest, damage, error = gather_objects((manifest, damage, error))[0]
        if not damage and not error:
            mine = sorted(manifest["files"])[self.world.rank :: self.world.size]
            for file in mine:
                try:
                    self.store.get_file(f"{name}/{file}", aside / file)
                    if _digest(aside / file) != manifest["files"][file]["sha256"]:
                        damage = f"{file} is not what was written"
                except ObjectUnreadable as fault:
                    damage = str(fault)
                except (VitrailError, OSError) as fault:
                    error = str(fault)
            said = gather_objects((damage, error))
            damage = next((found for found, _ in said if found), "")
            error = next((found for _, found in said if found), "")
        if self.world.main and (damage or error):
            shutil.rmtree(aside, ignore_errors=True)
        if error:
            raise VitrailError(f"{error}; run the same command again to resume from {self.store.root}/{name}")
        if self.world.main and not damage:
            self._notes(target.parent)
            if target.exists():  # it has no whole manifest, or it would be what the run goes on from
                shutil.rmtree(target)
            os.replace(aside, target)
        barrier()
        return damage

    def _notes(self, folder: Path) -> None:
        for name in self.store.list("notes"):
            path = folder / name.partition("/")[2]
            if "/" not in name.partition("/")[2] and not path.exists():
                with contextlib.suppress(ObjectUnreadable):
                    self.store.get_file(name, path)

    def _latest(self) -> dict[str, Any] | None:
        try:
            found = json.loads(self.store.read(LATEST))
            if _FOLDER.match(found["folder"]) and isinstance(found["step"], int):
                return dict(found)
        except ObjectUnreadable as fault:
            if fault.missing:
                return None
            raise
        except (ValueError, TypeError, KeyError):
            pass
        raise VitrailError(f"{self.store.root}/{LATEST}: damaged; remove it to start anew")


def _step(folder: str) -> int | None:
    match = _FOLDER.match(folder)
    return int(match[1]) if match else None


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
