"""Official networks: as TorchScript and as state dict, from file, S3 and URL, pinned by digest; and what is refused."""

from __future__ import annotations

import hashlib
import http.server
import io
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load as load_safetensors
from safetensors.torch import save as save_safetensors

from components.dedup.pool import fit
from components.descriptors.kinds import SscdParams, load_descriptor
from components.descriptors.network import CopyNet
from components.descriptors.sscd import WhiteningParams, load_sscd
from components.descriptors.train_params import NetworkParams
from components.errors import VitrailError
from components.storage import StorageParams, open_store

STORAGE = StorageParams(root="data")


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random SSCD ResNet-50 as Meta publishes it: TorchScript and torchvision's state dict."""

    class Normalised(torch.nn.Module):
        """What the published TorchScript holds: normalised floats in, unit rows out."""

        def __init__(self, backbone: torch.nn.Module) -> None:
            super().__init__()
            self.backbone = backbone

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(self.backbone(x))

    folder = tmp_path_factory.mktemp("official")
    params = NetworkParams(side=224, arch="resnet50", width=64, stem="imagenet", dim=512, normalise="imagenet")
    model = CopyNet(params).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    for module in model.modules():  # away from zero, where residual branches would all be silent
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.data.fill_(0.5)
    with torch.inference_mode():
        traced = torch.jit.trace(Normalised(model.backbone), torch.zeros(1, 3, 64, 64), check_trace=False)
    traced.save(str(folder / "sscd.torchscript.pt"))
    torch.save(model.state_dict(), folder / "sscd.torchvision.pt")
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same two forms of a network that loads in no time."""
    folder = tmp_path_factory.mktemp("small")
    model = CopyNet(NetworkParams(arch="resnet10", width=8, stem="imagenet", dim=32)).eval()
    model.init_weights(torch.Generator().manual_seed(0))
    torch.save(model.state_dict(), folder / "sscd.torchvision.pt")
    (folder / "sscd.safetensors").write_bytes(save_safetensors(model.backbone.state_dict()))
    with torch.inference_mode():
        torch.jit.trace(model.backbone, torch.zeros(1, 3, 64, 64)).save(str(folder / "sscd.torchscript.pt"))
    return folder


def describe(path: Path | str, **settings: object) -> np.ndarray:
    params = SscdParams.model_validate({"kind": "sscd", "path": str(path), "side": 64, **settings})
    descriptor = load_descriptor(params, Path(), STORAGE)
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (80, 100, 3), dtype=np.uint8) for _ in range(3)]
    return descriptor.embed([descriptor.prepare(picture) for picture in pictures])


def test_a_published_resnet50_gives_the_same_as_torchscript_and_as_state_dict(official: Path) -> None:
    script = describe(official / "sscd.torchscript.pt")
    assert script.shape == (3, 512)
    np.testing.assert_allclose(np.linalg.norm(script, axis=1), 1, atol=1e-5)
    assert abs(script[0] @ script[1]) < 0.9999  # not one constant
    np.testing.assert_allclose(describe(official / "sscd.torchvision.pt"), script, atol=2e-5)


def test_squashed_and_safetensors_as_well(small: Path) -> None:
    for squash in (False, True):
        script = describe(small / "sscd.torchscript.pt", squash=squash)
        for name in ("sscd.torchvision.pt", "sscd.safetensors"):
            np.testing.assert_allclose(describe(small / name, squash=squash), script, atol=2e-5)


@pytest.mark.parametrize(("height", "width"), [(200, 100), (90, 151), (40, 30)])
def test_pictures_are_resized_by_an_averaging_bilinear_filter(small: Path, height: int, width: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    for squash, size in (
        (False, (64 * height // min(height, width), 64 * width // min(height, width))),
        (True, (64, 64)),
    ):
        params = SscdParams(kind="sscd", path=str(small / "sscd.torchscript.pt"), side=64, squash=squash)
        found = load_descriptor(params, Path(), STORAGE).prepare(rgb)
        tensor = torch.from_numpy(rgb).permute(2, 0, 1)[None].float()
        expected = torch.nn.functional.interpolate(tensor, size, mode="bilinear", antialias=True)
        np.testing.assert_allclose(found, expected[0].permute(1, 2, 0).numpy(), atol=1.01)


def test_pictures_of_many_shapes_are_described_as_each_alone(small: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = [(64, 80), (64, 64), (64, 80), (96, 64), (64, 80), (64, 64)]
    pictures = [generator.integers(0, 256, (*shape, 3), dtype=np.uint8) for shape in shapes]
    params = SscdParams(kind="sscd", path=str(small / "sscd.torchscript.pt"), side=64, batch=2)
    descriptor = load_descriptor(params, Path(), STORAGE)
    alone = np.concatenate([descriptor.embed([picture]) for picture in pictures])
    np.testing.assert_allclose(descriptor.embed(pictures), alone, atol=1e-5)


def test_whitening_is_fitted_on_a_background_and_pinned(small: Path, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    params = SscdParams(kind="sscd", path=str(small / "sscd.torchscript.pt"), side=32)
    pool = FakePool([generator.integers(0, 256, (40, 48, 3), dtype=np.uint8) for _ in range(60)])
    out = tmp_path / "whitening.safetensors"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("components.dedup.pool.fit.Pool", pool)
        with pytest.raises(VitrailError, match="9 directions of 8 images"):
            fit.whiten(params, folder, out, STORAGE, fit.WhiteningChoice(9, 8, 0.0))
        digest = fit.whiten(params, folder, out, STORAGE, fit.WhiteningChoice(4, 50, 0.0))
        with pytest.raises(VitrailError, match="there already"):
            fit.whiten(params, folder, out, STORAGE, fit.WhiteningChoice(4, 50, 0.0))
    plain = load_descriptor(params, Path(), STORAGE)
    pinned = params.model_copy(update={"whitening": WhiteningParams(path=str(out), sha256=digest)})
    whitened = load_descriptor(pinned, Path(), STORAGE)
    assert (plain.dim, whitened.dim) == (32, 4)
    prepared = [plain.prepare(picture) for picture in pool.pictures]
    tensors = load_safetensors(out.read_bytes())
    expected = (plain.embed(prepared) - tensors["whitening.mean"]) @ tensors["whitening.projection"]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(whitened.embed(prepared), expected, atol=1e-4)
    out.write_bytes(out.read_bytes() + b" ")
    load_sscd.cache_clear()
    with pytest.raises(VitrailError, match="its SHA-256 is"):
        load_descriptor(pinned, Path(), STORAGE)


class FakePool:
    """A pool of pictures in memory."""

    def __init__(self, pictures: list[np.ndarray]) -> None:
        self.pictures = pictures

    def load(self, *_: object) -> FakePool:
        return self

    def store(self) -> None: ...

    def __len__(self) -> int:
        return len(self.pictures)

    def rgb(self, row: int, _: object) -> np.ndarray:
        return self.pictures[row]


def test_the_digest_is_checked(small: Path) -> None:
    path = small / "sscd.torchvision.pt"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    describe(path, sha256=digest.upper())
    with pytest.raises(VitrailError, match=rf"torchvision.pt: its sha256 is {digest}, not {'0' * 64}; fetch it again"):
        describe(path, sha256="0" * 64)


@pytest.fixture
def served(small: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *given: object) -> None:
            super().__init__(*given, directory=str(small))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path == "/cut.pt":
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b"x" * 10)
            else:
                super().do_GET()

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_url_must_be_pinned_and_is_fetched_once(small: Path, served: tuple[str, list[str]], tmp_path: Path) -> None:
    url, asked = served
    address, cache = f"{url}/sscd.torchvision.pt", str(tmp_path / "weights")
    digest = hashlib.sha256((small / "sscd.torchvision.pt").read_bytes()).hexdigest()
    with pytest.raises(VitrailError, match=f"a URL needs its digest beside it; what is there now has sha256: {digest}"):
        describe(address, cache=cache)
    assert not (tmp_path / "weights").exists()
    expected = describe(small / "sscd.torchvision.pt")
    for batch in (1, 2):  # another value, so that the loaded network is not the cached one
        np.testing.assert_allclose(describe(address, sha256=digest, cache=cache, batch=batch), expected, atol=1e-6)
    assert asked == ["/sscd.torchvision.pt"] * 2
    with pytest.raises(VitrailError, match=r"none.pt: cannot be fetched \(HTTP Error 404"):
        describe(f"{url}/none.pt", sha256=digest, cache=str(tmp_path / "other"))
    with pytest.raises(VitrailError, match="broke off after 10 of 1000 bytes"):
        describe(f"{url}/cut.pt", sha256=digest, cache=str(tmp_path / "other"))
    (tmp_path / "weights" / digest).write_bytes(b"tampered")
    with pytest.raises(VitrailError, match=f"{digest}: its sha256 is"):
        describe(address, sha256=digest, cache=cache, batch=3)


def test_weights_on_s3(small: Path, s3_endpoint: str, tmp_path: Path) -> None:
    storage = StorageParams(root="s3://vitrail-test/data", endpoint_url=s3_endpoint)
    data = (small / "sscd.torchvision.pt").read_bytes()
    open_store(storage.model_copy(update={"root": "s3://vitrail-test/models"})).write("sscd.pt", data)
    params = SscdParams(kind="sscd", path="s3://vitrail-test/models/sscd.pt", side=64, cache=str(tmp_path))
    assert load_descriptor(params, Path(), storage).dim == 32
    with pytest.raises(VitrailError, match="no such object"):
        load_descriptor(params.model_copy(update={"path": "s3://vitrail-test/models/none.pt"}), Path(), storage)


class Unsafe:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("ran",))


def test_what_is_no_such_network_is_one_line(small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def bad(data: bytes) -> Path:
        path = tmp_path / "bad.pt"
        path.write_bytes(data)
        return path

    def pytorch(thing: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(thing, buffer)
        return buffer.getvalue()

    whole = (small / "sscd.torchvision.pt").read_bytes()
    script = (small / "sscd.torchscript.pt").read_bytes()
    state = torch.load(io.BytesIO(whole), weights_only=True)
    for data, message in (
        (b"", "not SSCD's TorchScript or state dict"),
        (b"no network", "not SSCD's TorchScript or state dict"),
        (whole[: len(whole) // 2], "not SSCD's TorchScript or state dict"),
        (script[: len(script) // 2], "not SSCD's TorchScript or state dict"),
        (pickle.dumps(Unsafe(), protocol=2), "not SSCD's TorchScript or state dict"),
        (pytorch({"state": Unsafe()}), "not SSCD's TorchScript or state dict"),
        (pytorch([1, 2]), "not a state dict of tensors"),
        (pytorch({"embeddings.1.weight": torch.zeros(2)}), "Classy Vision's layout; take the .torchvision.pt"),
        (pytorch({"weight": torch.zeros(2)}), "no tensor 'conv1.weight'"),
        (pytorch({n: t for n, t in state.items() if "bn2.running_var" not in n}), "Missing key|Error"),
    ):
        with pytest.raises(VitrailError, match=message) as caught:
            describe(bad(data), batch=1)
        assert "\n" not in str(caught.value)
    assert "ran" not in capsys.readouterr().out
    with pytest.raises(VitrailError, match="No such file or directory; download SSCD"):
        describe(tmp_path / "none.pt")
