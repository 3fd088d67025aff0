"""Training state on disk: a folder a checkpoint, verified by hash, from which a run goes on bit by bit as if unbroken.

``<scratch>/step-00000500/`` holds ``manifest.json`` (step, identity, number of ranks, every file's SHA-256, the small
state that is equal on all ranks, and its own SHA-256) and ``rank-00000.safetensors``, one a rank: flat fp32 shards by
parameter name. Because ZeRO-3 cuts a parameter into equal pieces in rank order, another number of ranks reads the
pieces one after the other and cuts anew. With a store, copies go there
(:mod:`components.training.checkpoints.remote_checkpoints`). Exported models (:mod:`components.learning.export`) can be
reached from here, too.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from components.errors import VitrailError, disk_fault
from components.learning.export import ModelCard, export_model, load_backbone, load_card, load_heads
from components.storage import Store, atomic_file
from components.training.checkpoints.identity import Changes, Identity, changes
from components.training.checkpoints.remote_checkpoints import RemoteCheckpoints
from components.training.ranks.distributed import World, agree, barrier, gather_objects
from components.training.sharded.zero import cut

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "ModelCard",
    "export_model",
    "load_backbone",
    "load_card",
    "load_heads",
]

VERSION = 2
REPLACED = ".replaced"  # behind the name, after a dot, of one that is being written anew
DAMAGED = "damaged-"  # before the name of a checkpoint whose files are not what was written


@dataclass
class Checkpoint:
    """The state of a run after ``step`` iterations."""

    step: int
    shards: dict[str, Tensor]  # this rank's: "KIND/PARAMETER" -> flat fp32
    shared: dict[str, Any]  # JSON, equal on every rank
    whole: dict[str, Tensor] = field(default_factory=dict)  # tensors equal on every rank
    changes: Changes = field(default_factory=dict)  # when loaded: of the identity, since it was written


class Checkpoints:
    """The checkpoints below ``folder`` (one file system for all ranks), newest last.

    Args:
        folder: e.g. ``scratch/pretrain/vitt``.
        identity: of the run, or a name for it: a checkpoint of another run is not loaded, unless its fingerprint is in
            :attr:`accepted`.
        keep: newest checkpoints kept, at least 1.
        keep_every: those whose step is a multiple of this are kept for good; 0: none.
        store: where copies go, for another machine to go on from; None: nowhere.
    """

    def __init__(
        self,
        folder: Path,
        identity: Identity | str,
        world: World,
        keep: int = 2,
        keep_every: int = 0,
        *,
        store: Store | None = None,
    ) -> None:
        self.folder, self.world = folder, world
        self.identity = identity if isinstance(identity, Identity) else Identity({}, {"run": identity})
        self.keep, self.keep_every = keep, keep_every
        self.accepted: set[str] = set()  # fingerprints that this run goes on from, besides its own
        self.changes: Changes = {}  # what is other than in the newest of them
        self.remote = RemoteCheckpoints(store, world) if store is not None else None

    @property
    def fingerprint(self) -> str:
        """Of the run's identity."""
        return self.identity.fingerprint

    # -- writing ----------------------------------------------------------------------------------------------------

    def save(self, state: Checkpoint) -> Path:
        """Write ``state``; the folder appears under its name when every rank's file is on disk, then on the store.

        Raises:
            VitrailError: a rank could not write; the older checkpoints are untouched; or another run writes to the
                store.
        """
        from safetensors.torch import save_file

        target = self.folder / f"step-{state.step:08d}"
        aside = self.folder / f".{target.name}.partial"

        def prepare() -> None:
            self._recover()
            for left in self.folder.glob(".step-*.partial"):  # of a run that was killed while it wrote
                shutil.rmtree(left)
            aside.mkdir(parents=True)

        def write() -> dict[str, Any]:
            path = aside / _rank_file(self.world.rank)
            tensors = state.shards | {f"whole/{name}": value for name, value in state.whole.items()}
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
            _sync(path)
            return {"name": path.name, "bytes": path.stat().st_size, "sha256": _digest(path)}

        def finish() -> None:
            manifest = {
                "version": VERSION,
                "step": state.step,
                "fingerprint": self.fingerprint,
                "identity": self.identity.plain(),
                "lineage": sorted(self.accepted - {self.fingerprint}),  # of earlier parts of this run
                "world": self.world.size,
                "files": {e["name"]: {"sha256": e["sha256"], "bytes": e["bytes"]} for e in entries},
                "shared": state.shared,
            }
            with atomic_file(aside / "manifest.json", "w") as file:
                json.dump(sealed(manifest), file)
            former = target.with_name(f".{target.name}{REPLACED}")
            if target.exists():
                os.replace(target, former)
            os.replace(aside, target)
            _sync(self.folder)
            shutil.rmtree(former, ignore_errors=True)
            self._prune(state.step)

        self._together(state.step, aside, prepare, main_only=True)
        entries = self._together(state.step, aside, write)
        self._together(state.step, aside, finish, main_only=True)
        if self.remote is not None:
            self.remote.push(target, self._kept)
        return target

    def _together(self, step: int, aside: Path, work: Callable[[], Any], *, main_only: bool = False) -> list[Any]:
        """Do ``work`` on every rank, or the first; all learn how it went, and none goes on where one could not.

        Raises:
            VitrailError: a rank could not.
        """
        result, error = None, ""
        if self.world.main or not main_only:
            try:
                result = work()
            except Exception as fault:  # safetensors raises its own kind for a full disk
                said = str(fault) if isinstance(fault, VitrailError) else disk_fault(fault, aside.parent)
                said = said or f"{aside.parent}: {' '.join(str(fault).split())}"
                error = f"rank {self.world.rank}: {said}"
        found = gather_objects([result, error])
        errors = [error for _, error in found if error]
        if errors:
            if self.world.main:
                shutil.rmtree(aside, ignore_errors=True)
            raise VitrailError(
                f"checkpoint of step {step} not written: {errors[0]}; older checkpoints are kept, from which the same "
                "command resumes"
            )
        return [result for result, _ in found]

    def _prune(self, step: int) -> None:
        """Keep ``step``, just written, the newest before it and every m-th.

        One of a later step is of another history than this run's and takes nobody's place; what was set aside as
        damaged goes when the run is past its step.
        """
        own = [path for path in self.found() if _step(path) <= step]
        kept = self._kept([_step(path) for path in own])
        for path in own:
            if _step(path) not in kept:
                shutil.rmtree(path)
        for path in self.folder.glob(f"{DAMAGED}step-*"):
            if int(path.name.rpartition("-")[2]) <= step:
                shutil.rmtree(path)

    def _kept(self, steps: list[int]) -> set[int]:
        """Those of ``steps``, rising, that are kept."""
        for_good = {step for step in steps if self.keep_every and step % self.keep_every == 0}
        return {*steps[-self.keep :], *for_good}

    def _set_aside(self, damaged: list[Path]) -> None:
        """Rename ``damaged``, so that they are neither read nor counted again."""
        for path in damaged:
            aside = path.with_name(DAMAGED + path.name)
            shutil.rmtree(aside, ignore_errors=True)
            os.replace(path, aside)

    def remove(self) -> None:
        """Delete the whole folder (its run has been exported)."""
        barrier()
        if self.world.main:
            shutil.rmtree(self.folder, ignore_errors=True)
            if self.remote is not None:
                self.remote.remove()

    # -- reading ----------------------------------------------------------------------------------------------------

    def fetch(self) -> None:
        """Bring the store's newest checkpoint here, if none as new is here. Before anything else is asked.

        Raises:
            VitrailError: the store cannot be read; on every rank.
        """
        if self.remote is None:
            return
        manifest = self.newest()
        self.remote.pull(self.folder, -1 if manifest is None else int(manifest["step"]))

    def found(self) -> list[Path]:
        """Checkpoint folders by rising step."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def newest(self) -> dict[str, Any] | None:
        """What the newest checkpoint with a whole manifest says of itself (its files may still be damaged), on every
        rank; None without one."""
        return gather_objects(self.newest_here()[1] if self.world.main else None)[0]  # type: ignore[no-any-return]

    def newest_here(self) -> tuple[Path | None, dict[str, Any] | None]:
        """The newest checkpoint with a whole manifest, and that; on the rank that asks.

        Where there is none, the newest folder that another version of this program wrote, or two times None.
        """
        self._recover()
        found = list(reversed(self.found()))
        for path in found:
            if (manifest := _manifest(path)) is not None:
                return path, manifest
        return next((path for path in found if _version(path) not in (None, VERSION)), None), None

    def move_aside(self) -> Path:
        """Rename the folder, so that a run can start anew; returns where it is now. On one rank."""
        aside = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        if self.remote is not None:
            self.remote.move_aside()  # first: what stayed there would be fetched again
        os.replace(self.folder, aside)
        return aside

    def _recover(self) -> None:
        """Put back what a run that was killed in between had moved to make room for the same step, written anew."""
        for former in self.folder.glob(f".step-*{REPLACED}"):
            place = former.with_name(former.name.removeprefix(".").removesuffix(REPLACED))
            if place.exists():
                shutil.rmtree(former)
            else:
                os.replace(former, place)

    def load(self, lengths: Mapping[str, int]) -> Checkpoint | None:
        """The newest undamaged checkpoint, cut for this number of ranks; None when there is none.

        Damaged ones that are newer are renamed: they lie ahead of where the run goes on, and would pass for its newest.

        Args:
            lengths: elements of this rank's shard, by parameter name.

        Raises:
            VitrailError: there are checkpoints, but none whose files are whole; or they are of another run.
        """
        if self.world.main:
            self._recover()
        found = gather_objects(self.found())[0]
        damaged: list[Path] = []
        for path in reversed(found):
            manifest = _manifest(path)
            # each rank reads a share of the files, all must agree
            good = manifest is not None and all(
                _whole(path / name, entry)
                for index, (name, entry) in enumerate(sorted(manifest["files"].items()))
                if index % self.world.size == self.world.rank
            )
            if agree(good, self.world.device) and manifest is not None:
                if manifest["fingerprint"] not in {self.fingerprint, *self.accepted}:
                    raise VitrailError(f"{path}: of a run with other params or data, which has written there meanwhile")
                if self.world.main:
                    self._set_aside(damaged)
                return self._read(path, manifest, lengths)
            if self.world.main:
                print(f"{path}: damaged, trying the one before", flush=True)
            damaged.append(path)
        if found:
            raise VitrailError(f"{self.folder}: every checkpoint is damaged; remove the folder to start anew")
        return None

    def _read(self, path: Path, manifest: Mapping[str, Any], lengths: Mapping[str, int]) -> Checkpoint:
        from safetensors import safe_open

        ranks = int(manifest["world"])
        same = ranks == self.world.size
        wanted = [self.world.rank] if same else list(range(ranks))
        shards: dict[str, list[Tensor]] = {}
        whole: dict[str, Tensor] = {}
        for rank in wanted:
            with safe_open(path / _rank_file(rank), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a mapping
                    if name.startswith("whole/"):
                        whole[name.removeprefix("whole/")] = file.get_tensor(name)
                    else:
                        shards.setdefault(name, []).append(file.get_tensor(name))
        own = {}
        for name, parts in shards.items():
            length = lengths.get(name.partition("/")[2])
            if length is None:
                raise VitrailError(f"{path}: holds {name}, which this model does not have; is it of another preset?")
            elements, wanted_now = sum(part.numel() for part in parts), length * (1 if same else self.world.size)
            if abs(elements - wanted_now) >= (1 if same else max(ranks, self.world.size)):  # but for padding
                raise VitrailError(f"{path}: {name} has another size in this model; is it of another preset?")
            own[name] = parts[0] if same else cut(torch.cat(parts), length, self.world.rank)
        missing = sorted(lengths.keys() - {name.partition("/")[2] for name in own})
        if missing:
            raise VitrailError(f"{path}: holds no {missing[0]}, which this model has; is it of another preset?")
        changed = changes(manifest["identity"], self.identity)
        return Checkpoint(int(manifest["step"]), own, dict(manifest["shared"]), whole, changed)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint, without its digest; None when it is missing, cut short or altered."""
    try:
        content = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(content, dict) or content.get("version") != VERSION:
        return None
    digest = content.pop("sha256", None)
    return content if digest == _manifest_digest(content) and content["step"] == _step(path) else None


def _version(path: Path) -> Any:
    """The format that a manifest names; None if it names none."""
    try:
        content = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return content.get("version") if isinstance(content, dict) else None


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """``manifest`` with its own digest."""
    return {**manifest, "sha256": _manifest_digest(manifest)}


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    # curves may contain NaN, so this is not components.params.fingerprint
    text = json.dumps(json.loads(json.dumps(manifest)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _whole(path: Path, entry: Mapping[str, Any]) -> bool:
    try:
        return bool(path.stat().st_size == entry["bytes"] and _digest(path) == entry["sha256"])
    except OSError:
        return False


def _digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
