"""Segmentation, depth and matching of all contenders, by the protocol's sections of these names."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from components.benchmark.features.contenders import Contender
from components.benchmark.methods.figure import Figure
from components.benchmark.methods.protocol import Protocol
from components.errors import VitrailError
from components.evaluation.dense.depth import DepthHeadParams, estimate_depth
from components.evaluation.dense.matching import MatchingParams, match
from components.evaluation.dense.propagation import follow
from components.evaluation.dense.segmentation import SegmentationParams, by_picture, miou, pixel_accuracy, segment
from components.evaluation.features.patch_tokens import PatchExtractor
from components.evaluation.sets.dense_set import DenseBenchmark
from components.evaluation.sets.labelled_set import Benchmark
from components.evaluation.sets.video_set import VideoSet
from components.evaluation.statistics.intervals import Interval, resampled

Make = Callable[..., Figure]


def dense_figures(
    contenders: Sequence[Contender], pictures: DenseBenchmark, protocol: Protocol, confidence: float, device: str
) -> list[Figure]:
    """What the protocol measures on masks or depths, and matching on the same held-out pictures.

    Raises:
        VitrailError: a file is not as described, or a network's tokens are not finite.
    """
    params, found = protocol.params, []
    for contender in contenders:
        if contender.patches is None:
            continue
        make = _maker(contender, pictures.name, protocol)
        try:
            if pictures.truth.kind == "segmentation" and params.segmentation is not None:
                found += _segmented(make, contender.patches, pictures, params.segmentation, (confidence, device))
            if pictures.truth.kind == "depth" and params.depth is not None:
                found += _deep(make, contender.patches, pictures, params.depth, (confidence, device))
            if params.matching is not None:
                found += _matched(make, contender.patches, pictures.pictures, params.matching, (confidence, device))
        except VitrailError as fault:
            raise VitrailError(f"{contender.name}: {fault}") from None
    return found


def video_figures(
    contenders: Sequence[Contender], video: VideoSet, protocol: Protocol, confidence: float, device: str
) -> list[Figure]:
    """J, F and their mean over the objects of all videos, where the protocol has a section for it."""
    params, found = protocol.params.propagation, []
    for contender in contenders if params is not None else ():
        if contender.patches is None or params is None:
            continue
        values = np.array(follow(contender.patches, video, params, device), np.float64).reshape(-1, 2)
        if not len(values):
            raise VitrailError(f"{video.name}: no video has an object in the mask of its first frame")
        columns = {"region": values[:, 0], "boundary": values[:, 1], "region_boundary": values.mean(1)}
        intervals = resampled(np.stack(list(columns.values()), 1), params.samples, params.seed, confidence)
        make = _maker(contender, video.name, protocol)
        for (method, column), value in zip(columns.items(), intervals, strict=True):
            found.append(make("propagation", method, value, len(values), paired=_plain(column)))
    return found


def matching_figures(
    contenders: Sequence[Contender], benchmark: Benchmark, protocol: Protocol, confidence: float, device: str
) -> list[Figure]:
    """Matching on the held-out pictures of any benchmark."""
    params, found = protocol.params.matching, []
    for contender in contenders if params is not None else ():
        if contender.patches is not None and params is not None:
            make = _maker(contender, benchmark.name, protocol)
            found += _matched(make, contender.patches, benchmark, params, (confidence, device))
    return found


def not_measured(name: str, section: str, protocol: Protocol) -> str:
    """One line where the protocol has no such section for the set ``name``; else nothing."""
    if getattr(protocol.params, section) is not None:
        return ""
    return (
        f"\n{name}: protocol {protocol.label} has no section `{section}`, so it is not scored; choose a "
        "protocol that has one (dense512, say).\n"
    )


def _maker(contender: Contender, benchmark: str, protocol: Protocol) -> Make:
    def make(task: str, method: str, value: Interval, cases: int, **more: object) -> Figure:
        scale = 1.0 if more.get("unit", "%") != "%" else 100.0
        parts = [None if math.isnan(part) else round(scale * part, 4) for part in value]
        if parts[0] is None:
            raise VitrailError(f"{benchmark}: no held-out picture can be scored by {task}")
        about = contender.name, contender.kind, benchmark, task, method
        return Figure(*about, parts[0], parts[1], parts[2], cases, protocol.label, **more)  # type: ignore[arg-type]

    return make


def _segmented(
    make: Make, extractor: PatchExtractor, pictures: DenseBenchmark, params: SegmentationParams, how: tuple[float, str]
) -> list[Figure]:
    confidence, device = how
    found = []
    for name, counts in segment(extractor, pictures, params, device).items():
        paired, cases = _plain(by_picture(counts)), len(counts.truth)
        value = miou(counts, params.samples, params.seed, confidence)
        found.append(make("segmentation", f"{name}_miou", value, cases, paired=paired))
        right = Interval(pixel_accuracy(counts), math.nan, math.nan)
        found.append(make("segmentation", f"{name}_pixel_accuracy", right, cases))
    return found


def _deep(
    make: Make, extractor: PatchExtractor, pictures: DenseBenchmark, params: DepthHeadParams, how: tuple[float, str]
) -> list[Figure]:
    confidence, device = how
    found = []
    for name, values in estimate_depth(extractor, pictures, params, device).items():
        known = values[~np.isnan(values).any(1)]
        intervals = resampled(known, params.samples, params.seed, confidence)
        facts = {"rmse": ("m", True), "absrel": ("", True), "delta1": ("%", False)}
        for column, (part, (unit, lower)) in enumerate(facts.items()):
            more = {"unit": unit, "lower_is_better": lower, "paired": _plain(values[:, column])}
            found.append(make("depth", f"{name}_{part}", intervals[column], len(known), **more))
    return found


def _matched(
    make: Make, extractor: PatchExtractor, benchmark: Benchmark, params: MatchingParams, how: tuple[float, str]
) -> list[Figure]:
    confidence, device = how
    values = match(extractor, benchmark, params, device)
    known = values[~np.isnan(values)]
    if not len(known):
        raise VitrailError(f"{benchmark.name}: matching: all patches leave the view; lower matching.shift or scale")
    (value,) = resampled(known[:, None], params.samples, params.seed, confidence)
    return [make("matching", f"pck{round(100 * params.alpha)}", value, len(known), paired=_plain(values))]


def _plain(values: npt.NDArray[np.float64]) -> tuple[float | None, ...]:
    return tuple(None if value != value else value for value in values.tolist())
