"""Copy detection on a set with queries, references and a truth of its own: micro-AP of every contender."""

from __future__ import annotations

from collections.abc import Sequence

from components.benchmark.features.contenders import Contender
from components.benchmark.features.feature_cache import cached_features
from components.benchmark.features.spread import Pictured
from components.benchmark.measured import Measured, Setup
from components.benchmark.methods.figure import Figure
from components.evaluation.image_level.retrieval import copy_precision, unit
from components.evaluation.sets.copies_set import CopiesSet
from components.evaluation.sets.labelled_set import ImageFiles


def measure_copies(contenders: Sequence[Contender], copies: CopiesSet, setup: Setup) -> Measured:
    """micro-AP of all contenders on a set of queries and references."""
    batch, found, sides = setup.protocol.params.features.batch_size, [], []
    for pictured in (
        Pictured(ImageFiles(copies.queries), copies.query_digests, f"{copies.name} queries"),
        Pictured(ImageFiles(copies.references), copies.reference_digests, f"{copies.name} references"),
    ):
        sides.append(cached_features(contenders, pictured, batch, setup.place))
    for one in contenders:
        ours, theirs = (unit(one.extractor.main(side[one.name]), one.name) for side in sides)
        value = round(100 * copy_precision(ours, theirs, copies.pairs), 3)
        about = one.name, one.kind, copies.name, "copies", "micro_ap"
        found.append(Figure(*about, value, None, None, len(copies.queries), setup.protocol.label))
    return Measured(copies.pictures, list(contenders), [], ranked=found, own_digest=copies.digest)
