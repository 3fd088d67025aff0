"""Who is compared: raw pixels, networks that have seen nothing, and every exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from components.errors import VitrailError
from components.evaluation.features.extract import Extractor, FeatureParams, network, raw_pixels, untrained
from components.evaluation.features.patch_tokens import PatchExtractor, network_patches, raw_patches
from components.learning.export import CARD, ModelCard, weights_digest
from components.learning.vit import VisionTransformer
from components.params import Seed, Strict, fingerprint
from components.release.weights.fetch import pinned
from components.release.weights.load import load_model, weights_digests
from components.tracking.registry import is_registered


class BaselineParams(Strict):
    """What checkpoints are compared with."""

    raw_side: int = Field(32, ge=4, le=8192)  # px
    untrained_seed: Seed = 0


@dataclass(frozen=True)
class ExtractorRecipe:
    """What another process makes a network's extractor from; small, for it travels."""

    source: str  # model by value
    untrained_seed: int | None  # of fresh weights in their place; None: its own
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    trained_at: int  # px
    features: FeatureParams
    weights: str = ""  # their digest, which the other process compares; "": it does not

    def around(self, model: VisionTransformer, device: str) -> Extractor:
        """The extractor of ``model``, which is on ``device``."""
        return network(model, self.mean, self.std, self.trained_at, self.features, device)

    def made(self, device: str) -> Extractor:
        """The extractor of the model that :attr:`source` names, read once a process.

        Raises:
            VitrailError: the model cannot be read, or has other weights by now.
        """
        return self.around(self._read(device), device)

    def patches(self, device: str) -> PatchExtractor:
        """What makes tokens of patches of the same model; raises what :meth:`made` raises."""
        return network_patches(self._read(device), self.mean, self.std, device)

    def _read(self, device: str) -> VisionTransformer:
        model, weights = _model(self.source, self.untrained_seed, device)
        if self.weights not in ("", weights):
            raise VitrailError(f"{self.source}: it changed while it was being measured; run again")
        return model


@lru_cache(maxsize=32)
def _model(source: str, untrained_seed: int | None, device: str) -> tuple[VisionTransformer, str]:
    model = load_model(source, device, with_heads=False).backbone
    if untrained_seed is not None:
        model = untrained(model, untrained_seed).to(device)
    return model, weights_digest(model)


@dataclass(frozen=True)
class Contender:
    """One row of the comparison."""

    name: str  # "raw pixels", "untrained vitt", "pretrain vitt"
    kind: Literal["raw", "patches", "untrained", "checkpoint"]
    extractor: Extractor
    facts: dict[str, Any]  # what identifies it, for MLflow
    model: VisionTransformer | None = None
    card: ModelCard | None = None
    baselines: tuple[str, ...] = field(default=())  # names of the contenders it is compared with
    source: str | None = None  # what names a checkpoint
    patches: PatchExtractor | None = None  # None: it has no tokens of patches, and no dense method
    recipe: ExtractorRecipe | None = None  # of the extractor; None: the extractor travels itself


def find_checkpoints(sources: Sequence[str | Path]) -> list[str | Path]:
    """Every model that ``sources`` name: each a model that :func:`load_model` takes, or a folder of exported ones.

    Raises:
        VitrailError: a folder is missing, or none holds a model.
    """
    found: list[str | Path] = []
    for source in sources:
        folder = Path(source)
        if is_registered(source):
            found.append(pinned(source))
            continue
        if "://" in str(source) or "#sha256=" in str(source) or folder.is_file() or (folder / "config.json").is_file():
            found.append(source)
            continue
        if not folder.is_dir():
            raise VitrailError(f"{folder}: no such folder of checkpoints; run the stage that makes it first")
        inside = [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.name.startswith(".")]
        found += [path for path in [folder, *inside] if (path / CARD).is_file()]
    if not found:
        named = ", ".join(str(source) for source in sources)
        raise VitrailError(f"no {CARD} in {named}: there is no checkpoint to compare; run pretrain or distill first")
    return found


def gather(
    sources: Sequence[str | Path], features: FeatureParams, baselines: BaselineParams, device: str
) -> list[Contender]:
    """All contenders, baselines first; networks of equal shape share one untrained twin."""
    side = baselines.raw_side
    facts: dict[str, Any] = {"features": "raw pixels", "side": side}
    raw = Contender("raw pixels", "raw", raw_pixels(side, features.crop), facts, patches=raw_patches())
    twins: dict[str, Contender] = {}
    checkpoints: list[Contender] = []
    places: dict[str, str | Path] = {}  # name -> where it is
    for path in find_checkpoints(sources):
        loaded = load_model(path, device, with_heads=False)
        model, card = loaded.backbone, loaded.card
        # Depth dropped in training and the table's interpolation at its own size change no untrained weight.
        recipe = ExtractorRecipe(str(path), None, card.mean, card.std, card.image_size, features)
        shape = fingerprint(card.vit.model_copy(update={"drop_path": 0.0}), [card.image_size, card.mean, card.std])
        if shape not in twins:
            fresh = untrained(model, baselines.untrained_seed).to(device)
            of_twin = replace(recipe, untrained_seed=baselines.untrained_seed)
            twins[shape] = Contender(
                f"untrained {card.preset}",
                "untrained",
                of_twin.around(fresh, device),
                {"features": "untrained network", "vit": card.vit.model_dump(), "seed": baselines.untrained_seed},
                fresh,
                patches=network_patches(fresh, card.mean, card.std, device),
                recipe=of_twin,
            )
        name = _name(path, card, {contender.name for contender in checkpoints})
        places[name] = path
        checkpoints.append(
            Contender(
                name,
                "checkpoint",
                recipe.around(model, device),
                card.model_dump(mode="json", exclude={"model_id"}),
                model,
                card,
                (raw.name, twins[shape].name),
                str(path),
                network_patches(model, card.mean, card.std, device),
                recipe,
            )
        )
    return [raw, *twins.values(), *(_beside_its_start(one, places) for one in checkpoints)]


def _beside_its_start(contender: Contender, places: Mapping[str, str | Path]) -> Contender:
    """A checkpoint whose run went on from another contender is compared with that one, too."""
    if contender.card is None or contender.card.init is None:
        return contender
    wanted = contender.card.init.sha256
    others = {name: place for name, place in places.items() if name != contender.name}
    start = next((name for name, place in others.items() if weights_digests(place) == wanted), None)
    return contender if start is None else replace(contender, baselines=(*contender.baselines, start))


def _name(path: str | Path, card: ModelCard, taken: set[str]) -> str:
    name = f"{card.kind} {card.preset}"
    return name if name not in taken else f"{name} ({path})"
