"""Features of a set's images, computed where they are not kept: those of networks go through the feature store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from components.benchmark.features.contenders import Contender
from components.benchmark.features.spread import HERE, Pictured, Placement, features_of
from components.evaluation.features.extract import FeatureParams, Rows
from components.evaluation.features.store import CLS, PATCHES, FeatureStore, Preprocessing, store_of


@dataclass(frozen=True)
class _Kept:
    """Where a contender's features are kept, and as what: name and columns of each part."""

    store: FeatureStore
    parts: dict[str, slice]


def cached_features(
    contenders: Sequence[Contender], pictured: Pictured, batch_size: int, place: Placement = HERE
) -> dict[str, Rows]:
    """Features [n, D] of all images by the contender's name; those of networks are read if all are kept.

    Without ``place.kept`` nothing is kept.
    """
    kept: dict[str, _Kept] = {}
    found: dict[str, Rows] = {}
    digests: Sequence[str] = []
    if place.kept is not None:
        digests = pictured.digests()
        kept = {one.name: where for one in contenders if (where := _kept(one, place.kept)) is not None}
    for name, where in kept.items():
        rows, there = where.store.read(digests, list(where.parts))
        if there.all():
            found[name] = rows
    missing = [one for one in contenders if one.name not in found]
    made = features_of(missing, pictured, batch_size, place)
    for name, rows in made.items():
        if name in kept:
            kept[name].store.keep(digests, {part: rows[:, at] for part, at in kept[name].parts.items()})
    return {one.name: found[one.name] if one.name in found else made[one.name] for one in contenders}


def _kept(contender: Contender, folder: Path) -> _Kept | None:
    """None of what is no network: its features cost little, or depend on more than the image."""
    recipe, model, extractor = contender.recipe, contender.model, contender.extractor
    if recipe is None or model is None:
        return None
    seen = Preprocessing(recipe.mean, recipe.std, extractor.size, extractor.crop)
    return _Kept(store_of(folder, model, seen), parts_of(recipe.features, model.config.embed_dim, len(model.blocks)))


def parts_of(features: FeatureParams, width: int, depth: int) -> dict[str, slice]:
    """Columns of a network's features by what they are called in the store.

    ``cls``, ``patches`` and ``cls-2`` (of the second block from the end) are tokens as they are. The halves of
    ``cls+patches`` have unit length each, so they are kept under that name.
    """
    if features.blocks is None:
        return {features.tokens: slice(None)}
    blocks = min(features.blocks, depth)
    names = [f"{CLS}-{number}" for number in range(blocks, 1, -1)] + [CLS, PATCHES]
    return {name: slice(number * width, (number + 1) * width) for number, name in enumerate(names)}
