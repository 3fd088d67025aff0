"""Output as JSON for those who collect logs: each line whole, with stage, rank and run, and plain again for Prefect."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from components.json_lines import JsonLines, about_this_process, plain

ROOT = Path(__file__).resolve().parents[2]


LINES = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=["Cs"]), max_size=20)


@given(st.lists(LINES, max_size=8), st.integers(1, 7))
def test_lines_come_whole_however_they_are_cut(lines: list[str], cut: int) -> None:
    out = io.StringIO()
    stream = JsonLines(out, {"stage": "x"})
    text = "\n".join(lines)
    for start in range(0, len(text), cut):
        stream.write(text[start : start + cut])
    stream.finish()
    written = [json.loads(line) for line in out.getvalue().split("\n") if line]
    assert [content["line"] for content in written] == [line for line in lines if line.strip()]
    assert [plain(line) for line in out.getvalue().split("\n") if line] == [line for line in lines if line.strip()]


@pytest.mark.parametrize(
    ("argv", "env", "about"),
    [
        (["/a/components/pretrain/__main__.py", "run"], {"RANK": "3"}, {"stage": "pretrain", "rank": 3}),
        (["/bin/vitrail", "crawl", "run"], {"VITRAIL_FLOW_RUN_ID": "7"}, {"stage": "crawl", "run": "7"}),
        (["/a/components/distill/__main__.py"], {"SLURM_PROCID": "0"}, {"stage": "distill", "rank": 0}),
        (["/a/infra/local/stack.py"], {"RANK": ""}, {"stage": "stack"}),
    ],
)
def test_stage_rank_and_run_are_those_of_the_launcher(argv: list[str], env: dict[str, str], about: object) -> None:
    assert about_this_process(argv, env) == about


def test_a_command_says_its_error_as_json(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "components.crawl", "run", "--params", "nothere.yaml", "--out", "x"]
    env = os.environ | {"VITRAIL_LOGS": "json", "PYTHONPATH": str(ROOT), "VITRAIL_FLOW_RUN_ID": "flow-9"}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    content = json.loads(line)
    assert (content["level"], content["stage"], content["run"]) == ("error", "crawl", "flow-9")
    assert content["line"].startswith("error: nothere.yaml: no such parameter file")
    assert plain(line) == content["line"]
    assert plain("error: as it is") == "error: as it is"
    assert plain('{"time": "broken') == '{"time": "broken'
