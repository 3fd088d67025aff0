"""Peak memory that ``plan`` predicts against the peak of real steps, on one process and on two (perf/_peak.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CHANGES = (
    "vitt",
    "vit.drop_path=0.4,run.batch=16",
    "run.activation_checkpointing=true",
    "heads.dino.prototypes=4096,heads.ibot.prototypes=4096",
    "vit.ffn=swiglu,vit.embed_dim=192,run.batch=32",
    "vit.embed_dim=256,vit.depth=8,run.batch=8",  # more weights than activations
)


def peaks(ranks: int, changes: tuple[str, ...] = CHANGES) -> dict[str, dict[str, object]]:
    """What perf/_peak.py prints on ``ranks`` processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT")}
    done = subprocess.run(
        [sys.executable, *launcher, str(ROOT / "perf/_peak.py"), *changes],
        cwd=ROOT,
        env=kept | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, dict[str, object]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> dict[str, object]:
    """Predicted over measured, which should lie within 0.85 and 1.15."""
    return {f"{ranks} processes": peaks(ranks) for ranks in (1, 2)}
