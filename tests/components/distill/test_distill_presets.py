"""The presets of distillation: they load, hold the recipe's values, and fit the teacher they are made for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from components.distill.method import DistillParams, check_teacher
from components.errors import VitrailError
from components.learning.export import ModelCard
from components.learning.schedules import Schedules
from components.params import load_params
from components.training.costs.capability import count_parameters, memory_per_rank
from components.training.params import TrainingParams

PARAMS = Path(__file__).resolve().parents[3] / "params"

# arXiv 2304.07193, table 16's column of distilled models, and what it shares with the long recipe
RECIPE: dict[str, Any] = {
    "vit": {"patch_size": 14, "ffn": "mlp", "drop_path": 0.0, "image_size": 224, "layerscale_init": 1e-5},
    "augment": {"global_size": 224, "local_size": 98, "locals": 8, "blur": (0.0, 0.9, 0.5)},
    "objective": {"centering": "sinkhorn", "dino_weight": 1.0, "ibot_weight": 1.0, "koleo_weight": 0.1},
    "groups": {"layer_decay": 1.0, "patch_embed_multiplier": 0.2},
    "engine": {"precision": "fp16", "clip": 3.0, "accumulation": 1},
    "run": {"iterations": 625_000, "batch": 32},
}  # fmt: skip


def preset(name: str) -> DistillParams:
    return load_params(PARAMS / "distill" / f"{name}.yaml", DistillParams)


def card(name: str) -> ModelCard:
    """As the export of ``params/pretrain/NAME.yaml`` would have it."""
    params = load_params(PARAMS / "pretrain" / f"{name}.yaml", TrainingParams)
    return ModelCard(
        kind="pretrain", preset=name, vit=params.vit, mean=params.augment.mean, std=params.augment.std,
        image_size=params.augment.global_size, dino_head=params.heads.dino, ibot_head=params.heads.ibot,
        step=params.run.iterations, params_fingerprint="", data_digest="",
    )  # fmt: skip


@pytest.mark.parametrize("path", sorted((PARAMS / "distill").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_preset_loads_and_fits_its_teacher(path: Path) -> None:
    params = preset(path.stem)
    teacher = card("vitt" if path.stem == "vitxt" else "vitg")
    check_teacher(params, teacher, Path("teacher"))
    assert params.vit.embed_dim < teacher.vit.embed_dim
    last = Schedules(params.schedule, params.run.iterations, 2048).at(params.run.iterations - 1)
    assert last.teacher_temperature == pytest.approx(0.04 if path.stem == "vitxt" else 0.07)


@pytest.mark.parametrize(("name", "dim", "millions"), [("vits", 384, 22), ("vitb", 768, 86), ("vitl", 1024, 303)])
def test_values_of_the_recipe(name: str, dim: int, millions: int) -> None:
    params = preset(name)
    for section, values in RECIPE.items():
        found = getattr(params, section)
        assert {key: getattr(found, key) for key in values} == values, section
    assert params.vit.embed_dim == dim
    assert count_parameters(params)["backbone"] / 1e6 == pytest.approx(millions, abs=1)
    assert params.patches == "all"
    assert (params.heads.dino.prototypes, params.heads.ibot and params.heads.ibot.prototypes) == (131_072, 131_072)
    schedules = Schedules(params.schedule, 625_000, 64 * params.run.batch)
    assert schedules.learning_rate.max() == pytest.approx(1e-3, rel=5e-3)
    assert schedules.learning_rate.argmax() + 1 == 100_000
    first, last = schedules.at(0), schedules.at(624_999)
    assert (first.weight_decay, first.momentum) == pytest.approx((0.04, 0.994))
    assert (last.weight_decay, last.momentum) == pytest.approx((0.2, 1.0), abs=1e-4)


def test_sizes_differ_in_nothing_but_size() -> None:
    def rest(name: str) -> dict[str, Any]:
        content = preset(name).model_dump()
        for key in ("embed_dim", "depth", "heads"):
            del content["vit"][key]
        return content

    assert rest("vits") == rest("vitb") == rest("vitl")


def test_they_fit_64_gpus_beside_the_teacher() -> None:
    teacher = sum(count_parameters(load_params(PARAMS / "pretrain/vitg.yaml", TrainingParams)).values())
    for name in ("vits", "vitb", "vitl"):
        need = sum(memory_per_rank(preset(name), 64, sixteen_bit=True, teacher=teacher).values())
        assert need < 0.95 * 80e9  # of an A100 of 80 GB: all patches have logits in both heads


def test_another_teacher_is_refused() -> None:
    with pytest.raises(VitrailError, match=r"heads\.dino\.prototypes: 131072, the teacher .* has 65536"):
        check_teacher(preset("vits"), card("vitl_short"), Path("teacher"))
