"""What a served model answers, and that it does over HTTP; MLflow's registry and what moves its champion."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from patience import PATIENCE
from PIL import Image

from components.benchmark.features.contenders import find_checkpoints
from components.errors import VitrailError
from components.learning.export import weights_digest
from components.pretrain.start import started_from
from components.release.run import main
from components.release.serve.registered import promote, register, rollback
from components.release.serve.remote_images import UrlParams, fetch_images
from components.release.serve.serving import ServeParams, answer
from components.release.use.features import embed_array
from components.release.weights.export import save_model
from components.release.weights.load import LoadedModel, load_model
from components.tracking.registry import Registry
from tests.components.release.small_models import small_model
from tests.hostile_images import KINDS, bomb

ROOT = Path(__file__).resolve().parents[4]
RGB = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)


def png(rgb: Any = RGB) -> bytes:
    file = io.BytesIO()
    Image.fromarray(rgb).save(file, "PNG")
    return file.getvalue()


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return small_model(with_heads=True, registers=2, interpolation="size")


def errors(model: LoadedModel, params: ServeParams | None = None, **columns: list[Any]) -> list[str]:
    return list(answer(model, params or ServeParams(), pd.DataFrame(columns), {})["error"])


def test_bytes_paths_and_pixels_give_the_same_features(model: LoadedModel, in_tmp: Path) -> None:
    (in_tmp / "one.png").write_bytes(png())
    gray = RGB[..., 0]
    rows: list[dict[str, Any]] = [
        {"image": png()}, {"path": "one.png"}, {"path": str(in_tmp / "one.png")}, {"pixels": RGB},
        {"pixels": RGB.tolist()}, {"image": base64.b64encode(npy(RGB)).decode()}, {"image": png(gray)},
        {"pixels": gray.tolist()},
    ]  # fmt: skip
    found = answer(model, ServeParams(batch=3), pd.DataFrame(rows), {"features": "cls, patches"})
    assert set(found["error"]) == {""}
    assert np.shape(found["patches"][0]) == (4, 4, 64)
    expected = embed_array(model, [RGB] * 6 + [gray] * 2)
    np.testing.assert_allclose(np.array(found["cls"].tolist()), expected, atol=1e-5)


def test_what_cannot_be_used_is_a_row_that_says_why(model: LoadedModel, in_tmp: Path) -> None:
    (in_tmp / "link.png").symlink_to("/etc/passwd")
    assert errors(model, image=[png(), b"no image", png()[:900]])[0] == ""
    found = errors(
        model, ServeParams(max_pixels=10_000),
        image=[b"no image", npy(RGB.astype(float)), npy(RGB)[:999], npy(np.array([{}])), None],
        pixels=[None, None, None, None, np.zeros((101, 100), np.uint8)],
    )  # fmt: skip
    assert ["not-an-image" in found[0], "float64" in found[1], "cut short" in found[2]] == [True] * 3
    assert "object" in found[3]
    assert "too-many-pixels: 101 x 100; at most 10000" in found[4]
    refused = dict(zip(KINDS, errors(model, image=[bomb(kind) for kind in KINDS]), strict=True))
    assert all(refused.values())
    assert "too-many-pixels" in refused["PNG"]
    assert "too-many-pixels" in refused["JPEG"]
    found = errors(model, path=["/etc/passwd", "../one.png", "link.png", "gone.png"])
    assert ["refused: not below ." in each for each in found] == [True, True, True, False]
    assert "No such file" in found[3]
    assert errors(model, ServeParams(roots=[], urls=None), path=["a.png", None], url=[None, "http://a.example/"]) == [
        "paths are refused here (roots in params/serve.yaml)",
        "addresses are refused here (urls in params/serve.yaml)",
    ]
    [both, none] = errors(model, image=[png(), None], path=["one.png", None])
    assert "this row has image, path" in both
    assert "this row has none" in none
    wrong = errors(model, pixels=[[[1, 2], [3]], [[300, 2]], RGB[..., :2], "text"])
    assert ["rows differ" in wrong[0], "int64" in wrong[1], "2 channels" in wrong[2], bool(wrong[3])] == [True] * 4


def test_a_request_has_bounds(model: LoadedModel) -> None:
    with pytest.raises(VitrailError, match="3 images in a request; at most 2"):
        errors(model, ServeParams(max_rows=2), image=[b"", b"", b""])
    with pytest.raises(VitrailError, match="features 'csl': choose from cls, mean, patches"):
        answer(model, ServeParams(), pd.DataFrame({"image": [b""]}), {"features": "csl"})


class Site(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        places = {"/inside": "http://127.0.0.1:9/x.png", "/name": "http://localhost/x.png", "/loop": "/loop"}
        if self.path in places:
            self.send_response(302)
            self.send_header("Location", places[self.path])
            self.end_headers()
        elif self.path == "/one.png":
            self.send_response(200)
            self.end_headers()
            self.wfile.write(png())
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()


def test_addresses_are_fetched_where_they_are_public(model: LoadedModel, site: int) -> None:
    params = UrlParams(resolve={"images.example": f"127.0.0.1:{site}"}, max_redirects=2)
    named = [f"http://images.example/{name}" for name in ("one.png", "inside", "name", "loop", "gone")]
    found = fetch_images([*named, f"http://127.0.0.1:{site}/one.png", "http://[::1]/", "file:///etc/passwd"], params)
    assert found[0] == png()
    refused = "refused: not an address of the public internet"
    said = [str(each).partition(": ")[2] for each in found[1:]]
    assert said == [refused, refused, "more than 2 redirects", "the server answers 404", refused, refused,
                    "refused: not an http or https address"]  # fmt: skip
    [fault] = fetch_images(named[:1], params.model_copy(update={"max_bytes": 99}))
    assert "too-many-bytes: over 99" in str(fault)
    served = ServeParams(urls=params)
    assert errors(model, served, image=[None, png()], url=["http://images.example/one.png", None]) == ["", ""]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_store: Path, model: LoadedModel) -> Iterator[Path]:
    """A workspace whose registry has version 1 of ``vits``, the candidate."""
    folder = tmp_path_factory.mktemp("registry")
    shutil.copy(empty_store, folder / "mlflow.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        patch.delenv("MLFLOW_REGISTRY_URI", raising=False)
        save_model(model, folder / "m")
        assert main(["register", "--model", str(folder / "m"), "--name", "vits"]) == 0
        yield folder


def test_a_registered_model_is_a_model_by_value(
    store: Path, model: LoadedModel, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = load_model("models:/vits@candidate")
    assert weights_digest(loaded.backbone) == weights_digest(model.backbone)
    assert loaded.dino_head is not None  # so it can be a teacher, or go on with its own heads
    assert set(started_from("models:/vits/1").sha256) == {"backbone.safetensors", "heads.safetensors"}
    assert find_checkpoints(["models:/vits@candidate", store / "m"]) == ["models:/vits/1", store / "m"]
    (in_tmp / "photos").mkdir()
    (in_tmp / "photos/one.png").write_bytes(png())
    assert main(["embed", "--model", "models:/vits@candidate", "--images", "photos", "--out", "f"]) == 0
    assert json.loads((in_tmp / "f/features.json").read_text())["model"] == "models:/vits/1"
    assert not list(store.rglob("*.pkl"))
    for source, said in {
        "models:/vits@champion": "no alias 'champion'; there is candidate",
        "models:/vit@candidate": "did you mean 'vits'",
        "models:/vits/7": "no version 7",
        "models:/vits": "models:/NAME@ALIAS or models:/NAME/VERSION",
    }.items():
        with pytest.raises(VitrailError, match=said):
            load_model(source)


def test_a_registry_that_cannot_be_reached_is_one_line(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{probe.getsockname()[1]}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", closed)
    for command in (["promote", "--name", "vits"], ["embed", "--model", "models:/vits@champion", "--images", "x"]):
        with pytest.raises(VitrailError, match=f"MLflow at {closed}: no answer") as fault:
            main(command if command[0] == "promote" else [*command, "--out", "f"])
        assert "\n" not in str(fault.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///gone.db")
    with pytest.raises(VitrailError, match=r"gone\.db: no such store"):
        load_model("models:/vits@champion")
    assert not (in_tmp / "gone.db").exists()


def scores(folder: Path, **models: tuple[LoadedModel, float]) -> Path:
    folder.mkdir(exist_ok=True)
    entries = [
        {"model": name, "kind": "checkpoint", "benchmark": "cells", "task": "type", "method": "knn20"}
        | {"accuracy": accuracy, "protocol": "quick v1 (0123)", "low": 0.0, "high": 100.0}
        for name, (_, accuracy) in models.items()
    ]
    known = {name: {"weights": weights_digest(model.backbone)} for name, (model, _) in models.items()}
    (folder / "scores.json").write_text(json.dumps({"scores": entries, "models": known}))
    return folder


def test_the_champion_moves_through_the_gate_alone(store: Path, model: LoadedModel, tmp_path: Path) -> None:
    registry, gate = Registry(), tmp_path / "gate.yaml"
    row = {"benchmark": "cells", "task": "type", "method": "knn20", "at_least": 50.0}
    gate.write_text(yaml.safe_dump({"rows": [row]}))
    other = small_model(registers=3)
    with pytest.raises(VitrailError, match=r"no scores of models:/vits/1 .*--checkpoints models:/vits/1"):
        promote("vits", scores(tmp_path / "s", a=(other, 99.0)), gate)
    with pytest.raises(VitrailError, match=r"models:/vits/1 is not promoted: a, cells/type/knn20: 49.0, at least 50"):
        promote("vits", scores(tmp_path / "s", a=(model, 49.0), b=(other, 99.0)), gate)
    with pytest.raises(VitrailError, match=r"gate\.yaml: no row is for a"):
        promote("vits", scores(tmp_path / "s", a=(model, 99.0)), ROOT / "params/gate.yaml")
    with pytest.raises(VitrailError, match="no alias 'champion'"):
        registry.version("models:/vits@champion")
    # A poor neighbour in the same table does not hold the candidate up.
    assert promote("vits", scores(tmp_path / "s", a=(model, 51.0), b=(other, 1.0)), gate).number == 1
    with pytest.raises(VitrailError, match="is the champion already"):
        promote("vits", tmp_path / "s", gate)
    with pytest.raises(VitrailError, match="nothing to go back to"):
        rollback("vits")
    assert register(other, "vits", ServeParams()).number == 2
    assert registry.version("models:/vits@champion").number == 1
    assert promote("vits", scores(tmp_path / "s", b=(other, 60.0)), gate).number == 2
    assert json.loads(registry.version("models:/vits@champion").tags["vitrail.scores"]) == {"cells/type/knn20": 60.0}
    assert rollback("vits")[1] == registry.version("models:/vits@champion") == registry.version("models:/vits/1")
    with pytest.raises(VitrailError, match="nothing to go back to"):
        rollback("vits")


def post(url: str, body: Any) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE) as reply:
        return json.loads(reply.read())


def test_mlflows_server_answers_over_http(store: Path, model: LoadedModel, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["serve", "--model", "models:/vits/1", "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "components.release", *command], cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{url}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.3)
        rows = [{"image": base64.b64encode(png()).decode()}, {"pixels": RGB.tolist()}, {"path": "/etc/passwd"},
                {"image": base64.b64encode(bomb("PNG")).decode()}]  # fmt: skip
        found = post(f"{url}/invocations", {"dataframe_records": rows, "params": {"features": "cls"}})["predictions"]
        assert [row["error"].partition(":")[0] for row in found] == ["", "", "/etc/passwd", "too-many-pixels"]
        np.testing.assert_allclose([row["cls"] for row in found[:2]], embed_array(model, [RGB, RGB]), atol=1e-5)
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            post(f"{url}/invocations", {"dataframe_records": rows[:1], "params": {"features": "csl"}})
        assert "choose from cls, mean, patches" in json.loads(refused.value.read())["message"]
    finally:
        server.send_signal(signal.SIGTERM)
        code = server.wait(PATIENCE)
    assert code == 0
    with socket.socket() as probe:  # nothing of it is left
        assert probe.connect_ex(("127.0.0.1", port)) != 0
