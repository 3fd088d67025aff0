from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from components.dedup.run import main
from components.descriptors import train as training
from components.descriptors.kinds import TrainedParams, adopt, learn, load_descriptor
from components.descriptors.train import train_network
from components.descriptors.train_params import (
    DescriptorTrainingParams,
    EditParams,
    MixParams,
    NetworkParams,
    OptimizerParams,
)
from components.descriptors.views import squash
from components.errors import VitrailError
from components.images.decode import encode_jpeg
from components.images.samples import RGB
from components.params import load_params
from components.storage import StorageParams
from tests.components.dedup.dedup_pool import curate

ROOT = Path(__file__).resolve().parents[3]
STORAGE = StorageParams(root="data")
TINY = NetworkParams(side=16, width=8, dim=8)
EDITS = EditParams(crop_scale=(0.5, 1.0), blur=0.0)


def picture(seed: int, side: int = 24) -> RGB:
    import cv2

    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


PICTURES = [picture(seed) for seed in range(20)]


def state(
    params: DescriptorTrainingParams, checkpoint: Path | None = None, network: NetworkParams = TINY
) -> dict[str, object]:
    model = train_network(PICTURES, network, EDITS, params, 3, checkpoint)
    assert not model.training
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("kind", ["adamw", "lars"])
def test_a_stopped_run_ends_as_one_that_was_not(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = OptimizerParams(kind=kind, lr=0.05)  # type: ignore[arg-type]
    params = DescriptorTrainingParams(steps=7, batch=6, save_every=2, optimizer=optimizer, mix=MixParams(share=0.4))
    whole = state(params)
    assert state(params.model_copy(update={"workers": 3})) == whole  # however many threads draw
    left = iter([None] * 5)

    def interrupted(*given: object) -> float:
        if next(left, "stop") == "stop":
            raise KeyboardInterrupt
        return float(real(*given))  # type: ignore[arg-type]

    real, checkpoint = training.backward, tmp_path / "run.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(training, "backward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            state(params, checkpoint)
    assert checkpoint.exists()
    assert state(params, checkpoint) == whole
    with pytest.raises(VitrailError, match="a checkpoint of other parameters or pictures; delete it"):
        state(params.model_copy(update={"steps": 9}), checkpoint)
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(VitrailError, match=r"run.safetensors: not a training checkpoint"):
        state(params, checkpoint)


def test_training_brings_copies_together_and_others_apart() -> None:
    params = DescriptorTrainingParams(steps=100, batch=20, entropy=1.0, optimizer=OptimizerParams(lr=1e-2))
    edits = EditParams(crop_scale=(0.7, 1.0), blur=0.0, flip=0.0, turn=0.0, quarter_turn=0.0)
    network = NetworkParams(side=24, width=8, dim=16)
    trained = train_network(PICTURES, network, edits, params, 0)
    fresh = train_network(PICTURES, network, edits, params.model_copy(update={"steps": 1}), 0)
    whole = torch.from_numpy(np.stack(PICTURES))
    parts = torch.from_numpy(np.stack([squash(p[2:22, 1:21], 24) for p in PICTURES]))
    gaps = []
    for model in (fresh, trained):
        with torch.inference_mode():
            cosine = (model(whole) @ model(parts).T).numpy()
        own = np.diag(cosine)
        gaps.append(own.mean() - np.where(np.eye(20, dtype=bool), -1, cosine).max(1).mean())
    assert gaps[1] > gaps[0] + 0.2
    assert gaps[1] > 0.2


def test_faults_of_training_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VitrailError, match=r"1 image\(s\); it needs two"):
        train_network(PICTURES[:1], TINY, EDITS, DescriptorTrainingParams(), 0)
    wild = OptimizerParams.model_construct(kind="lars", lr=1e38, trust=1.0, warmup=0.0)  # beyond what files may say
    with pytest.raises(VitrailError, match=r"the loss is nan at step 1; lower training.optimizer.lr"):
        train_network(PICTURES, TINY, EDITS, DescriptorTrainingParams(steps=9, batch=4, optimizer=wild), 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(VitrailError, match="torch finds no CUDA device"):
        train_network(PICTURES, TINY, EDITS, DescriptorTrainingParams(device="cuda"), 0)


def test_weights_trained_before_are_adopted(tmp_path: Path) -> None:
    params = TrainedParams(kind="trained", network=TINY, training=DescriptorTrainingParams(steps=2, batch=4))
    learn(params, PICTURES, tmp_path / "made.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["made.safetensors"]  # no checkpoint is left
    given = params.model_copy(update={"weights": str(tmp_path / "made.safetensors")})
    adopt(given, tmp_path / "copy.safetensors")
    rows = [load_descriptor(params, tmp_path / name, STORAGE).embed([squash(PICTURES[0], 16)]) for name in
            ("made.safetensors", "copy.safetensors")]  # fmt: skip
    assert (rows[0] == rows[1]).all()
    with pytest.raises(VitrailError, match="weights of another network than"):
        adopt(given.model_copy(update={"network": NetworkParams(side=16, width=16, dim=8)}), tmp_path / "x")
    with pytest.raises(VitrailError, match=r"none: No such file or directory; write it with"):
        adopt(given.model_copy(update={"weights": str(tmp_path / "none")}), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_the_train_command_writes_what_the_stage_adopts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curated = curate(tmp_path / "curate", {f"plain{i}": encode_jpeg(picture(i, 48), 90) for i in range(9)})
    given = TrainedParams(kind="trained", network=TINY, training=DescriptorTrainingParams(steps=2, batch=4))
    written = []
    for decode in ("once", "each_view"):
        (tmp_path / "params.yaml").write_text(json.dumps(given.model_dump(mode="json")))
        out = tmp_path / f"{decode}.safetensors"
        arguments = ["train", "--params", str(tmp_path / "params.yaml"), "--curated", str(curated), "--out", str(out)]
        arguments += [
            "--chunk",
            "4",
            "--set",
            f"training.decode={decode}",
            "--storage",
            str(ROOT / "params/storage.yaml"),
        ]
        assert main(arguments) == 0
        assert f"a descriptor of 9 images -> {out}" in capsys.readouterr().out
        assert not [*tmp_path.glob(".*.work")]
        adopt(given.model_copy(update={"weights": str(out)}), tmp_path / "copy")
        written.append(safetensors.numpy.load_file(out))
    for name, value in written[0].items():  # where the pictures are kept changes nothing
        np.testing.assert_array_equal(value, written[1][name])
    with pytest.raises(VitrailError, match="there already"):
        main(arguments)


@pytest.mark.parametrize("path", sorted((ROOT / "params/sscd").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_presets_load(path: Path) -> None:
    params = load_params(path, TrainedParams)
    if path.stem == "resnet50":  # the paper's, and the code's defaults for edits and mixing
        assert params.edits == EditParams()
        assert params.training.mix == MixParams()
        assert params.training.optimizer.lr == pytest.approx(0.3 * params.training.batch / 256)
        assert (params.training.entropy, params.training.temperature, params.network.dim) == (30, 0.05, 512)
    with pytest.raises(VitrailError, match="did you mean 'temperature'"):
        load_params(path, TrainedParams, ["training.temperatur=0.1"])
