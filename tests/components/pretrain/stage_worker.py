"""Runs of both stages in one process (DeepSpeed takes seconds to import): ``stage_worker.py FOLDER S3-ENDPOINT``.

Writes FOLDER/facts.json: what was raised, printed and exported by each run.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from components.context import StageContext
from components.distill.method import DistillParams
from components.distill.stage import DistillInputs
from components.distill.stage import run as distill
from components.errors import VitrailError
from components.evaluation.probing.online import Recorder
from components.images.decode import encode_jpeg
from components.images.shards import Shards, ShardWriter
from components.learning.collate import Crops
from components.learning.objective import Network
from components.params import load_params
from components.pretrain.method import Pretraining
from components.pretrain.stage import run as pretrain
from components.release.weights.load import load_model
from components.release.weights.writers import export_transformers
from components.storage import StorageParams, open_store
from components.tables.parts import write_table
from components.tables.schemas import MANIFEST
from components.tracking import TrackingParams
from components.training import loop
from components.training.inputs import TrainingInputs
from components.training.params import TrainingParams

STUDENT: dict[str, Any] = {
    "vit": {"image_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "heads": 2},
    "heads": {"dino": {"prototypes": 32, "hidden": 24, "bottleneck": 8}},
    "augment": {"global_size": 16, "local_size": 8, "locals": 2},
    "masks": {"min_patches": 1},
    "schedule": {"learning_rate": {"peak": 1e-3, "end": 1e-6, "warmup": 0.2}, "learning_rate_rule": "none"},
    "engine": {"device": "cpu", "accumulation": 2},
    "run": {"iterations": 6, "batch": 4, "log_every": 2, "checkpoint_every": 2, "keep_state": True},
    "probe": {
        "benchmark": "toy",
        "at": [0.5, 1.0],
        "bank": 12,
        "held_out": 6,
        "neighbours": 3,
        "linear": {"costs": [0.1, 1.0], "folds": 2},
        "dense": {"kind": "mosaic", "task": "kind", "image_size": 32, "train": 8, "held_out": 4, "patches": 64},
        "pictures": 2,
        "raw_side": 8,
    },
}
SOFTMAX = {"centering": "softmax"}
TEACHER: dict[str, Any] = STUDENT | {
    "vit": STUDENT["vit"] | {"embed_dim": 24, "drop_path": 0.3},
    "objective": SOFTMAX,
}
CONTRASTIVE: dict[str, Any] = {
    "objective": {"kind": "contrastive", "contrastive_temperature": 0.2, "koleo_weight": 0.0},
    "heads": {"dino": {"prototypes": 0, "hidden": 24, "bottleneck": 8, "batch_norm": True}, "ibot": None},
    "vit.stem": "convolutional",
    "engine.accumulation": 1,  # else a batch would be several small ones
    "probe": None,
}
BAD = (2, 5, 6)  # micro-batches, two a step, whose loss is made not finite: of steps 2, 3 and 4


def images(count: int) -> list[bytes]:
    """Random JPEGs, alike within a class."""
    generator = np.random.default_rng(0)
    tones = [generator.integers(0, 255, (4, 4, 3)) for _ in range(2)]
    found = []
    for i in range(count):
        noise = generator.integers(-30, 30, (32, 32, 3))
        found.append(np.clip(np.kron(tones[i % 2], np.ones((8, 8, 1), int)) + noise, 0, 255).astype(np.uint8))
    return [encode_jpeg(pixels, 90) for pixels in found]


def curate(folder: Path) -> None:
    """``folder/curate`` and ``folder/manifest`` of 30 images, one of them corrupt; the benchmark ``toy``."""
    rows, files = [], images(30)
    with ShardWriter(open_store(str(folder / "curate" / "shards")), "shard", 10**6) as writer:
        for number, data in enumerate(files):
            data = data[: len(data) // 3] if number == 7 else data
            at = writer.add(f"{number:020d}", "jpg", data)
            place = {"shard": at.shard, "offset": at.offset, "length": at.length}
            rows.append({"key": f"{number:020d}", **place, "width": 32, "height": 32, "weight": 1.0, "reason": "pool"})
    Shards("", writer.shards).save(folder / "curate")
    write_table(folder / "manifest", rows, MANIFEST)
    import pyarrow as pa
    import pyarrow.parquet as pq

    split = ["test" if number >= 24 else "train" for number in range(30)]
    labels = [number % 2 for number in range(30)]
    pq.write_table(pa.table({"image": files, "kind": labels, "split": split}), folder / "toy.parquet")
    text = f"toy: {{kind: parquet, path: {folder / 'toy.parquet'}, labels: [kind]}}\n"
    (folder / "benchmarks.yaml").write_text(text)
    (folder / "params").mkdir()
    (folder / "params" / "teacher.yaml").write_text(json.dumps(TEACHER))
    (folder / "params" / "student.yaml").write_text(json.dumps(STUDENT))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the weights."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def record_of(store: str) -> list[dict[str, Any]]:
    """The MLflow runs there are, with the steps of their curve, what ended them, and their models."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("vitrail").experiment_id
    models = client.search_logged_models([experiment])
    return [
        {
            "id": run.info.run_id,
            "status": run.info.status,
            "error": run.data.tags.get("vitrail.error", ""),
            "steps": sorted(point.step for point in client.get_metric_history(run.info.run_id, "train/loss")),
            "models": sorted(model.name for model in models if model.source_run_id == run.info.run_id),
        }
        for run in client.search_runs([experiment])
    ]


