"""Retrieval by class and copy detection on a benchmark's images.

Retrieval: each held-out image is a query, the training images are the database, right are those of its class. Copy
detection: edited copies of held-out images are queries, all held-out images are references. As in DISC21, some queries
have no original among the references: they are edits of training images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from pydantic import Field

from components.benchmark.contenders import Contender
from components.benchmark.own import Pictures
from components.descriptors.edits import edited
from components.descriptors.train_params import EditParams
from components.evaluation.benchmarks import Benchmark
from components.evaluation.features import Rows, extract
from components.evaluation.retrieval import RetrievalParams, figures, micro_ap, retrieve, unit
from components.images.decode import RGB
from components.params import Seed, Strict


class CopyParams(Strict):
    """The edited copies."""

    images: int = Field(100, ge=1, le=1_000_000)  # held-out images that are copied; all where there are fewer
    distractors: int = Field(100, ge=0, le=1_000_000)  # queries without an original
    side: int = Field(128, ge=16, le=2048)  # px of an edited copy
    edits: EditParams = EditParams()
    seed: Seed = 0


@dataclass(frozen=True)
class RankScore:
    """One figure of a ranking in percent; ``low`` and ``high`` are None where there is no interval."""

    model: str
    benchmark: str
    task: str  # a task of the benchmark, or "copies"
    method: str  # "map", "recall1", "micro_ap"
    value: float
    low: float | None
    high: float | None
    queries: int
    protocol: str

    @property
    def metric(self) -> str:
        """The name of the metric in MLflow."""
        return f"{self.benchmark}/{self.task}/{self.method}"

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def retrieval_scores(
    contender: Contender, features: Rows, benchmark: Benchmark, params: RetrievalParams, confidence: float, label: str
) -> list[RankScore]:
    """mAP and R@k of every task; ``features`` are of all images, as the contender's extractor gives them."""
    rows = contender.extractor.main(features)
    train, test = ~benchmark.test, benchmark.test
    found = []
    for task, labels in benchmark.labels.items():
        ranked = retrieve(rows[test], labels[test], rows[train], labels[train])
        for method, value in figures(ranked, params, confidence).items():
            mean, low, high = (round(100 * part, 3) for part in value)
            about = contender.name, benchmark.name, task, method
            found.append(RankScore(*about, mean, low, high, len(ranked.precision), label))
    return found


def copy_scores(
    contenders: Sequence[Contender],
    features: Mapping[str, Rows],
    benchmark: Benchmark,
    params: CopyParams,
    batch_size: int,
    label: str,
) -> list[RankScore]:
    """micro-AP of every contender, all on the same edited copies; ``features`` by the contender's name."""
    pictures, truth = edited_copies(benchmark, params)
    extractors = {contender.name: contender.extractor for contender in contenders}
    queries = extract(extractors, Pictures(pictures), batch_size, f"{benchmark.name} copies")
    found = []
    for contender in contenders:
        ours = unit(contender.extractor.main(queries[contender.name]), "query")
        theirs = unit(contender.extractor.main(features[contender.name][benchmark.test]), "reference")
        value = round(100 * micro_ap(ours @ theirs.T, truth), 3)
        about = contender.name, benchmark.name, "copies", "micro_ap", value, None, None, len(pictures), label
        found.append(RankScore(*about))
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


def ranking_table(found: Sequence[RankScore], confidence: float) -> str:
    """The figures in Markdown, a table a benchmark; nothing where there are none."""
    parts = []
    for benchmark in dict.fromkeys(score.benchmark for score in found):
        ours = [score for score in found if score.benchmark == benchmark]
        cells = list(dict.fromkeys((score.task, score.method) for score in ours))
        heads = ["model", *[f"{task}, {_name(method)}" for task, method in cells]]
        lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
        for model in dict.fromkeys(score.model for score in ours):
            own = {(score.task, score.method): score for score in ours if score.model == model}
            lines.append("| " + " | ".join([model, *[_cell(own[cell]) for cell in cells]]) + " |")
        parts.append(
            f"\n### {benchmark}: retrieval and copy detection\n\nProtocol {ours[0].protocol}. Percent; "
            f"{confidence:.0%} intervals are bootstrapped over queries.\n\n" + "\n".join(lines) + "\n"
        )
    return "\n".join(parts)


def _name(method: str) -> str:
    if method.startswith("recall"):
        return f"R@{method.removeprefix('recall')}"
    return {"map": "mAP", "micro_ap": "micro-AP"}[method]


def _cell(score: RankScore) -> str:
    interval = "" if score.low is None else f" ({score.low:.1f} to {score.high:.1f})"
    return f"{score.value:.1f}{interval}"
