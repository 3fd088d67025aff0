"""Retrieval by class and copy detection on a benchmark's images.

Retrieval: each held-out image is a query, the training images are the database, right are those of its class. Copy
detection: edited copies of held-out images are queries, all held-out images are references. As in DISC21, some queries
have no original among the references: they are edits of training images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from components.benchmark.features.contenders import Contender
from components.benchmark.features.own import InMemoryImages
from components.benchmark.methods.figure import Figure, figure_table
from components.descriptors.edits import edited
from components.descriptors.train_params import EditParams
from components.evaluation.features.extract import Rows, extract
from components.evaluation.features.labelled_features import LabelledFeatures
from components.evaluation.image_level.retrieval import RankingParams, figures, micro_ap, retrieve, unit
from components.evaluation.sets.benchmarks import Benchmark
from components.images.decode import RGB
from components.params import Seed, Strict


class CopyParams(Strict):
    """The edited copies."""

    images: int = Field(100, ge=1, le=1_000_000)  # held-out images that are copied; all where there are fewer
    distractors: int = Field(100, ge=0, le=1_000_000)  # queries without an original
    side: int = Field(128, ge=16, le=2048)  # px of an edited copy
    edits: EditParams = EditParams()
    seed: Seed = 0


def retrieval_scores(
    contender: Contender, features: Rows, benchmark: Benchmark, params: RankingParams, confidence: float, label: str
) -> list[Figure]:
    """mAP and R@k of every task; ``features`` are of all images, as the contender's extractor gives them."""
    rows = contender.extractor.main(features)
    train, test = ~benchmark.test, benchmark.test
    found = []
    for task, labels in benchmark.labels.items():
        both = LabelledFeatures(rows, labels)
        ranked = retrieve(both[test], both[train])
        for method, value in figures(ranked, params, confidence).items():
            mean, low, high = (round(100 * part, 3) for part in value)
            about = contender.name, contender.kind, benchmark.name, task, method
            values = ranked.precision if method == "map" else ranked.rank <= int(method.removeprefix("recall"))
            paired = tuple(np.asarray(values, float).tolist())
            found.append(Figure(*about, mean, low, high, len(ranked.precision), label, paired=paired))
    return found


def copy_scores(
    contenders: Sequence[Contender],
    features: Mapping[str, Rows],
    benchmark: Benchmark,
    params: CopyParams,
    batch_size: int,
    label: str,
) -> list[Figure]:
    """micro-AP of every contender, all on the same edited copies; ``features`` by the contender's name."""
    pictures, truth = edited_copies(benchmark, params)
    extractors = {contender.name: contender.extractor for contender in contenders}
    queries = extract(extractors, InMemoryImages(pictures), batch_size, f"{benchmark.name} copies")
    found = []
    for contender in contenders:
        ours = unit(contender.extractor.main(queries[contender.name]), "query")
        theirs = unit(contender.extractor.main(features[contender.name][benchmark.test]), "reference")
        value = round(100 * micro_ap(ours @ theirs.T, truth), 3)
        about = contender.name, contender.kind, benchmark.name, "copies", "micro_ap"
        found.append(Figure(*about, value, None, None, len(pictures), label))
    return found


def edited_copies(benchmark: Benchmark, params: CopyParams) -> tuple[list[RGB], list[tuple[int, int]]]:
    """The queries, and the pairs (query, held-out image) that are copies; both depend on the seed alone."""
    generator = np.random.default_rng([params.seed, 0xC0B1E5])
    held_out, others = np.flatnonzero(benchmark.test), np.flatnonzero(~benchmark.test)
    originals = generator.permutation(len(held_out))[: params.images]
    strangers = generator.permutation(others)[: params.distractors]
    rows = [*held_out[originals].tolist(), *strangers.tolist()]
    pictures = [edited(benchmark.images.rgb(row), params.side, params.edits, generator) for row in rows]
    return pictures, [(number, int(original)) for number, original in enumerate(originals)]


def ranking_table(found: Sequence[Figure], confidence: float) -> str:
    """The figures in Markdown, a table a benchmark; nothing where there are none."""
    return figure_table(found, "retrieval and copy detection", f"{confidence:.0%} intervals: bootstrap over queries")