@contextlib.contextmanager
def spied() -> Iterator[list[dict[str, Any]]]:
    """What every pass through a whole network was given, and which weights it had."""
    calls: list[dict[str, Any]] = []
    forward = Network.forward

    def noting(
        self: Network, globals_: Tensor, locals_: Any = None, masks: Any = None, *rest: Any, **named: Any
    ) -> Any:
        patches = rest[0] if rest else named.get("patches")
        shards = [p.ds_tensor.detach().double() for p in self.parameters()]  # type: ignore[attr-defined]
        weights = torch.cat([shard.flatten() for shard in shards])
        calls.append(
            {
                "width": self.backbone.config.embed_dim,
                "learns": torch.is_grad_enabled(),
                "trainable": any(p.requires_grad for p in self.parameters()),
                "training": self.training,
                "locals": locals_ is not None,
                "hidden": 0 if masks is None else int(masks.sum()),
                "patches": [] if patches is None else patches.tolist(),
                "weights": float((weights * torch.arange(1.0, len(weights) + 1).sin()).sum()),
            }
        )
        return forward(self, globals_, locals_, masks, *rest, **named)

    Network.forward = noting  # type: ignore[method-assign]
    try:
        yield calls
    finally:
        Network.forward = forward  # type: ignore[method-assign]


