"""Maps over a real Ray cluster of two nodes on this machine; a worker and a node are killed on the way."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
from hostile_images import bomb, noise, saved
from patience import PATIENCE
from PIL import Image

from components.benchmark.features import spread
from components.benchmark.features.contenders import BaselineParams, gather
from components.curate.examine import ChunkItem, examine
from components.curate.places import Place
from components.errors import VitrailError
from components.evaluation.features.extract import FeatureParams
from components.evaluation.sets.labelled_set import ImageFiles
from components.executor import ExecutorParams, map_shards
from components.images.decode import DecodeLimits
from components.images.sandbox import SandboxParams
from components.release.weights.export import save_model
from components.storage import open_store
from tests.components.release.small_models import small_model

ROOT = Path(__file__).resolve().parents[2]
WORK = """
import os, signal, time
from pathlib import Path
from components.errors import VitrailError

def first(name):
    try:
        Path(name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def square(item):
    import ray
    number, head, faults = item
    node = ray.get_runtime_context().get_node_id()
    time.sleep(0.2)
    if faults and number == 3 and first("worker-killed"):
        os._exit(9)
    if faults and node != head and first("node-killed"):
        os.kill(os.getppid(), signal.SIGKILL)  # a worker's parent is its node's raylet
        os._exit(9)
    Path(f"{number}.txt").write_text(str(number * number))
    return number * number, node, os.environ["OMP_NUM_THREADS"]

def refuse(number):
    raise VitrailError(f"shard {number}: unreadable")

def die(number):
    os._exit(9)

def elsewhere(number):
    return Path("/nowhere/at/all")
"""


def two_nodes() -> Any:
    """A head and a second node, one CPU each.

    A node ends itself where its agents need more than 15 seconds to start, and Ray waits 30 seconds for a node. On a
    busy machine both happen, and only a new cluster helps.
    """
    from ray.cluster_utils import Cluster

    end = time.monotonic() + PATIENCE / 2
    while True:
        nodes = Cluster()
        try:
            nodes.add_node(num_cpus=1, include_dashboard=False)
            nodes.add_node(num_cpus=1)
            return nodes
        except Exception:  # which is what Ray raises where a node does not start
            nodes.shutdown()
            if time.monotonic() > end:
                raise


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Two nodes; the working directory holds the functions that are mapped."""
    (tmp_path / "mapped.py").write_text(WORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=":")
    before = signal.getsignal(signal.SIGTERM)
    nodes = two_nodes()
    yield nodes
    ray.shutdown()
    nodes.shutdown()
    signal.signal(signal.SIGTERM, before)  # a head that this process started takes it


def test_a_cluster_of_two_nodes(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mapped

    def own(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, own)  # as a tracked stage has one, which closes its MLflow run
    params = ExecutorParams(kind="ray", address=cluster.address, retries=3)
    head = cluster.head_node.node_id
    used, end = set[str](), time.monotonic() + PATIENCE / 3
    while len(used) < 2 and time.monotonic() < end:  # a second node may be slow to take tasks
        calm = list(map_shards(mapped.square, [(n, head, False) for n in range(8)], params))
        assert [value for value, _, _ in calm] == [n * n for n in range(8)]
        assert {threads for _, _, threads in calm} == {"1"}
        used |= {node for _, node, _ in calm}
    assert len(used) == 2
    assert signal.getsignal(signal.SIGTERM) is own

    with pytest.raises(VitrailError, match=r"^shard 0: unreadable$"):
        list(map_shards(mapped.refuse, range(3), params))
    with pytest.raises(VitrailError, match="a shard was lost 1 times"):
        list(map_shards(mapped.die, range(2), params.model_copy(update={"retries": 0})))
    with pytest.raises(VitrailError, match="not the same place on every node"):
        list(map_shards(mapped.elsewhere, range(2), params))

    # Images are decoded in processes of their own on the nodes too, within their limits.
    large, small = saved(Image.new("RGB", (5000, 5000)), "PNG"), saved(noise(), "PNG")
    for name, data in {"a.png": large, "b.png": small, "c.png": bomb("PNG"), "d.png": small}.items():
        (tmp_path / name).write_bytes(data)
    items = [
        ChunkItem(open_store(str(tmp_path)), tuple(Place(n, f"{n}.png", -1, 0) for n in names),
                  tmp_path / f"{names}.parquet", DecodeLimits(), SandboxParams(megabytes=64))
        for names in ("ab", "cd")
    ]  # fmt: skip
    rows = [row for path in map_shards(examine, items, params) for row in pq.read_table(path).to_pylist()]
    assert [row["reason"] for row in rows] == ["too-much-memory", "", "too-many-pixels", ""]

    # Features of a benchmark's images, as one process computes them: of raw pixels, and of networks read on the nodes.
    save_model(small_model(), tmp_path / "model")
    contenders = gather([tmp_path / "model"], FeatureParams(), BaselineParams(raw_side=8), "cpu")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(saved(noise(seed=number), "PNG"))
    pictures = spread.Pictured(ImageFiles(files), lambda: ["digests"], "features")
    place = spread.Placement(params, "cpu", tmp_path / "features")
    monkeypatch.setattr(spread, "PART", 1)
    found, here = (spread.features_of(contenders, pictures, 1, where) for where in (place, spread.HERE))
    assert {name: rows.shape[0] for name, rows in found.items()} == {one.name: 4 for one in contenders}
    for name, expected in here.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "features").exists()

    for file in tmp_path.glob("*.txt"):
        file.unlink()
    struck = list(map_shards(mapped.square, [(n, head, True) for n in range(8)], params))
    assert (tmp_path / "worker-killed").exists()
    assert (tmp_path / "node-killed").exists()
    assert [value for value, _, _ in struck] == [n * n for n in range(8)]
    assert sorted(file.stem for file in tmp_path.glob("*.txt")) == [str(n) for n in range(8)]


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    for address, words in (("127.0.0.1:1", "refused"), ("nonsense", "HOST:PORT")):
        with pytest.raises(VitrailError, match=words) as fault:
            list(map_shards(len, ["a"], ExecutorParams(kind="ray", address=address)))
        assert "\n" not in str(fault.value)
