"""Everything that the protocol measures of the contenders on one benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from components.benchmark.features.contenders import Contender
from components.benchmark.features.feature_cache import cached_features
from components.benchmark.features.spread import pictured
from components.benchmark.measured import Measured, Setup
from components.benchmark.methods.dense import dense_figures, matching_figures, video_figures
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.protocol import Protocol
from components.benchmark.methods.ranking import copy_scores, retrieval_scores
from components.benchmark.methods.scoring import check_finite, outcomes, scores
from components.benchmark.methods.spread_dense import dense_task, spread_figures, video_task
from components.benchmark.params import BenchmarkStageParams
from components.benchmark.robust import measure_robust
from components.evaluation.features.extract import Rows, square
from components.evaluation.features.patch_kmeans import fit_patch_kmeans
from components.evaluation.sets.dense_layouts import DenseSetParams, load_dense
from components.evaluation.sets.labelled_set import Benchmark
from components.evaluation.sets.robustness_set import RobustSet
from components.evaluation.sets.video_set import DavisParams, load_davis
from components.progress import track

PATCHES = "patch k-means"
PATCH_IMAGES = 500  # training images that its patches are drawn from


def measure_dense(contenders: Sequence[Contender], name: str, spec: DenseSetParams, setup: Setup) -> Measured:
    """The figures of all contenders on one set of masks or depths."""
    pictures, confidence = load_dense(name, spec), setup.params.intervals.confidence
    if setup.place.spreads:
        found = spread_figures(dense_task(name, spec, setup.protocol, confidence), contenders, setup.place)
    else:
        found = dense_figures(contenders, pictures, setup.protocol, confidence, setup.device)
    return Measured(pictures.pictures, list(contenders), found, pictures)


def measure_videos(contenders: Sequence[Contender], name: str, spec: DavisParams, setup: Setup) -> Measured:
    """The figures of all contenders on one set of videos."""
    video, confidence = load_davis(name, spec), setup.params.intervals.confidence
    if setup.place.spreads:
        found = spread_figures(video_task(name, spec, setup.protocol, confidence), contenders, setup.place)
    else:
        found = video_figures(contenders, video, setup.protocol, confidence, setup.device)
    return Measured(video.pictures, list(contenders), found, own_digest=video.digest)


def measure(
    contenders: Sequence[Contender], benchmark: Benchmark, robust: Sequence[RobustSet], setup: Setup
) -> list[Measured]:
    """The scores of all contenders on one benchmark, and on the sets that test its classifiers."""
    params, protocol, device = setup.params, setup.protocol, setup.device
    contenders = _with_patches(contenders, benchmark, params, protocol)
    features = cached_features(contenders, pictured(benchmark), protocol.params.features.batch_size, setup.place)
    check_finite(features)
    confidence = params.intervals.confidence
    both = {
        contender.name: outcomes(contender, features[contender.name], benchmark, protocol, confidence, device)
        for contender in track(contenders, f"{benchmark.name} kNN and probes", len(contenders), unit="models")
    }
    right = {name: found for name, (found, _) in both.items()}
    few = [figure for _, found in both.values() for figure in found]
    found = scores(contenders, right, benchmark, params.intervals, protocol.label)
    ranked = _ranked(contenders, features, benchmark, protocol, confidence)
    dense = matching_figures(contenders, benchmark, protocol, confidence, device)
    measured = Measured(benchmark, contenders, dense, None, found, few, right, ranked)
    return [measured, *[measure_robust(measured, features, one, setup) for one in robust]]


def _ranked(
    contenders: Sequence[Contender],
    features: Mapping[str, Rows],
    benchmark: Benchmark,
    protocol: Protocol,
    confidence: float,
) -> list[Figure]:
    """Retrieval and copy detection, where the protocol has them."""
    wanted, found = protocol.params, []
    if wanted.retrieval is not None:
        for one in contenders:
            rows = features[one.name]
            found += retrieval_scores(one, rows, benchmark, wanted.retrieval, confidence, protocol.label)
    if wanted.copies is not None:
        batch = wanted.features.batch_size
        found += copy_scores(contenders, features, benchmark, wanted.copies, batch, protocol.label)
    return found


def _with_patches(
    contenders: Sequence[Contender], benchmark: Benchmark, params: BenchmarkStageParams, protocol: Protocol
) -> list[Contender]:
    """``contenders`` with the baseline that is fitted on this benchmark's training images, if it is wanted."""
    wanted = params.patch_kmeans
    if wanted is None:
        return list(contenders)
    rows = np.random.default_rng(wanted.seed).permutation(np.flatnonzero(~benchmark.test))[:PATCH_IMAGES]
    crop = protocol.params.features.crop
    squares = np.stack([square(benchmark.images.rgb(row), wanted.side, crop) for row in np.sort(rows).tolist()])
    extractor = fit_patch_kmeans(squares, wanted, crop)
    facts = {"features": PATCHES, "fitted_on": benchmark.name} | wanted.model_dump()
    patches = Contender(PATCHES, "patches", extractor, facts)
    known = [replace(one, baselines=(*one.baselines, PATCHES)) if one.baselines else one for one in contenders]
    return [known[0], patches, *known[1:]]
