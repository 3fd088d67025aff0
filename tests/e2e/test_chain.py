"""The demo's chain at its smallest through ``dvc repro``: every stage, no-ops, what reruns, faults, and all on S3."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from chain_helpers import Chain, edit, repro, run, stage_env
from patience import PATIENCE

from flows.settings import load_pipeline
from flows.stages import stage_names

pytestmark = pytest.mark.e2e

EXPORT = ["model.json", "backbone.safetensors", "heads.safetensors"]


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_every_stage_ran_once_in_order_and_left_what_it_promises(chain: Chain) -> None:
    assert sorted(["inputs", *chain.first.ran]) == sorted(stage_names(load_pipeline(chain.root)))
    for name in (
        "crawl/sources.json",
        "curate/index",
        "curate/shards.json",
        "dedup/manifest",
        "dedup/calibration.json",
        "pretrain/vitt/model.json",
        "pretrain/vitt/backbone.safetensors",
        "distill/vitxt/model.json",
        "distill/vitxt/backbone.safetensors",
        "benchmark/scores.json",
        "benchmark/table.md",
    ):
        assert (chain.root / "data" / name).stat().st_size > 0, name
    assert not list((chain.root / "data").rglob("*.partial"))


def test_images_were_kept_and_dropped_with_reasons_and_held_out_ones_are_not_trained_on(chain: Chain) -> None:
    index = pq.read_table(chain.root / "data/curate/index").to_pandas()
    manifest = pq.read_table(chain.root / "data/dedup/manifest").to_pandas()
    assert 50 < len(manifest) < len(index)
    assert set(manifest["key"]) <= set(index["key"])
    for report in ("curate", "dedup", "pretrain-vitt", "distill-vitxt", "benchmark"):
        assert json.loads((chain.root / f"reports/{report}.json").read_text())


def test_the_state_of_a_run_is_brought_back_with_its_result(chain: Chain, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{chain.root}/mlflow.db")
    [experiment] = [one.experiment_id for one in client.search_experiments() if one.name == "vitrail"]
    [trained] = client.search_runs([experiment], "tags.`vitrail.stage` = 'pretrain'")
    again = tmp_path / "again"
    words = ["reproduce", trained.info.run_id, "--out", str(again), "--run"]
    done = run(chain.root, "components.provenance", *words)
    assert done.code == 0, done.text
    assert "commit " + trained.data.tags["mlflow.source.git.commit"] in done.text
    assert "Running stage 'pretrain@vitt'" not in done.text, "the run cache has its result"
    for name in ("params/pretrain/vitt.yaml", "params/pipeline.yaml", "dvc.yaml", "components/pretrain/stage.py"):
        assert (again / name).read_bytes() == (chain.root / name).read_bytes(), name
    for name in ("data/dedup", "data/pretrain/vitt"):
        assert files_below(again / name) == files_below(chain.root / name), name
    assert not (again / "data/distill").exists()
    refused = run(chain.root, "components.provenance", *words)
    assert refused.errors == [f"error: {again}: is there already; name a new folder"]


def test_a_benchmark_parameter_reruns_only_the_benchmark_and_a_repro_without_a_change_does_nothing(
    chain_copy: Path,
) -> None:
    again = repro(chain_copy)
    assert again.code == 0, again.text
    assert again.ran == []
    edit(chain_copy / "params/protocols/demo.yaml", {"knn.temperature": 0.1})
    again = repro(chain_copy, "--dry")
    assert again.code == 0, again.text
    assert again.ran == ["benchmark"]


def test_an_unknown_key_stops_the_chain_with_one_line_and_mending_it_carries_on(chain_copy: Path) -> None:
    path = chain_copy / "params/crawl.yaml"
    good = path.read_text()
    path.write_text(good + "\nmax_page: 3\n")
    failed = repro(chain_copy)
    assert failed.code != 0
    assert len(failed.errors) == 1
    assert "error: params/crawl.yaml" in failed.errors[0]
    assert "unknown key 'max_page'; did you mean 'max_pages'?" in failed.errors[0]
    assert "Traceback" not in failed.text
    assert failed.ran == ["crawl"]
    path.write_text(good)
    mended = repro(chain_copy, "crawl")
    assert mended.code == 0, mended.text
    assert set(mended.ran) <= {"crawl"}  # its output went with the fault; DVC's run cache may give it back


def test_an_mlflow_server_that_is_away_and_required_is_one_line(chain_copy: Path, free_port: Callable[[], int]) -> None:
    edit(chain_copy / "params/pretrain/vitt.yaml", {"run.iterations": 9})
    url = f"http://127.0.0.1:{free_port()}"
    edit(chain_copy / "params/tracking.yaml", {"required": True})
    failed = repro(chain_copy, "pretrain@vitt", env=stage_env(MLFLOW_TRACKING_URI=url))
    assert failed.code != 0
    assert len(failed.errors) == 1
    assert url in failed.errors[0]
    assert "Traceback" not in failed.text
    assert not (chain_copy / "data/pretrain/vitt/model.json").exists()  # nothing old or half is taken for the new


def test_an_mlflow_server_that_is_away_costs_a_warning_and_no_result(
    chain_copy: Path, free_port: Callable[[], int]
) -> None:
    edit(chain_copy / "params/pretrain/vitt.yaml", {"run.iterations": 9})
    done = repro(chain_copy, "pretrain@vitt", env=stage_env(MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}"))
    assert done.code == 0, done.text[-3000:]
    warnings = [line for line in done.text.splitlines() if line.startswith("warning: ")]
    assert sum("MLflow at" in line for line in warnings) == 2, warnings  # at the start, and where its records wait
    assert (chain_copy / "data/pretrain/vitt/model.json").exists()
    assert list((chain_copy / "scratch/tracking").glob("*/records-*"))


def test_a_disk_that_fills_is_one_line_and_leaves_nothing_half(chain_copy: Path) -> None:
    shutil.rmtree(chain_copy / "data/crawl")
    small = (
        "mount -t tmpfs -o size=600k none data && "
        f"{sys.executable} -m components.crawl run --params params/crawl.yaml --source params/site/demo.yaml "
        "--out data/crawl; code=$?; ls -A data; exit $code"
    )
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0:
        pytest.skip("left out: this machine lets nobody mount a small disk (unshare)")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", small],
        cwd=chain_copy,
        env=stage_env(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )
    assert done.returncode == 1, done.stderr
    faults = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(faults) == 1
    assert "the disk is full" in faults[0]
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == []  # neither a half output nor what it was written to


def test_the_same_chain_on_s3_with_dvcs_remote_there(chain_copy: Path, s3_endpoint: str) -> None:
    import boto3

    edit(chain_copy / "params/storage.yaml", {"root": "s3://vitrail-test/chain", "endpoint_url": s3_endpoint})
    edit(chain_copy / "params/curate.yaml", {"nsfw.enabled": False, "faces.enabled": False})
    edit(chain_copy / "params/pretrain/vitt.yaml", {"run.iterations": 4})
    done = repro(chain_copy, "pretrain@vitt")
    assert done.code == 0, done.text[-5000:]
    assert done.ran == ["curate", "dedup", "pretrain@vitt"]
    assert not (chain_copy / "data/curate/shards").exists()
    objects = boto3.client("s3", endpoint_url=s3_endpoint).list_objects_v2(Bucket="vitrail-test", Prefix="chain/")
    names = {re.sub(r"[0-9a-f]{16}", "DIGEST", entry["Key"]) for entry in objects["Contents"]}
    assert any(name.startswith("chain/curate/DIGEST/") and name.endswith(".tar") for name in names)
    exports = [f"pretrain/vitt/DIGEST/{name}" for name in EXPORT]
    assert names >= {f"chain/{name}" for name in ["dedup/DIGEST/manifest/part-00000-of-00001.parquet", *exports]}

    for arguments in (
        ("remote", "add", "--local", "--default", "store", "s3://vitrail-test/dvc"),
        ("remote", "modify", "--local", "store", "endpointurl", s3_endpoint),
        ("push",),
    ):
        pushed = run(chain_copy, "dvc", *arguments)
        assert pushed.code == 0, pushed.text
    before = files_below(chain_copy / "data")
    shutil.rmtree(chain_copy / "data")
    shutil.rmtree(chain_copy / ".dvc/cache")
    pulled = run(chain_copy, "dvc", "pull")
    assert pulled.code == 0, pulled.text
    assert files_below(chain_copy / "data") == before
    assert repro(chain_copy, "pretrain@vitt").ran == []


def test_s3_that_is_away_is_one_line(chain_copy: Path, free_port: Callable[[], int]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    changes = {"root": "s3://vitrail-test/chain", "endpoint_url": url, "max_attempts": 1, "connect_timeout": 2.0}
    edit(chain_copy / "params/storage.yaml", changes)
    edit(chain_copy / "params/curate.yaml", {"nsfw.enabled": False, "faces.enabled": False})
    keys = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    failed = repro(chain_copy, env=stage_env(**keys))
    assert failed.code != 0
    assert len(failed.errors) == 1, failed.text[-3000:]
    assert url in failed.errors[0]
    assert "Traceback" not in failed.text
    assert failed.ran == ["curate"]


def test_a_taken_port_is_one_line_through_make_platforms_command(
    chain_copy: Path, free_port: Callable[[], int]
) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        edit(chain_copy / "params/platform.yaml", {"prefect_port": free_port(), "mlflow_port": port})
        failed = run(chain_copy, "infra.local.stack", "up")
    assert failed.code == 1
    assert failed.errors == failed.text.splitlines()
    assert f"127.0.0.1:{port} is taken" in failed.errors[0]
    assert "mlflow_port" in failed.errors[0]
    assert not (chain_copy / ".platform").exists()  # nothing was started
