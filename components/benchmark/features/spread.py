"""Features of a set's images over the executor: in parts, each read once for all networks; finished parts are kept."""

from __future__ import annotations

import hashlib
import pickle
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from components.benchmark.features.contenders import Contender, ExtractorRecipe
from components.evaluation.features.extract import Extractor, Rows, batches, extract
from components.evaluation.sets.labelled_set import Benchmark, Divisible, Images
from components.executor import ExecutorParams, map_shards
from components.learning.export import weights_digest
from components.params import fingerprint, results
from components.progress import Progress
from components.release.weights.load import worker_device
from components.storage import atomic_file

PART = 512  # images, in whole batches: each batch is the same wherever it is computed


@dataclass(frozen=True)
class Placement:
    """Where features are computed, where finished parts wait for the others, and where all are kept for other runs."""

    executor: ExecutorParams = field(default_factory=ExecutorParams)
    device: str = "cpu"  # of a worker, which keeps to one GPU of its machine; "auto": what is there where it runs
    work: Path | None = None  # None: all is computed in this process
    kept: Path | None = None  # folder of the feature store; None: nothing is kept

    @property
    def spreads(self) -> bool:
        """Whether other processes do the work."""
        return self.work is not None and (self.executor.kind == "ray" or self.executor.workers > 0)


HERE = Placement()


class Pictured(NamedTuple):
    """Images whose features are wanted."""

    images: Images
    digests: Callable[[], Sequence[str]]  # SHA-256 (hex) of each; called where features are kept
    label: str  # for progress


def pictured(benchmark: Benchmark) -> Pictured:
    """The images of ``benchmark``."""
    return Pictured(benchmark.images, lambda: benchmark.digests, f"{benchmark.name} features")


class ExtractionPart(NamedTuple):
    """The images ``start`` to ``stop``, and the files that their features go to, by the contender's name."""

    number: int
    images: Images
    files: Mapping[str, Path]


@dataclass(frozen=True)
class ExtractionJob:
    """What a worker needs beside its part."""

    makers: Mapping[str, ExtractorRecipe | Extractor]  # by the contender's name
    batch_size: int
    device: str


def features_of(
    contenders: Sequence[Contender], pictured: Pictured, batch_size: int, place: Placement = HERE
) -> dict[str, Rows]:
    """Features [n, D] of all images, by the contender's name: the same wherever they are computed.

    An interrupted run's finished parts are used. Images that cannot travel (a plugin's) are read in this process.
    """
    if not contenders:
        return {}
    images = pictured.images
    if place.work is None or not place.spreads or not isinstance(images, Divisible):
        extractors = {one.name: one.extractor for one in contenders}
        return extract(extractors, images, batch_size, pictured.label)
    rows = max(1, PART // batch_size) * batch_size
    starts = range(0, len(images), rows)
    makers = {one.name: _maker(one) for one in contenders}
    digest = fingerprint(list(pictured.digests()))
    folders = {
        one.name: place.work / _mark(one, makers[one.name], digest, [len(images), batch_size]) for one in contenders
    }
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    files = {name: [folder / f"{n:05d}.npy" for n in range(len(starts))] for name, folder in folders.items()}
    progress = Progress(pictured.label, len(images), unit="images")
    waiting: list[tuple[int, int, dict[str, Path]]] = []
    for number, start in enumerate(starts):
        count = min(rows, len(images) - start)
        lacking = {name: every[number] for name, every in files.items() if not _finished(every[number], count)}
        if lacking:
            waiting.append((number, count, lacking))
        else:
            progress.advance(count)
    parts = (
        ExtractionPart(number, images.part(starts[number], starts[number] + count), lacking)
        for number, count, lacking in waiting
    )
    task = partial(_compute, ExtractionJob(makers, batch_size, place.device))
    for (_, count, _), _ in zip(waiting, map_shards(task, parts, place.executor), strict=True):
        progress.advance(count)
    progress.close()
    found = {name: np.concatenate([np.load(path) for path in every]) for name, every in files.items()}
    for folder in folders.values():
        shutil.rmtree(folder, ignore_errors=True)
    with suppress(OSError):  # parts of an interrupted run may be there
        place.work.rmdir()
    return found


def _compute(job: ExtractionJob, part: ExtractionPart) -> int:
    """Write the features of ``part``; runs in a worker."""
    device = worker_device(job.device, part.number)
    extractors = {}
    for name in part.files:
        maker = job.makers[name]
        extractors[name] = maker.made(device) if isinstance(maker, ExtractorRecipe) else maker
    found: dict[str, list[Rows]] = {name: [] for name in extractors}
    for made in batches(extractors, part.images, job.batch_size):
        for name, rows in made.items():
            found[name].append(rows)
    for name, path in part.files.items():
        with atomic_file(path) as file:
            np.save(file, np.concatenate(found[name]), allow_pickle=False)
    return part.number


def _maker(contender: Contender) -> ExtractorRecipe | Extractor:
    if contender.recipe is None or contender.model is None:
        return contender.extractor
    return replace(contender.recipe, weights=weights_digest(contender.model))


def _mark(contender: Contender, maker: ExtractorRecipe | Extractor, digest: str, counts: list[int]) -> str:
    """Names the folder of parts by all that their features depend on."""
    if isinstance(maker, ExtractorRecipe) and contender.model is not None:
        vit = contender.model.config.model_dump(mode="json")
        about: list[object] = [maker.weights, vit, maker.mean, maker.std, results(maker.features)]
    else:
        about = [hashlib.sha256(pickle.dumps(maker)).hexdigest()]
    return fingerprint(contender.kind, about, [contender.extractor.size, contender.extractor.crop], digest, counts)


def _finished(path: Path, count: int) -> bool:
    try:
        return len(np.load(path, mmap_mode="r", allow_pickle=False)) == count
    except (OSError, ValueError, EOFError):
        return False
