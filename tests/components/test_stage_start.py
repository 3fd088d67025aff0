"""What a curate run without models loads, makes and starts: nothing that it does not need, and nothing twice."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from components.images.decode import encode_jpeg
from components.storage import StorageParams
from components.web.sources.sources_json import register

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import json, sys
from pathlib import Path

started = []
sys.addaudithook(lambda event, args: started.append(str(args[1])) if event == "subprocess.Popen" else None)
from components.quality.project import import_with
import_with([])
import great_expectations as gx
from great_expectations.data_context.data_context.abstract_data_context import AbstractDataContext

counts = {"contexts": 0, "docs": 0}

def counted(owner, method, name):
    plain = getattr(owner, method)
    def call(*args, **kwargs):
        counts[name] += 1
        return plain(*args, **kwargs)
    setattr(owner, method, call)

counted(gx, "get_context", "contexts")
counted(AbstractDataContext, "_build_data_docs", "docs")
from components.context import StageContext
from components.curate import stage
from components.curate.params import CurateParams
from components.params import load_params
from components.storage import StorageParams
from components.tracking import TrackingParams

folder = Path(sys.argv[1])
off = ["nsfw.enabled=false", "faces.enabled=false", "executor.workers=0", "least_kept=0"]
params = load_params(Path("params/curate.yaml"), CurateParams, off)
where = {"uri": f"sqlite:///{folder}/mlflow.db", "spool": folder / "spool"}
tracking = TrackingParams(experiment="start", **where)
context = StageContext(StorageParams(root="data"), tracking, folder / "report.json")
stage.run(params, stage.CurateInputs(folder / "crawl"), folder / "out", context)
executed = [name for name, module in sys.modules.items() if type(module).__name__ != "_LazyModule"]
print(json.dumps({**counts, "started": started, "modules": executed}))
"""
NEEDLESS = (
    "polars", "fastapi", "botocore", "psycopg2", "snowflake", "altair", "torch", "ray", "scipy.stats", "scipy.sparse",
    "sklearn", "matplotlib", "transformers", "onnxruntime", "deepspeed", "prefect", "scrapy", "jsonschema",
)  # fmt: skip
RULES = "great_expectations.expectations.core.expect_"
SOURCES = "great_expectations.datasource.fluent."


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """Of a run over three images, in a process of its own."""
    folder = tmp_path_factory.mktemp("start")
    (folder / "in").mkdir()
    (folder / "crawl").mkdir()
    generator = np.random.default_rng(0)
    for number in range(3):
        small = generator.integers(0, 256, (8, 8, 3), np.uint8)
        (folder / f"in/{number}.jpg").write_bytes(encode_jpeg(np.repeat(np.repeat(small, 16, 0), 16, 1), 80))
    register(str(folder / "in"), StorageParams(root="data")).save(folder / "crawl")
    own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", STAGE, str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    for table in ("index", "images"):
        assert (folder / f"gx/curate/{table}/index.html").is_file()
    return dict(json.loads(done.stdout.splitlines()[-1]))


def test_a_stage_makes_one_context_of_great_expectations_and_builds_data_docs_once(found: dict[str, int]) -> None:
    assert (found["contexts"], found["docs"]) == (1, 1)


def test_a_stage_starts_git_one_sandbox_and_nothing_else_of_weight(found: dict[str, list[str]]) -> None:
    programs = [Path(ast.literal_eval(command)[0]).name for command in found["started"]]
    assert {*programs} <= {"git", "uname", Path(sys.executable).name}, found["started"]
    assert programs.count(Path(sys.executable).name) <= 1, found["started"]  # the sandbox that decodes
    assert programs.count("git") <= 6, found["started"]


def test_a_stage_imports_no_other_rules_data_sources_and_servers(found: dict[str, list[str]]) -> None:
    modules = set(found["modules"])
    assert sorted(modules & set(NEEDLESS)) == []
    rules = {name.removeprefix(RULES) for name in modules if name.startswith(RULES)}
    assert rules == {
        "column_values_to_be_between", "column_values_to_be_in_set", "column_values_to_be_unique",
        "column_values_to_match_regex", "table_columns_to_match_set", "table_row_count_to_be_between",
    }  # fmt: skip
    sources = {name.removeprefix(SOURCES) for name in modules if name.startswith(SOURCES) and "_datasource" in name}
    assert sources == {"invalid_datasource", "pandas_datasource"}
