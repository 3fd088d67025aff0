"""Checkpoints on revisited Oxford or Paris, from the official ground truth and a folder of its pictures.

python -m components.benchmark revisited --gnd gnd_roxford5k.pkl --images /data/oxford5k/jpg --checkpoints data/pretrain
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from hashlib import sha256
from pathlib import Path

import numpy as np

from components.benchmark.features.contenders import Contender
from components.benchmark.features.feature_cache import cached_features
from components.benchmark.features.spread import HERE, Pictured, Placement
from components.benchmark.measured import Measured
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.protocol import Protocol
from components.errors import VitrailError
from components.evaluation.image_level.retrieval import unit
from components.evaluation.image_level.revisited import LEVELS, RANKS, DifficultyScores, score
from components.evaluation.sets.benchmarks import RevisitedParams, load_benchmark
from components.evaluation.sets.labelled_set import named_picture
from components.evaluation.sets.revisited_set import GroundTruth, load_ground_truth
from components.images.decode import RGB, DecodeError, DecodeLimits, decode
from components.params import fingerprint

Box = tuple[float, float, float, float]


class NamedPictures:
    """Pictures of a folder by name, as ``evaluation``'s ``Images``; queries are cut to boxes."""

    def __init__(
        self,
        folder: Path,
        names: Sequence[str],
        boxes: Sequence[Box | None] | None = None,
    ) -> None:
        self._paths = [named_picture(folder, name) for name in names]
        self._boxes = boxes if boxes is not None else [None] * len(names)

    def __len__(self) -> int:
        return len(self._paths)

    def bytes(self, row: int) -> bytes:
        """The file of picture ``row``."""
        return self._paths[row].read_bytes()

    def rgb(self, row: int) -> RGB:
        """Picture ``row``, uint8 [H, W, 3].

        Raises:
            VitrailError: it cannot be decoded, or its box lies outside.
        """
        try:
            picture = decode(self.bytes(row), DecodeLimits())
        except DecodeError as fault:
            raise VitrailError(f"{self._paths[row]}: not a readable image ({fault})") from None
        box = self._boxes[row]
        if box is None:
            return picture
        left, top, right, bottom = (max(0, round(value)) for value in box)
        cut = picture[top:bottom, left:right]
        if not cut.size:
            raise VitrailError(f"{self._paths[row]}: the query's box {box} lies outside of {picture.shape[:2]} px")
        return np.ascontiguousarray(cut)

    def part(self, start: int, stop: int) -> NamedPictures:
        """The pictures ``start`` to ``stop``."""
        found = copy(self)
        found._paths, found._boxes = self._paths[start:stop], self._boxes[start:stop]
        return found

    def digests(self) -> list[str]:
        """SHA-256 (hex) of each picture: of its file, or of file and box. It reads every file."""
        files = [sha256(path.read_bytes()).hexdigest() for path in self._paths]
        return [
            file if box is None else fingerprint([file, list(box)])
            for file, box in zip(files, self._boxes, strict=True)
        ]


def revisited(
    contenders: Sequence[Contender], truth: GroundTruth, folder: Path, batch_size: int, place: Placement = HERE
) -> dict[str, dict[str, DifficultyScores]]:
    """Contender -> level -> figures."""
    sides = {
        "database": NamedPictures(folder, truth.database),
        "queries": NamedPictures(folder, truth.queries, truth.boxes),
    }
    database, queries = (
        cached_features(contenders, Pictured(side, side.digests, label), batch_size, place)
        for label, side in sides.items()
    )
    found = {}
    for contender in contenders:
        main = contender.extractor.main
        ours, theirs = unit(main(queries[contender.name]), "query"), unit(main(database[contender.name]), "database")
        found[contender.name] = score(ours @ theirs.T, truth)
    return found


def measure_revisited(
    contenders: Sequence[Contender], name: str, params: RevisitedParams, protocol: Protocol, place: Placement = HERE
) -> Measured:
    """The figures of all contenders; a level without a query that has something to find is left out."""
    truth = load_ground_truth(Path(params.gnd))
    levels = revisited(contenders, truth, Path(params.images), protocol.params.features.batch_size, place)
    found = []
    for one in contenders:
        for level, figures in levels[one.name].items():
            values = {"map": figures.map} | {f"precision{k}": value for k, value in figures.precision.items()}
            for method, value in values.items():
                about = one.name, one.kind, name, level, method
                if value == value:
                    found.append(Figure(*about, round(100 * value, 3), None, None, figures.queries, protocol.label))
    digest = fingerprint([load_benchmark(name, params).digest, sha256(Path(params.gnd).read_bytes()).hexdigest()])
    return Measured(load_benchmark(name, params), list(contenders), [], ranked=found, own_digest=digest)


def table(found: dict[str, dict[str, DifficultyScores]], label: str) -> str:
    """In Markdown, percent."""
    heads = ["model", *[f"{level}, {what}" for level in LEVELS for what in ("mAP", *[f"mP@{k}" for k in RANKS])]]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for model, levels in found.items():
        values = [v for level in LEVELS for v in (levels[level].map, *[levels[level].precision[k] for k in RANKS])]
        lines.append("| " + " | ".join([model, *["none" if v != v else f"{100 * v:.1f}" for v in values]]) + " |")
    return f"Protocol {label}; revisited retrieval, percent.\n\n" + "\n".join(lines) + "\n"
