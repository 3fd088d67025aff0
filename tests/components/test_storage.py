"""One behaviour, two stores: a local folder, and S3 over real HTTP against moto's server."""

from __future__ import annotations

import http.server
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest

from components.errors import VitrailError
from components.storage import LocalStore, S3Store, StorageParams, Store, atomic_dir, atomic_file, open_store, publish


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(str(tmp_path), "below")
    else:
        endpoint = request.getfixturevalue("s3_endpoint")
        root = f"s3://vitrail-test/{tmp_path.name}"
        yield open_store(StorageParams(root=root, endpoint_url=endpoint, region="us-east-1"), "below")


def test_writes_reads_ranges_lists_and_deletes(store: Store, tmp_path: Path) -> None:
    assert store.root.endswith("/below")
    store.write("a/one", b"0123456789")
    store.write("a/two", b"")
    (tmp_path / "file").write_bytes(b"from a file")
    store.put_file("b/three", tmp_path / "file")

    assert store.read("a/one") == b"0123456789"
    assert store.read("a/one", 3, 4) == b"3456"
    assert store.read("a/one", 7) == b"789"
    assert store.read("a/one", 2, 0) == b""
    assert store.size("b/three") == 11
    assert list(store.list()) == ["a/one", "a/two", "b/three"]
    assert list(store.list("a")) == ["a/one", "a/two"]

    store.get_file("b/three", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"from a file"

    store.copy("b/three", "c/four")
    assert store.read("c/four") == store.read("b/three")
    store.delete("c/four")

    store.write("a/one", b"replaced")
    assert store.read("a/one") == b"replaced"
    store.delete("a/one")
    store.delete("a/one")
    assert not store.exists("a/one")
    assert store.exists("a/two")


def test_of_several_that_create_one_name_at_once_one_does(store: Store) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda at: store.create("claim", b"%d" % at), range(8)))
    assert made.count(True) == 1
    assert store.read("claim") == b"%d" % made.index(True)
    assert not store.create("claim", b"later")
    assert list(store.list()) == ["claim"], "neither a probe nor a partial file stays"


class WithoutConditions(http.server.BaseHTTPRequestHandler):
    """An S3 server that refuses ``If-None-Match`` (501), or takes no notice of it."""

    refuses: ClassVar[bool] = True
    objects: ClassVar[dict[str, bytes]] = {}

    def _answer(self, code: int, body: bytes = b"") -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers["If-None-Match"] and self.refuses:
            self._answer(501, b"<Error><Code>NotImplemented</Code><Message>no</Message></Error>")
            return
        self.objects[self.path] = data
        self._answer(200)

    def do_HEAD(self) -> None:
        self._answer(200 if self.path in self.objects else 404)

    def do_DELETE(self) -> None:
        self.objects.pop(self.path, None)
        self._answer(204)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("refuses", [True, False], ids=["refused", "ignored"])
