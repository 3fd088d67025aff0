"""prefect.yaml: every entrypoint imports, the names are the documented ones, and the preset's params load."""

from __future__ import annotations

import importlib
import inspect
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.settings import load_pipeline, load_platform

ROOT = Path(__file__).resolve().parents[2]
CONTENT = yaml.safe_load((ROOT / "prefect.yaml").read_text())
DEPLOYMENTS: list[dict[str, Any]] = CONTENT["deployments"]
DOCUMENTED = {
    "curate/default",
    "curate/again",
    "dedup/default",
    "benchmark/default",
    "pipeline/demo",
    "distill/vitxt",
    *(f"release/{action}" for action in ("import", "embed", "export", "promote")),
    *(f"pretrain/{preset}" for preset in ("vitt", "vits", "vitb", "vitl", "vitg")),
    *(f"benchmark/{preset}" for preset in ("vitt", "vits", "vitb", "vitl", "vitg", "vitxt")),
    *(f"continue/{preset}" for preset in ("vitt", "vits", "vitb", "vitl")),
}


def flow_of(deployment: dict[str, Any]) -> Any:
    file, _, name = deployment["entrypoint"].partition(":")
    return getattr(importlib.import_module(file.removesuffix(".py").replace("/", ".")), name)


def full_name(deployment: dict[str, Any]) -> str:
    return f"{flow_of(deployment).name}/{deployment['name']}"


def test_the_deployments_are_the_documented_ones() -> None:
    assert {full_name(deployment) for deployment in DEPLOYMENTS} >= DOCUMENTED
    assert len({full_name(deployment) for deployment in DEPLOYMENTS}) == len(DEPLOYMENTS)


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=full_name)
def test_a_deployment_gives_its_flow_what_it_takes(deployment: dict[str, Any]) -> None:
    flow = flow_of(deployment)
    signature = inspect.signature(flow.fn)
    # The user of a release flow names models and images; every other flow runs with what its deployment says.
    (signature.bind_partial if flow.name == "release" else signature.bind)(**deployment.get("parameters", {}))
    assert deployment["work_pool"]["name"] == load_platform(ROOT).work_pool
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}


@pytest.mark.parametrize("deployment", [d for d in DEPLOYMENTS if "preset" in d.get("parameters", {})], ids=full_name)
def test_a_deployments_preset_has_a_params_file(deployment: dict[str, Any]) -> None:
    preset, family = deployment["parameters"]["preset"], flow_of(deployment).name
    assert deployment["name"].startswith(preset)
    families = ("pretrain", "distill") if family == "benchmark" else (family,)
    assert any((ROOT / "params" / one / f"{preset}.yaml").is_file() for one in families)


def test_every_listed_preset_has_a_deployment() -> None:
    pipeline = load_pipeline(ROOT)
    names = {full_name(deployment) for deployment in DEPLOYMENTS}
    assert {f"pretrain/{p}" for p in pipeline.pretrain} | {f"distill/{p}" for p in pipeline.distill} <= names
    assert {f"benchmark/{p}" for p in (*pipeline.pretrain, *pipeline.distill)} <= names


def test_only_a_schedule_that_somebody_switched_on_crawls_the_web() -> None:
    from prefect.client.schemas.schedules import CronSchedule

    scheduled = {full_name(d): d["schedules"] for d in DEPLOYMENTS if "schedules" in d}
    assert list(scheduled) == ["curate/again"]
    [schedule] = scheduled["curate/again"]
    assert schedule["active"] is False
    CronSchedule(cron=schedule["cron"], timezone=schedule["timezone"])


def test_the_command_line_finds_the_stack_without_any_variable() -> None:
    with open(ROOT / "prefect.toml", "rb") as file:
        assert tomllib.load(file)["api"]["url"] == load_platform(ROOT).prefect_api


def test_the_pull_step_holds_no_path_of_any_machine() -> None:
    assert CONTENT["pull"] == [
        {"prefect.deployments.steps.set_working_directory": {"directory": "{{ $VITRAIL_ROOT }}"}}
    ]


@pytest.mark.parametrize("cluster", ["slurm", "kubernetes"])
def test_a_clusters_deployments_give_the_flow_what_it_takes(cluster: str) -> None:
    content = yaml.safe_load((ROOT / f"infra/{cluster}/prefect.yaml").read_text())
    assert content["pull"] == CONTENT["pull"]
    for deployment in content["deployments"]:
        given = deployment["parameters"]
        inspect.signature(flow_of(deployment).fn).bind(**given)
        assert (given["cluster"], deployment["work_pool"]["name"]) == (cluster, cluster)
        assert given["preset"] == deployment["name"]
        assert (ROOT / f"params/pretrain/{given['preset']}.yaml").is_file()
        assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
