"""The network that a run starts from: random weights, or those of any model that can be named."""

from __future__ import annotations

from collections.abc import Mapping

from components.errors import VitrailError
from components.learning.export import CARD, ModelCard, StartedFrom, load_card
from components.learning.objective import Network, build_network
from components.release.weights.fetch import local_copy, pinned
from components.release.weights.load import load_model, weights_digests
from components.training.checkpoints.resolution import POSITIONS, resized_positions
from components.training.params import TrainingParams


def starting_network(params: TrainingParams) -> Network:
    """Random weights, or the model ``params.init`` in fp32, its position embeddings resampled for ``vit.image_size``.

    With ``params.init_heads`` the heads are new, even where the model brings some.

    Raises:
        VitrailError: the model is missing, damaged or another network, or it has no heads and no new ones are wanted.
    """
    if params.init is None:
        return build_network(params.vit, params.heads, params.run.seed)
    loaded = load_model(params.init, with_heads=params.init_heads is None)
    if params.init_heads is None and loaded.dino_head is None:
        raise VitrailError(
            f"init: {params.init} came without projection heads; set init_heads: {{iterations: N}}, and new ones are "
            "trained for N steps before the backbone joins"
        )
    _check_match(params.init, loaded.card, params)
    network = build_network(params.vit, params.heads, params.run.seed)
    own, side = dict(loaded.backbone.state_dict()), params.vit.image_size // params.vit.patch_size
    name = POSITIONS.removeprefix("backbone.")
    own[name] = resized_positions(own[name], (side, side), loaded.card.vit.interpolation)
    network.backbone.load_state_dict(own)
    if loaded.dino_head is not None and params.init_heads is None:
        network.dino_head.load_state_dict(loaded.dino_head.state_dict())
        if loaded.ibot_head is not None and network.ibot_head is not None:
            network.ibot_head.load_state_dict(loaded.ibot_head.state_dict())
    return network.train()


def pinned_start(params: TrainingParams) -> TrainingParams:
    """``params``; where ``init`` is an alias of the registry, the version that it means now takes its place.

    The alias may move while the run is under way, and the card names the weights that the run began with.

    Raises:
        VitrailError: the registry cannot be reached, or has no such model.
    """
    return params if params.init is None else params.model_copy(update={"init": str(pinned(params.init))})


def started_from(source: str | None) -> StartedFrom | None:
    """What the model card of a run from the model ``source`` says of it; None of a run from random weights.

    Raises:
        VitrailError: there is no such model.
    """
    if source is None:
        return None
    seen = list[str]()
    with local_copy(source) as path:
        weights = weights_digests(path)
        folder = path.parent if path.name == CARD else path
        if (folder / CARD).is_file():
            card = load_card(folder)
            seen = [card.data_digest] if card.data_digest else []
            seen += card.init.data_digests if card.init else ()
    return StartedFrom(source=source, sha256=weights, data_digests=tuple(dict.fromkeys(seen)))


def _check_match(source: str, card: ModelCard, params: TrainingParams) -> None:
    """One line of every difference but those that leave the weights' meaning as it is."""
    free = {"image_size", "drop_path", "interpolation"}
    if (params.vit.layerscale_init is None) == (card.vit.layerscale_init is None):
        free.add("layerscale_init")  # a start value, which the weights have left
    pairs: list[tuple[str, Mapping[str, object] | None, Mapping[str, object] | None]] = [
        ("vit", params.vit.model_dump(exclude=free), card.vit.model_dump(exclude=free)),
    ]
    for name in ("dino", "ibot") if params.init_heads is None else ():  # else they are made by the params
        own, its = getattr(params.heads, name), getattr(card, f"{name}_head")
        pairs.append(
            (
                f"heads.{name}",
                None if own is None else own.model_dump(exclude={"init_std"}),
                None if its is None else its.model_dump(exclude={"init_std"}),
            )
        )
    faults = []
    for where, ours, theirs in pairs:
        if ours is None or theirs is None:
            if ours is not theirs:
                faults.append(
                    f"{where} is {'null' if ours is None else 'given'}, there {'null' if theirs is None else 'given'}"
                )
            continue
        faults += [f"{where}.{key} is {ours[key]}, there {theirs[key]}" for key in ours if ours[key] != theirs[key]]
    if faults:
        heads_alone = all(fault.startswith("heads.") for fault in faults)
        way = "; set init_heads: {iterations: N} for new heads" if heads_alone else ""
        raise VitrailError(f"init: {source} is another network: {'; '.join(faults)}{way}")
