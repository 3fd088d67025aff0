"""Going on from released weights: the presets, and when which part learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from components.errors import VitrailError
from components.learning.heads import HeadConfig
from components.learning.objective import HeadsParams, build_network
from components.learning.param_groups import param_groups
from components.learning.schedules import InitHeadsParams, ScheduleParams, Schedules
from components.learning.vit import ViTConfig
from components.params import load_params
from components.pretrain import start
from components.training.params import TrainingParams

PRESETS = Path(__file__).resolve().parents[3] / "params/continue"
RELEASED = {"vits": (384, 12, 6), "vitb": (768, 12, 12), "vitl": (1024, 24, 16)}


@pytest.mark.parametrize("path", sorted(PRESETS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_starts_from_a_model_with_new_heads(path: Path) -> None:
    params = load_params(path, TrainingParams)
    assert params.init is not None
    assert params.init_heads is not None
    if path.stem in RELEASED:
        vit = params.vit
        assert (vit.embed_dim, vit.depth, vit.heads) == RELEASED[path.stem]
        assert (vit.patch_size, vit.ffn, vit.image_size) == (14, "mlp", 224)
    shares = Schedules(params.schedule, params.run.iterations, 256, params.init_heads).backbone_shares
    assert shares[params.init_heads.iterations - 1] == 0
    assert shares[-1] == 1
    assert (np.diff(shares) >= 0).all()


def test_the_backbone_joins_by_a_ramp() -> None:
    schedules = Schedules(ScheduleParams(), 12, 8, InitHeadsParams(iterations=4, ramp=4))
    assert [schedules.at(step).backbone_share for step in range(10)] == [0, 0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1]
    assert Schedules(ScheduleParams(), 12, 8).at(0).backbone_share == 1
    at_once = Schedules(ScheduleParams(), 12, 8, InitHeadsParams(iterations=4, ramp=0))
    assert [at_once.at(step).backbone_share for step in (3, 4)] == [0, 1]


def test_frozen_blocks_and_the_backbone_have_groups_of_their_own() -> None:
    vit = ViTConfig(image_size=16, patch_size=8, embed_dim=8, depth=3, heads=2)
    network = build_network(vit, HeadsParams(dino=HeadConfig(prototypes=4, hidden=4, bottleneck=2)), 0)
    groups = param_groups(network, 0.5, 1.0, joins=True, frozen_blocks=2)
    rates = {name: group["lr_multiplier"] for group in groups for name in group["names"]}
    assert rates["backbone.embeddings.pos_embed"] == rates["backbone.blocks.1.attn.qkv.weight"] == 0
    assert rates["backbone.blocks.2.attn.qkv.weight"] == 0.5
    assert rates["backbone.norm.weight"] == rates["dino_head.mlp.0.weight"] == 1
    for group in groups:
        assert {name.startswith("backbone.") for name in group["names"]} == {bool(group.get("is_backbone"))}
    plain = param_groups(network, 0.5, 1.0)
    assert not any("is_backbone" in group for group in plain)
    assert sum(len(group["names"]) for group in plain) == sum(len(group["names"]) for group in groups)


def test_a_run_from_an_alias_means_one_version_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    params = load_params(PRESETS / "vitt.yaml", TrainingParams, ["init=models:/vits@champion"])
    monkeypatch.setattr(start, "pinned", lambda source: str(source).replace("@champion", "/3"))
    assert start.pinned_start(params).init == "models:/vits/3"
    nothing = params.model_copy(update={"init": None})
    assert start.pinned_start(nothing) is nothing


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(VitrailError, match="init_heads: of a run that starts from a model; set init, too"):
        load_params(PRESETS / "vitt.yaml", TrainingParams, ["init=null"])
    with pytest.raises(VitrailError, match="or the backbone never learns"):
        load_params(PRESETS / "vitt.yaml", TrainingParams, ["init_heads.iterations=600"])
    with pytest.raises(VitrailError, match=r"groups\.frozen_blocks 4: must be below vit\.depth 4"):
        load_params(PRESETS / "vitt.yaml", TrainingParams, ["groups.frozen_blocks=4"])
    with pytest.raises(VitrailError, match=r"groups\.frozen_blocks: of a run that starts from a model"):
        load_params(PRESETS / "vitt.yaml", TrainingParams, ["init=null", "init_heads=null", "groups.frozen_blocks=1"])


def test_frozen_blocks_stay_frozen_on_larger_images() -> None:
    larger = '{"size": 96, "iterations": 10, "learning_rate": 0.0001}'
    params = load_params(PRESETS / "vitt.yaml", TrainingParams, ["groups.frozen_blocks=2", f"high_resolution={larger}"])
    first, second = (phase.params for phase in params.phases())
    assert first.init_heads is not None
    assert second.init_heads is None  # they are trained by then
    assert first.groups.frozen_blocks == second.groups.frozen_blocks == 2


def test_positions_go_to_the_new_size_as_the_released_models_do(tmp_path: Path) -> None:
    from components.pretrain.start import starting_network
    from tests.components.release.small_models import official_names, saved, small_vit

    vit = small_vit()
    path = saved(official_names(dict(vit.state_dict())), tmp_path / "w.pth")
    shape = vit.config.model_dump() | {"image_size": 84}
    base = load_params(PRESETS / "vitt.yaml", TrainingParams).model_dump()
    crops = base["augment"] | {"global_size": 84, "local_size": 42}
    params = TrainingParams.model_validate(base | {"vit": shape, "augment": crops, "init": str(path)})
    network = starting_network(params)
    images = torch.randn(1, 3, 84, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(network.backbone.eval()(images).cls, vit(images).cls, atol=1e-5, rtol=0)
    wrong = TrainingParams.model_validate(base | {"vit": shape | {"registers": 4}, "augment": crops, "init": str(path)})
    with pytest.raises(VitrailError, match=r"is another network: vit\.registers is 4, there 0"):
        starting_network(wrong)