def main(folder: Path, endpoint: str) -> None:
    torch.set_num_threads(1)
    curate(folder)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    facts: dict[str, Any] = {}
    storage = StorageParams(root=str(folder), endpoint_url=endpoint)
    copies_of_b = f"s3://vitrail-test/{folder.name}-{os.getpid()}"

    def run(
        name: str,
        out: str,
        change: Mapping[str, Any] | None = None,
        teacher: str = "",
        tracking: Path | None = None,
        machine: str = "",
    ) -> None:
        """One run of a stage; its outcome under ``name``. On a ``machine``, checkpoints go to S3, too."""
        content = json.loads(json.dumps(STUDENT if teacher else TEACHER))
        for key, value in (change or {}).items():
            section, _, key = key.partition(".")
            content[section] = (content.get(section, {}) | {key: value}) if key else value
        common = {
            "curated": folder / "curate",
            "manifest": folder / "manifest",
            "benchmarks": folder / "benchmarks.yaml",
        }
        scratch = folder / f"scratch-{out.rpartition('/')[0] or 'runs'}{machine}"
        store = None if tracking is None else load_params(tracking, TrackingParams)
        copies = copies_of_b if machine else None
        context = StageContext(storage, store, folder / f"{out}.json", scratch, copies)
        printed, raised = io.StringIO(), ""
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                if teacher:
                    given = DistillInputs(preset=folder / "params/student.yaml", teacher=folder / teacher, **common)
                    distill(DistillParams.model_validate(content), given, folder / out, context)
                else:
                    params = TrainingParams.model_validate(content)
                    inputs = TrainingInputs(preset=folder / "params/teacher.yaml", **common)
                    pretrain(params, inputs, folder / out, context)
            except VitrailError as fault:
                raised = f"{type(fault).__name__}: {fault}"
        facts[name] = {"raised": raised, "printed": printed.getvalue()}

    run("unbroken", "a/model")
    facts["unbroken files"] = digests(folder / "a/model")
    facts["unbroken curve"] = json.loads((folder / "a/model/curve.json").read_text())
    loaded = load_model(folder / "a/model", with_heads=False)
    export_transformers(loaded, folder / "headless")
    start = {"init": str(folder / "headless"), "probe": {"pictures": 0}}
    run("headless", "h/model", start)
    joined = {"init_heads": {"iterations": 2, "ramp": 2}, "groups": {"frozen_blocks": 1}}
    run("continued", "c/model", start | joined)
    run("unprobed", "u/model", {"probe": {"pictures": 0}})
    facts["unprobed files"] = digests(folder / "u/model")

    point = Recorder.point

    def terminate_at(step: int) -> None:
        def stopping(self: Recorder, at: int, figures: Mapping[str, float]) -> None:
            point(self, at, figures)
            if at == step:
                os.kill(os.getpid(), signal.SIGTERM)

        Recorder.point = stopping  # type: ignore[method-assign]

    tracking = folder / "tracking.yaml"
    store = f"sqlite:///{folder}/mlflow.db"
    tracking.write_text(json.dumps({"uri": store, "experiment": "vitrail", "system_metrics": False}))
    terminate_at(4)
    run("stopped", "b/model", tracking=tracking, machine="-one")
    Recorder.point = point  # type: ignore[method-assign]
    facts["left"] = sorted(path.name for path in (folder / "scratch-b-one" / "model").iterdir())
    facts["no_export_yet"] = not (folder / "b/model").exists()
    facts["record stopped"] = record_of(store)
    run("resumed", "b/model", tracking=tracking, machine="-two")
    copies = list(open_store(storage.model_copy(update={"root": copies_of_b}), "model").list())
    facts["copies left"] = [name for name in copies if not name.startswith("step-")]
    facts["copies of steps"] = sorted({name.partition(".")[0] for name in copies if name.startswith("step-")})
    facts["resumed files"] = digests(folder / "b/model")
    facts["record resumed"] = record_of(store)

    run("contrastive", "v/model", CONTRASTIVE)
    facts["contrastive files"] = digests(folder / "v/model")
    terminate_at(4)
    run("stopped contrastive", "w/model", CONTRASTIVE)
    Recorder.point = point  # type: ignore[method-assign]
    facts["stopped contrastive files"] = digests(folder / "w/model")
    run("resumed contrastive", "w/model", CONTRASTIVE)
    facts["resumed contrastive files"] = digests(folder / "w/model")

    # A checkpoint between two points of the curves, SIGTERM in the very step that is to be probed.
    apart = {"run.log_every": 4}
    run("other points", "l/model", apart)
    seed_step = Pretraining.seed_step

    def terminating(self: Pretraining, seed: int) -> None:
        seed_step(self, seed)
        seen["micro"] += 1
        if seen["micro"] == 5:  # of two a step: in the third
            os.kill(os.getpid(), signal.SIGTERM)

    seen = {"micro": 0}
    Pretraining.seed_step = terminating  # type: ignore[method-assign]
    run("stopped at a probe", "m/model", apart)
    Pretraining.seed_step = seed_step  # type: ignore[method-assign]
    manifest = json.loads((folder / "scratch-m/model/step-00000003/manifest.json").read_text())
    facts["probed before the stop"] = [point["step"] for point in manifest["shared"]["curves"]["probes"]]
    run("resumed at a probe", "m/model", apart)

    def fill_at(step: int) -> None:
        def filling(self: Recorder, at: int, figures: Mapping[str, float]) -> None:
            point(self, at, figures)
            if at == step:  # the kernel writes no file beyond this many bytes
                resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))

        Recorder.point = filling  # type: ignore[method-assign]

    fill_at(4)
    run("full", "g/model")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    Recorder.point = point  # type: ignore[method-assign]
    facts["left full"] = sorted(path.name for path in (folder / "scratch-g" / "model").iterdir())
    run("after full", "g/model")
    facts["after full files"] = digests(folder / "g/model")

    poisoned = Pretraining.losses

    def bad_loss(self: Pretraining, *args: Any) -> Any:
        found, figures = poisoned(self, *args)
        total = found.total * float("nan") if seen["micro"] in BAD else found.total
        seen["micro"] += 1
        return found._replace(total=total), figures

    seen["micro"] = 0
    Pretraining.losses = bad_loss  # type: ignore[method-assign]
    run("bad losses", "h/model", {"engine.max_skipped": 2})
    Pretraining.losses = poisoned  # type: ignore[method-assign]
    record = folder / "scratch-h" / "skipped" / "pretrain-model-rank-00000.jsonl"
    facts["skipped"] = [json.loads(line) for line in record.read_text().splitlines()]

    normalized = loop.normalize_crops

    def bad_pixels(*args: Any) -> Crops:
        crops = normalized(*args)
        seen["micro"] += 1
        return crops._replace(globals=crops.globals * float("nan")) if seen["micro"] - 1 in BAD else crops

    seen["micro"] = 0
    loop.normalize_crops = bad_pixels
    run("bad pixels", "k/model")
    loop.normalize_crops = normalized
    with safe_open(folder / "scratch-k/model/step-00000006/rank-00000.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("whole/")]  # noqa: SIM118 - not a mapping
        facts["centers"] = {name: bool(torch.isfinite(file.get_tensor(name)).all()) for name in names}

    learning = {
        "run.iterations": 90, "run.batch": 8, "run.log_every": 5, "run.checkpoint_every": 1000, "probe.benchmark": None,
        "engine.accumulation": 1, "schedule.momentum": {"peak": 0.9, "end": 1.0},
        "schedule.learning_rate": {"peak": 5e-3, "end": 1e-6, "warmup": 0.1},
        "collapse": {"action": "stop", "after": 20, "patience": 30, "cross_entropy": None},
    }  # fmt: skip
    run("healthy", "i/model", learning | {"objective": {"centering": "sinkhorn"}})
    # the centre never moves and nothing pushes images apart
    run("collapsed", "j/model", learning | {"objective": {"center_momentum": 1.0, "koleo_weight": 0.0} | SOFTMAX})

    newest = folder / "scratch-a" / "model" / "step-00000006" / "rank-00000.safetensors"
    newest.write_bytes(newest.read_bytes()[:100])
    run("damaged", "a/model")
    facts["damaged files"] = digests(folder / "a/model")
    facts["damaged curve"] = json.loads((folder / "a/model/curve.json").read_text())
    run("refused", "a/model", {"run.disposable_minutes": 0, "run.seed": 1})
    longer = {"run.on_mismatch": "continue", "run.iterations": 8}
    run("longer", "a/model", longer)
    facts["longer curve"] = json.loads((folder / "a/model/curve.json").read_text())
    split = {"run.batch": 8, "engine.accumulation": 1, "run.activation_checkpointing": True}
    run("other split", "a/model", {"run.iterations": 8, "run.disposable_minutes": 0} | split)
    run("shorter", "a/model", {"run.on_mismatch": "continue", "run.iterations": 3})
    run("fresh", "a/model", {"run.seed": 1, "run.keep_state": False, "run.iterations": 2})
    facts["state_removed"] = not (folder / "scratch-a" / "model").exists()
    run("no such benchmark", "c/model", {"probe.benchmark": "toi"})
    run("no such task", "c/model", {"probe.dense": {"kind": "mosaic", "task": "kin"}})

    run("distilled", "d/model", teacher="b/model")
    with spied() as facts["calls"]:
        run("masked patches", "n/model", {"patches": "masked", "run.iterations": 2, "probe": {}}, teacher="b/model")
    with spied() as facts["calls all"]:
        run("all patches", "e/model", {"patches": "all", "run.iterations": 2}, teacher="b/model")
    with spied() as facts["calls pretrain"]:
        run("seen", "o/model", {"run.iterations": 2, "probe": {}})
    run("other prototypes", "f/model", {"heads.dino": {"prototypes": 8}}, teacher="b/model")
    run("other patch", "f/model", {"vit.patch_size": 4}, teacher="b/model")
    run("no teacher", "f/model", teacher="nowhere")
    (folder / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
