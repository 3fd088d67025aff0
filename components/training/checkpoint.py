"""Training state on disk: a folder a checkpoint, verified by hash, from which a run goes on bit by bit as if unbroken.

``<scratch>/step-00000500/`` holds ``manifest.json`` (step, fingerprint, number of ranks, every file's SHA-256, and the
small state that is equal on all ranks) and ``rank-00000.safetensors``, one a rank: flat fp32 shards by parameter name.
Because ZeRO-3 cuts a parameter into equal pieces in rank order, another number of ranks reads the pieces one after the
other and cuts anew. Exported models (:mod:`components.learning.export`) can be reached from here, too.
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
from components.storage import atomic_file
from components.training.distributed import World, agree, barrier, gather_objects
from components.training.engine import cut

__all__ = [
    "Checkpoint",
    "Checkpoints",
    "ModelCard",
    "export_model",
    "load_backbone",
    "load_card",
    "load_heads",
]

VERSION = 1
DAMAGED = "damaged-"  # before the name of a checkpoint whose files are not what was written


@dataclass
class Checkpoint:
    """The state of a run after ``step`` iterations."""

    step: int
    shards: dict[str, Tensor]  # this rank's: "KIND/PARAMETER" -> flat fp32
    shared: dict[str, Any]  # JSON, equal on every rank
    whole: dict[str, Tensor] = field(default_factory=dict)  # tensors equal on every rank


class Checkpoints:
    """The checkpoints below ``folder`` (one file system for all ranks), newest last.

    Args:
        folder: e.g. ``scratch/pretrain/vitt``.
        fingerprint: of params and data; a checkpoint under another is not resumed.
        keep: newest checkpoints kept, at least 1.
        keep_every: those whose step is a multiple of this are kept for good; 0: none.
    """

    def __init__(self, folder: Path, fingerprint: str, world: World, keep: int = 2, keep_every: int = 0) -> None:
        self.folder, self.fingerprint, self.world = folder, fingerprint, world
        self.keep, self.keep_every = keep, keep_every

    # -- writing ----------------------------------------------------------------------------------------------------

    def save(self, state: Checkpoint) -> Path:
        """Write ``state``; the folder appears under its name when every rank's file is on disk.

        Raises:
            VitrailError: a rank could not write; the older checkpoints are untouched.
        """
        from safetensors.torch import save_file

        target = self.folder / f"step-{state.step:08d}"
        aside = self.folder / f".{target.name}.partial"

        def prepare() -> None:
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
                "world": self.world.size,
                "files": {e["name"]: {"sha256": e["sha256"], "bytes": e["bytes"]} for e in entries},
                "shared": state.shared,
            }
            with atomic_file(aside / "manifest.json", "w") as file:
                json.dump(manifest, file)
            shutil.rmtree(target, ignore_errors=True)
            os.replace(aside, target)
            _sync(self.folder)
            self._prune(state.step)

        self._together(state.step, aside, prepare, main_only=True)
        entries = self._together(state.step, aside, write)
        self._together(state.step, aside, finish, main_only=True)
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
        for path in own[: -self.keep]:
            if not (self.keep_every and _step(path) % self.keep_every == 0):
                shutil.rmtree(path)
        for path in self.folder.glob(f"{DAMAGED}step-*"):
            if int(path.name.rpartition("-")[2]) <= step:
                shutil.rmtree(path)

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

    # -- reading ----------------------------------------------------------------------------------------------------

    def found(self) -> list[Path]:
        """Checkpoint folders by rising step."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def newest(self) -> dict[str, Any] | None:
        """What the newest checkpoint with a whole manifest says of itself (its files may still be damaged), on every
        rank; None without one."""
        manifest = None
        if self.world.main:
            manifest = next((found for path in reversed(self.found()) if (found := _manifest(path))), None)
        return gather_objects(manifest)[0]  # type: ignore[no-any-return]

    def check_fingerprint(self, on_mismatch: str) -> str:
        """Compare the newest checkpoint's fingerprint with this run's.

        Under another one: ``on_mismatch="fresh"`` moves the folder aside and returns a line that says so; ``"refuse"``
        raises. Returns "" when there is nothing to say.

        Raises:
            VitrailError: the fingerprint differs and ``on_mismatch`` is "refuse".
        """
        message = ""
        if self.world.main:
            for path in reversed(self.found()):
                manifest = _manifest(path)
                if manifest is None:
                    continue
                if manifest["fingerprint"] != self.fingerprint:
                    message = self._mismatch(path, manifest, on_mismatch)
                break
        message = gather_objects(message)[0]
        if message.startswith("refused:"):
            raise VitrailError(message.removeprefix("refused:"))
        return str(message)

    def _other(self, path: Path, manifest: Mapping[str, Any]) -> str:
        what = f"{path} was trained with other params or data (fingerprint {manifest['fingerprint'][:12]}"
        return what + f", this run {self.fingerprint[:12]})"

    def _mismatch(self, path: Path, manifest: Mapping[str, Any], on_mismatch: str) -> str:
        what = self._other(path, manifest)
        if on_mismatch == "refuse":
            return (
                f"refused:{what}; to go on with it restore its params and data, to start anew remove or rename "
                f"{self.folder} or set run.on_mismatch: fresh"
            )
        aside = self.folder.with_name(f"{self.folder.name}.{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
        os.replace(self.folder, aside)
        return f"{what}: moved aside to {aside}, starting anew"

    def load(self, lengths: Mapping[str, int]) -> Checkpoint | None:
        """The newest undamaged checkpoint, cut for this number of ranks; None when there is none.

        Damaged ones that are newer are renamed: they lie ahead of where the run goes on, and would pass for its newest.

        Args:
            lengths: elements of this rank's shard, by parameter name.

        Raises:
            VitrailError: there are checkpoints, but none whose files are whole; or they are of another run.
        """
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
                if manifest["fingerprint"] != self.fingerprint:
                    raise VitrailError(f"{self._other(path, manifest)}; another run has written there meanwhile")
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
            own[name] = parts[0] if same else cut(torch.cat(parts), length, self.world.rank)
        return Checkpoint(int(manifest["step"]), own, dict(manifest["shared"]), whole)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None when it is missing or cut short."""
    try:
        content = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) and content.get("version") == VERSION else None


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
