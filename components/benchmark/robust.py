"""What the classifiers of a benchmark, fitted on its training side, keep on sets that test their robustness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from components.benchmark.features.contenders import Contender
from components.benchmark.features.feature_cache import cached_features
from components.benchmark.features.spread import pictured
from components.benchmark.measured import Measured, Setup
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.outcome import Outcome
from components.benchmark.methods.protocol import Protocol
from components.benchmark.methods.scoring import scores
from components.evaluation.features.extract import Rows
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.robustness import among, among_linear
from components.evaluation.sets.labelled_set import Benchmark
from components.evaluation.sets.robustness_set import RobustSet
from components.evaluation.statistics.corruptions import corruption_error, mean_corruption_error

Outcomes = Mapping[str, Mapping[tuple[str, str], Outcome]]


def measure_robust(measured: Measured, features: Mapping[str, Rows], robust: RobustSet, setup: Setup) -> Measured:
    """The scores of ``measured``'s contenders on ``robust``; the probe's strength is the one that was chosen there.

    Args:
        features: [n, D] of all images of the benchmark, by the contender's name.
    """
    params, protocol = setup.params, setup.protocol
    batch, images = protocol.params.features.batch_size, pictured(robust.pictures)
    theirs = cached_features(measured.contenders, images, batch, setup.place)
    right: dict[str, dict[tuple[str, str], Outcome]] = {}
    for one in measured.contenders:
        every = LabelledFeatures(one.extractor.main(features[one.name]), measured.benchmark.labels[robust.task])
        ours = every[~measured.benchmark.test]
        cost = measured.right[one.name][robust.task, "linear"].cost
        right[one.name] = _outcomes(ours, one.extractor.main(theirs[one.name]), robust, (protocol, cost))
    found = scores(measured.contenders, right, robust.pictures, params.intervals, protocol.label)
    errors = [] if robust.corruptions is None else _errors(measured.contenders, right, robust, protocol.label)
    return Measured(robust.pictures, measured.contenders, [], None, found, [], right, errors)


def commonest(benchmark: Benchmark, robust: RobustSet) -> dict[str, float]:
    """Percent of the set's images that the commonest training class of its classes gets right."""
    labels = benchmark.labels[robust.task][~benchmark.test]
    known = labels[np.isin(labels, robust.allowed)]
    first = np.bincount(known).argmax() if len(known) else -1
    return {robust.task: 100 * float((robust.pictures.labels[robust.task] == first).mean())}


def _outcomes(
    train: LabelledFeatures, test: Rows, robust: RobustSet, how: tuple[Protocol, float | None]
) -> dict[tuple[str, str], Outcome]:
    protocol, cost = how
    knn, linear, task = protocol.params.knn, protocol.params.linear, robust.task
    truth = robust.pictures.labels[task]
    voted = among(train, test, robust.allowed, knn.shown, knn.temperature)
    strength = linear.costs[0] if cost is None else cost
    probed = among_linear(train, test, robust.allowed, strength, linear.max_iterations)
    return {(task, f"knn{knn.shown}"): Outcome(voted == truth), (task, "linear"): Outcome(probed == truth, strength)}


def _errors(contenders: Sequence[Contender], right: Outcomes, robust: RobustSet, label: str) -> list[Figure]:
    """The error of each corruption, their mean, and mCE where it is asked for; in percent."""
    found = []
    assert robust.corruptions is not None
    for one in contenders:
        for (_, method), outcome in right[one.name].items():
            errors = corruption_error(outcome.right, robust.corruptions)
            means = {"mean": float(np.mean(list(errors.values())))}
            if robust.mce:
                means["mce"] = mean_corruption_error(errors)
            errors = means | errors
            for corruption, error in errors.items():
                about = one.name, one.kind, robust.pictures.name, "corruptions", f"{method}_{corruption}"
                value = round(100 * error, 3)
                found.append(Figure(*about, value, None, None, len(outcome.right), label, lower_is_better=True))
    return found