def test_a_server_without_conditional_writes_is_known_by_a_probe(
    refuses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setattr(WithoutConditions, "refuses", refuses)
    monkeypatch.setattr(WithoutConditions, "objects", {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithoutConditions) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        place = S3Store("s3://bucket/x", StorageParams(root="s3://bucket/x", endpoint_url=endpoint, max_attempts=1))
        assert not place.conditional()
        assert place.create("claim", b"1")
        assert not place.create("claim", b"2")
        assert WithoutConditions.objects == {"/bucket/x/claim": b"1"}
        server.shutdown()


def test_a_missing_name_is_one_line_that_names_it(store: Store, tmp_path: Path) -> None:
    for call in (lambda: store.read("nope"), lambda: store.get_file("nope", tmp_path / "x")):
        with pytest.raises(VitrailError, match=r"below/nope.*(no such|NoSuchKey)") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


def test_names_cannot_leave_the_root(store: Store) -> None:
    for name in ("../outside", "/etc/passwd", "a/../../b"):
        with pytest.raises(VitrailError, match="must be relative"):
            store.write(name, b"")


def test_a_store_travels_to_a_worker(store: Store) -> None:
    store.write("x", b"1")
    assert pickle.loads(pickle.dumps(store)).read("x") == b"1"


def test_an_unreachable_server_and_a_missing_bucket_are_one_line(s3_endpoint: str) -> None:
    closed = StorageParams(root="s3://b/p", endpoint_url="http://127.0.0.1:9", region="us-east-1", max_attempts=1)
    with pytest.raises(VitrailError, match=r"cannot reach S3 at http://127.0.0.1:9"):
        open_store(closed).read("x")
    missing = StorageParams(root="s3://no-such-bucket/p", endpoint_url=s3_endpoint, region="us-east-1")
    with pytest.raises(VitrailError, match="does not exist"):
        open_store(missing).write("x", b"")
    with pytest.raises(VitrailError, match="no bucket"):
        open_store(StorageParams(root="s3:///p"))


def test_finished_files_are_published_unless_the_output_is_the_place(in_tmp: Path, s3_endpoint: str) -> None:
    (in_tmp / "out").mkdir()
    (in_tmp / "out/model.json").write_text("{}")
    assert publish(StorageParams(root="data"), in_tmp / "out", ["model.json"], "pretrain", "d1") is None
    assert [path.name for path in in_tmp.iterdir()] == ["out"]
    s3 = StorageParams(root="s3://vitrail-test/published", endpoint_url=s3_endpoint, region="us-east-1")
    for params in (StorageParams(root=str(in_tmp / "store")), s3):
        place = publish(params, in_tmp / "out", ["model.json"], "pretrain", "d1")
        assert place == f"{params.root}/pretrain/d1"
        assert open_store(params).read("pretrain/d1/model.json") == b"{}"


def test_roots_choose_the_store() -> None:
    assert isinstance(open_store("data"), LocalStore)
    assert isinstance(open_store("s3://bucket/prefix"), S3Store)


def test_nothing_half_written_keeps_a_name(tmp_path: Path) -> None:
    (tmp_path / "whole").write_bytes(b"old")

    def fail_in_file() -> None:
        with atomic_file(tmp_path / "whole") as file:
            file.write(b"half")
            raise RuntimeError("stopped")

    def fail_in_dir() -> None:
        with atomic_dir(tmp_path / "folder") as folder:
            (folder / "half").write_bytes(b"x")
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        fail_in_file()
    with pytest.raises(RuntimeError, match="stopped"):
        fail_in_dir()
    assert (tmp_path / "whole").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["whole"]

    with atomic_dir(tmp_path / "folder") as folder:
        (folder / "new").write_bytes(b"x")
    with atomic_dir(tmp_path / "folder") as folder:
        (folder / "newer").write_bytes(b"x")
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["newer"]


@pytest.mark.skipif(
    subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode != 0,
    reason="left out: this machine lets nobody mount a small disk (unshare)",
)
@pytest.mark.parametrize(("options", "words"), [("size=100k", "the disk is full"), ("ro", "read-only")])
@pytest.mark.parametrize("how", ["atomic_file(out)", "atomic_dir(out)", "hold(out)"])
def test_the_path_that_was_written_to_is_named(tmp_path: Path, options: str, words: str, how: str) -> None:
    (tmp_path / "disk").mkdir()
    code = (
        "from pathlib import Path\nfrom components.errors import run_cli\nfrom components.lock import hold\n"
        "from components.storage import atomic_dir, atomic_file\n"
        f"out = Path({str(tmp_path / 'disk/out')!r})\n"
        f"def main(argv):\n    with {how} as made:\n"
        "        file = made if hasattr(made, 'write') else open((made or out.parent) / 'x', 'wb')\n"
        "        file.write(bytes(1_000_000))\n        file.flush()\n"
        "raise SystemExit(run_cli(main))"
    )
    shell = f'mount -t tmpfs -o {options} none {tmp_path}/disk && exec {sys.executable} -c "$CODE"'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", shell], env=os.environ | {"CODE": code}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert words in done.stderr
    assert str(tmp_path / "disk") in done.stderr
    assert done.stderr.count("\n") == 1


class Flaky(http.server.BaseHTTPRequestHandler):
    """Answers a GET of ``/bucket/KEY`` by the list of faults in ``script``, then with ten bytes."""

    script: ClassVar[list[str]] = []
    asked: ClassVar[int] = 0
    released: ClassVar[threading.Event] = threading.Event()

    def do_GET(self) -> None:
        type(self).asked += 1
        fault = self.script.pop(0) if self.script else ""
        if fault.isdigit():
            self.send_error(int(fault))
            return
        if fault == "hang":  # a network that swallows the request
            self.released.wait(60)
            return
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"0123456789" if not fault else b"0123")
        if fault == "stall":
            self.wfile.flush()
            self.released.wait(60)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("script", "asked"),
    [
        (["500"], 2),
        (["503", "503"], 3),
        (["cut"], 2),
        (["cut", "cut"], 3),
        (["503", "cut"], 3),
        (["hang"], 2),
        (["stall"], 2),
        (["hang", "stall"], 3),
    ],
)
def test_a_server_that_stumbles_is_asked_again(
    monkeypatch: pytest.MonkeyPatch, script: list[str], asked: int, s3_endpoint: str
) -> None:
    monkeypatch.setattr(Flaky, "script", script)
    monkeypatch.setattr(Flaky, "asked", 0)
    monkeypatch.setattr("components.storage.s3.time.sleep", lambda _: None)
    monkeypatch.setattr(Flaky, "released", threading.Event())
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda _: None)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Flaky) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        patience = 1.0 if {"hang", "stall"} & set(script) else 60.0
        params = StorageParams(root="s3://bucket", endpoint_url=url, region="us-east-1", read_timeout=patience)
        store = open_store(params)
        assert store.read("key") == b"0123456789"
        assert Flaky.asked >= asked if patience < 60 else Flaky.asked == asked  # a busy machine may lose one more
        Flaky.script[:] = ["cut"] * 3
        with pytest.raises(VitrailError, match="cannot reach S3"):
            store.read("key")
        Flaky.released.set()
        server.shutdown()
