"""What surrounds the training loop in every stage: data, checkpoints, export, and the figures of the report."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from components.code_version import commit
from components.errors import VitrailError
from components.images import shards
from components.images.loader import Loader, ManifestDataset, Stream
from components.images.shards import Shards
from components.learning.augment import MultiCrop, colors_on_device
from components.learning.collate import collate_bytes
from components.learning.export import BACKBONE, CARD, HEADS, ModelCard, StartedFrom, export_model
from components.lock import hold
from components.storage import StorageParams, Store, publish
from components.tables.parts import part_rows, parts
from components.tables.schemas import MANIFEST
from components.training.checkpoints.checkpoint import Checkpoints
from components.training.checkpoints.identity import Identity
from components.training.inputs import TrainingInputs
from components.training.loop import Curves
from components.training.mismatch import resolve_mismatch
from components.training.params import TrainingParams
from components.training.ranks.allocator import keep_freed_memory
from components.training.ranks.distributed import World, gather_objects, gather_shards, join, pick_device
from components.training.sharded.engine import Engine

Params = TypeVar("Params", bound=TrainingParams)


def data_digest(curated: Path, manifest: Path) -> str:
    """SHA-256 (hex) over the manifest's bytes and the digests of the shards it points into.

    Raises:
        VitrailError: the manifest or ``shards.json`` is not there.
    """
    return shards.data_digest(parts(manifest, MANIFEST), Shards.load(curated).shards)


def start(params: TrainingParams) -> World:
    """Join the ranks on the device that ``params`` name, with the asked number of threads."""
    if params.run.threads:
        torch.set_num_threads(params.run.threads)
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
    device = pick_device(params.engine.device)
    if device.type == "cpu":
        keep_freed_memory()
    return join(device)


@contextlib.contextmanager
def holding(world: World, *folders: Path) -> Iterator[None]:
    """Be the only run at work in ``folders``; rank 0 holds them for all.

    Raises:
        VitrailError: another run is at work in one of them; on every rank.
    """
    with contextlib.ExitStack() as held:
        refused = ""
        try:
            for folder in folders if world.main else ():
                held.enter_context(hold(folder))
        except VitrailError as fault:
            refused = str(fault)
        if refused := str(gather_objects(refused)[0]):
            raise VitrailError(refused)
        yield


LEAST_BATCH = 8  # images a rank: with fewer, losses that look across a batch see next to nothing


def fit_batch(params: Params, manifest: Path, world: World) -> Params:
    """``params`` with a batch that the manifest's images fill: as given, or the largest power of two below.

    Raises:
        VitrailError: there are fewer than :data:`LEAST_BATCH` images a rank.
    """
    images, batch = sum(part_rows(manifest, MANIFEST)), params.run.batch
    larger = params.high_resolution
    if images >= world.size * max(batch, (larger and larger.batch) or 0):
        return params
    if images < world.size * LEAST_BATCH:
        raise VitrailError(
            f"{manifest}: {images} images, training needs at least {world.size * LEAST_BATCH} ({LEAST_BATCH} a rank); "
            "the reports of curate and dedup say what dropped the others"
        )
    fits = 1 << ((images // world.size).bit_length() - 1)
    if world.main:
        print(
            f"{manifest}: {images} images, less than a batch of {batch * world.size}: run.batch {min(batch, fits)} "
            f"instead of {batch}",
            flush=True,
        )
    update: dict[str, Any] = {"run": params.run.model_copy(update={"batch": min(batch, fits)})}
    if larger is not None and larger.batch is not None:
        update["high_resolution"] = larger.model_copy(update={"batch": min(larger.batch, fits)})
    return params.model_copy(update=update)


def open_loader(
    params: TrainingParams,
    inputs: TrainingInputs,
    storage: StorageParams,
    world: World,
    quarantine: Path,
    anchors: int | None = None,
) -> Loader:
    """Endless batches of uint8 crops of the manifest's images, with larger ones of ``anchors`` pixels if asked for.

    Raises:
        VitrailError: the manifest is missing, or holds fewer images than one batch of all ranks.
    """
    dataset = ManifestDataset(inputs.curated, inputs.manifest, storage)
    needed = params.run.batch * world.size
    if len(dataset) < needed:
        raise VitrailError(
            f"{inputs.manifest}: {len(dataset)} images, less than a batch of {needed}; lower run.batch or select more"
        )
    return Loader(
        dataset,
        MultiCrop(params.augment, defer_color=colors_on_device(params.augment, world.device), anchors=anchors),
        Stream(params.run.batch, params.run.seed, world.rank, world.size),
        collate=collate_bytes,
        params=params.loader,
        quarantine=quarantine,
    )


def open_checkpoints(
    folder: Path, params: TrainingParams, identity: Identity, world: World, store: Store | None = None
) -> Checkpoints:
    """The run's checkpoints, those that another machine left on ``store`` among them; what becomes of those of other
    params or data is :mod:`~components.training.mismatch`."""
    checkpoints = Checkpoints(folder, identity, world, params.run.keep, params.run.keep_every, store=store)
    checkpoints.fetch()
    message = resolve_mismatch(checkpoints, params.run, world)
    if message and world.main:
        print(message, flush=True)
    return checkpoints


def keep_global_batch(phases: Sequence[Params], stores: Sequence[Checkpoints], world: World) -> list[Params]:
    """``phases`` with the batch a rank at which a resumed step has as many images as before, on other ranks, too.

    What the last checkpoint in ``stores`` says of its phase's images a step tells how many ranks the run was started
    on; a phase still to come keeps its own batch times those.

    Raises:
        VitrailError: the ranks do not divide a phase's images, and ``run.global_batch`` is "keep".
    """
    for params, store in reversed(list(zip(phases, stores, strict=True))):
        manifest = store.newest()
        if manifest is not None and "global_batch" in manifest["shared"]:
            asked = params.run.batch * params.engine.accumulation
            if (manifest["identity"]["images"] or asked) != asked:
                return list(phases)  # another split, or another number of images that `settle` agreed to
            ranks = Fraction(manifest["shared"]["global_batch"], params.run.batch * params.engine.accumulation)
            return [_spread(own, ranks, world, store.folder) for own in phases]
    return list(phases)


def _spread(params: Params, ranks: Fraction, world: World, folder: Path) -> Params:
    """``params`` of a run on ``ranks`` for those of ``world``, with as many images a step."""
    batch, accumulation = params.run.batch, params.engine.accumulation
    if ranks == world.size or params.run.global_batch == "follow":
        return params
    wanted = batch * accumulation * ranks
    micro = next(
        (count for count in range(accumulation, 0, -1) if (wanted / (world.size * count)).denominator == 1), None
    )
    if micro is None:
        raise VitrailError(
            f"{folder}: trained with {wanted} images a step, which {world.size} ranks do not divide; start a number of "
            f"ranks that does, or set run.global_batch: follow to go on with run.batch {batch} a rank"
        )
    kept = int(wanted / (world.size * micro))
    if world.main:
        print(
            f"{world.size} ranks: {kept} images a rank and micro-batch instead of {batch}, {micro} micro-batches, so "
            f"that a step keeps its {wanted} images",
            flush=True,
        )
    run = params.run.model_copy(update={"batch": kept})
    engine = params.engine.model_copy(update={"accumulation": micro})
    return params.model_copy(update={"run": run, "engine": engine})


def gather_average(engine: Engine) -> dict[str, Tensor]:
    """The moving average, whole, fp32, on the CPU of rank 0 (empty elsewhere), one parameter at a time."""
    shapes = engine.shapes()
    whole = {}
    for name, shard in engine.ema.state().items():
        full = gather_shards(shard)
        if engine.world.main:
            whole[name] = full[: shapes[name].numel()].view(shapes[name]).cpu().clone()
    return whole


@dataclass(frozen=True)
class Origin:
    """Where exported weights come from, as the model card records it."""

    kind: Literal["pretrain", "continue", "distill"]
    fingerprint: str  # of parameters and data
    data_digest: str  # of the manifest and its shards
    step: int  # trained
    teacher: str | None = None  # preset of the distilled teacher
    model_id: str | None = None  # MLflow's LoggedModel
    init: StartedFrom | None = None  # None: random weights


def export_average(
    out: Path, engine: Engine, params: TrainingParams, origin: Origin, curves: Curves, storage: StorageParams
) -> None:
    """Write the averaged network and ``curve.json`` to ``out``, and to the store (rank 0; the others help gather)."""
    whole = gather_average(engine)
    if not engine.world.main:
        return
    card = ModelCard(
        kind=origin.kind,
        preset=out.name,
        vit=params.vit,
        mean=params.augment.mean,
        std=params.augment.std,
        image_size=params.augment.global_size,
        dino_head=params.heads.dino,
        ibot_head=params.heads.ibot,
        step=origin.step,
        params_fingerprint=origin.fingerprint,
        data_digest=origin.data_digest,
        commit=commit(),
        init=origin.init,
        teacher=origin.teacher,
        model_id=origin.model_id,
    )
    backbone = {k.removeprefix("backbone."): v for k, v in whole.items() if k.startswith("backbone.")}
    heads = {k: v for k, v in whole.items() if not k.startswith("backbone.")}
    export_model(out, backbone, card, heads, {"curve.json": vars(curves)})
    publish(storage, out, (CARD, BACKBONE, HEADS), origin.kind, out.name, origin.fingerprint[:16])


def summary(
    params: TrainingParams, world: World, curves: Curves, earlier: Sequence[TrainingParams] = ()
) -> dict[str, Any]:
    """The figures of ``reports/*.json``, over the phases ``earlier`` and the last."""
    last: Mapping[str, float] = curves.points[-1] if curves.points else {}
    steps = [p.run.iterations for p in (*earlier, params)]
    terms = ("loss", "dino_global", "dino_local", "contrastive", "ibot", "koleo", "prototype_usage", "feature_std")
    return {
        "iterations": sum(steps),
        "images_seen": curves.images,
        "minutes": round(curves.seconds / 60, 2),
        "images_per_second": round(curves.images / max(curves.seconds, 1e-9), 1),
        "skipped_steps": curves.skipped,
        **({"continued": curves.changes} if curves.changes else {}),
        "final": {name: round(last[name], 4) for name in terms if name in last},
        "probe": {k: round(v, 4) for k, v in curves.probes[-1].items() if k != "step"} if curves.probes else {},
        "ranks": world.size,
        "cores": os.cpu_count(),
    }
