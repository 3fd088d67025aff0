"""Planted keys and signed addresses turn up nowhere: in no output, file, MLflow run, message or process list."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from components.errors import VitrailError, redacted
from components.storage import StorageParams, open_store
from components.tracking.store import resolve

ROOT = Path(__file__).resolve().parents[2]
KEY, SECRET, TOKEN = "AKIAPLANTED0000000000", "planted/secret+of/s3", "planted-session-token"
STAGES = {
    "crawl": ["--params", "params/crawl.yaml"],
    "curate": ["--params", "params/curate.yaml", "--crawl", "data/crawl", "--report", "reports/curate.json"],
}


def seen_while(process: subprocess.Popen[str]) -> str:
    """The command lines of the process and all it starts, until it ends."""
    lines, parent = set(), psutil.Process(process.pid)
    while process.poll() is None:
        try:
            lines |= {" ".join(one.cmdline()) for one in [parent, *parent.children(recursive=True)]}
            process.wait(0.1)
        except (subprocess.TimeoutExpired, psutil.Error):
            continue
    return "\n".join(lines)


@pytest.mark.parametrize("broken", [False, True], ids=["all goes well", "the store is away"])
def test_s3_keys_reach_no_output_no_file_and_no_process_list(tmp_path: Path, s3_endpoint: str, broken: bool) -> None:
    picture = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 90, 3), np.uint8)).save(picture, "PNG")
    place = StorageParams(root=f"s3://vitrail-test/{tmp_path.name}", endpoint_url=s3_endpoint)
    open_store(place).write("a.png", picture.getvalue())
    (tmp_path / "params").symlink_to(ROOT / "params")
    endpoint = "http://127.0.0.1:9" if broken else s3_endpoint
    (tmp_path / "storage.yaml").write_text(
        f"root: {place.root}/out\nendpoint_url: {endpoint}\nmax_attempts: 1\nconnect_timeout: 2.0\n"
    )
    keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN}
    env = os.environ | keys | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}
    changes = ["executor.workers=0", "least_kept=0", "nsfw.enabled=false", "faces.enabled=false"]
    quick = [word for change in changes for word in ("--set", change)]
    said = ""
    for stage, arguments in STAGES.items():
        out = ["--out", f"data/{stage}", "--storage", "storage.yaml", *arguments]
        out += ["--source", place.root] if stage == "crawl" else quick
        with open(tmp_path / f"{stage}.out", "w") as output:
            command = [sys.executable, "-m", f"components.{stage}", "run", *out]
            process = subprocess.Popen(
                command, cwd=tmp_path, env=env, stdout=output, stderr=subprocess.STDOUT, text=True
            )
        said += seen_while(process)
        assert (process.returncode == 0) != broken, (tmp_path / f"{stage}.out").read_text()
        if broken:
            break
    held = said.encode() + b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"components.crawl" in held
    assert broken or (tmp_path / "mlflow.db").is_file()
    for planted in (KEY, SECRET, TOKEN):
        assert planted.encode() not in held


SIGNED = "https://b.s3.amazonaws.com/k?X-Amz-Credential=AKIA%2F1&X-Amz-Date=20260101&X-Amz-Signature=abc123"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"{SIGNED} gone", f"{SIGNED} gone".replace("AKIA%2F1", "***").replace("abc123", "***")),
        ("at http://me:pw@h:5000/x", "at http://h:5000/x"),
        ("postgresql+asyncpg://me:p%40w@h/db gone", "postgresql+asyncpg://h/db gone"),
        ("https://a.windows.net/c?sv=1&sig=abc%3D&se=2", "https://a.windows.net/c?sv=1&sig=***&se=2"),
        ("https://storage.test/o?X-Goog-Signature=ff&x=1", "https://storage.test/o?X-Goog-Signature=***&x=1"),
        ("https://h.test/@user/x?design=1 a@b.c", "https://h.test/@user/x?design=1 a@b.c"),
    ],
)
def test_messages_give_no_access(text: str, clean: str) -> None:
    assert redacted(text) == redacted(clean) == clean
    assert str(VitrailError(text)) == clean


def test_an_address_with_a_login_is_refused_where_it_would_be_shown() -> None:
    with pytest.raises(VitrailError, match="MLFLOW_TRACKING_USERNAME") as fault:
        resolve("http://me:planted@mlflow:5000")
    assert "planted" not in str(fault.value)
    with pytest.raises(ValueError, match="holds a login"):
        StorageParams(root="s3://b", endpoint_url="https://me:planted@s3.test")
