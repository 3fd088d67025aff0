"""What a stage imports to record a run and to check a table: nothing that neither of the two needs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAGE = """
import json, sys
from pathlib import Path
import pyarrow as pa
from components import tracking
from components.quality import validate
from components.quality.rules import Suite, holds

folder = Path(sys.argv[1])
where = {"uri": f"sqlite:///{folder}/mlflow.db", "spool": folder / "spool"}
params = tracking.TrackingParams(experiment="start", **where)
with tracking.run("curate", "curate", params, {}) as recording:
    validate(pa.table({"key": ["a"], "good": [True]}), Suite("table", "key", [holds("good", "all are good")]), folder)
    recording.log_artifacts(folder / "table", "gx")
print(json.dumps(sorted(sys.modules)))
"""
NEEDLESS = ("polars", "fastapi", "botocore", "psycopg2", "snowflake", "altair", "torch", "ray", "faiss")


def test_a_run_with_a_checked_table_imports_no_other_rules_data_sources_and_servers(tmp_path: Path) -> None:
    own = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-c", STAGE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    modules = set(json.loads(done.stdout.splitlines()[-1]))
    assert not modules & set(NEEDLESS)
    inside = "great_expectations.expectations.core.expect_"
    rules = {name for name in modules if name.startswith(inside)}
    assert rules == {inside + "column_values_to_be_in_set"}
    sources = "great_expectations.datasource.fluent."
    found = {name.removeprefix(sources) for name in modules if name.startswith(sources) and "_datasource" in name}
    assert found == {"invalid_datasource", "pandas_datasource"}
