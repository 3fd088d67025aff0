"""Stubs of the commands of clusters, and one Prefect for all flow runs of a session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENCE

# A cluster of files: $STATE/job is the state of job 77, whose output grows by a line whenever somebody looks.
SLURM = {
    "sbatch": """
printf '%s\\n' "$@" > "$STATE/asked"; echo "$PRESET" > "$STATE/preset"
for word in "$@"; do case $word in --output=*) out=${word#--output=};; esac; done
echo "${out/\\%j/77}" > "$STATE/out"; echo PENDING > "$STATE/job"; echo "77;cluster"
""",
    "scontrol": """
[ "$1 $2 $3" = "show job --oneliner" ] || exit 2
[ -e "$STATE/forgotten" ] && { echo "slurm_load_jobs error: Invalid job id specified" >&2; exit 1; }
state=$(head -n 1 "$STATE/job")
[ "$(wc -l < "$STATE/job")" -gt 1 ] && sed -i 1d "$STATE/job"
[ "$state" = RUNNING ] && echo "pretrain: $(date +%N)/9 steps" >> "$(cat "$STATE/out")"
echo "JobId=$4 JobName=x JobState=$state Reason=None ExitCode=1:0 Requeue=1"
""",
    "sacct": 'echo "$(head -n 1 "$STATE/job")|0:0"\n',
    "scancel": 'echo "$1" > "$STATE/cancelled"; echo CANCELLED > "$STATE/job"\n',
}
KUBECTL = """
case "$*" in
  kustomize*) cat "$STATE/manifests";;
  "apply --filename=-") cat > "$STATE/applied"; echo '{"status": {}}' > "$STATE/job";;
  *"get job"*) [ -e "$STATE/job" ] && head -n 1 "$STATE/job"
     [ -e "$STATE/job" ] && [ "$(wc -l < "$STATE/job")" -gt 1 ] && sed -i 1d "$STATE/job"; true;;
  *logs*) cat "$STATE/log" 2>/dev/null || { echo "not found" >&2; exit 1; };;
  *"delete job"*) echo "$*" >> "$STATE/deleted"; rm -f "$STATE/job";;
  *) echo "unknown: $*" >&2; exit 2;;
esac
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with its commands in ``tools``, first on PATH."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, body in {**SLURM, "kubectl": KUBECTL}.items():
        (tools / name).write_text(f"#!/bin/bash\nset -u\n{body}")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("STATE", str(tmp_path))
    return tmp_path


@pytest.fixture(scope="session")
def prefect_api() -> Iterator[None]:
    """Prefect's own server on loopback, with an empty database."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=PATIENCE):
        yield
