"""Maps, curation and dedup on a real Ray cluster of two nodes on this machine; a worker and a node die on the way."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import threadpoolctl
from hostile_images import bomb, noise, saved
from patience import PATIENCE
from PIL import Image

from components import quality
from components.benchmark.features import spread
from components.benchmark.features.contenders import BaselineParams, gather
from components.context import StageContext
from components.curate import passes
from components.curate import stage as curation
from components.curate.duplicates import near
from components.curate.params import CurateParams
from components.dedup import stage as deduplication
from components.errors import VitrailError
from components.evaluation.features.extract import FeatureParams
from components.evaluation.sets.benchmarks import BenchmarksFile
from components.evaluation.sets.labelled_set import ImageFiles
from components.executor import ExecutorParams, map_shards
from components.params import load_params
from components.release.weights.export import save_model
from components.storage import StorageParams
from components.tables.parts import read_table
from components.tables.schemas import AUDIT, DECISIONS, INDEX, KEYS, LINKS, MANIFEST
from components.web.formats.warc import WarcWriter
from components.web.sources.sources_json import register
from perf._two_nodes import patient, two_nodes
from tests.components.dedup.dedup_pool import plain
from tests.components.release.small_models import small_model

ROOT = Path(__file__).resolve().parents[2]
STORAGE = StorageParams(root="data")
WORK = f"""
import os, signal, time
from pathlib import Path
from components.curate.duplicates import near
from components.curate.pixels import examine as decoding
from components.errors import VitrailError

def first(name):
    try:
        Path(name).touch(exist_ok=False)
        return True
    except FileExistsError:
        return False

def node():
    import ray
    return ray.get_runtime_context().get_node_id()

def met(number):  # waits for a second node, as each of two nodes has one CPU
    Path("met-" + node()).touch()
    end = time.monotonic() + {PATIENCE / 3}
    while len(list(Path().glob("met-*"))) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return node(), os.environ["OMP_NUM_THREADS"]

def refuse(number):
    raise VitrailError(f"shard {{number}}: unreadable")

def die(number):
    os._exit(9)

def elsewhere(number):
    return Path("/nowhere/at/all")

def examine(item):  # as the stage decodes; a worker dies when its first file is written
    done = decoding.examine(item)
    if first("worker-killed"):
        os._exit(9)
    return done

def bright(params):  # a filter, whose scores are in the audit
    return lambda images: [float(image.mean()) / 255 for image in images]

def find_pairs(item):  # as the stage joins; the second node dies in its first partition, and until then none is done
    second, raylet = Path("second").read_text().split()
    if node() == second and first("node-killed"):
        os.kill(int(raylet), signal.SIGKILL)
        os._exit(9)
    end = time.monotonic() + {PATIENCE / 3}
    while not Path("node-killed").exists() and time.monotonic() < end:
        time.sleep(0.01)
    return near.find_pairs(item)
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working directory, which nodes import ``mapped`` from."""
    folder = tmp_path_factory.mktemp("ray")
    (folder / "mapped.py").write_text(WORK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(str(folder))
        yield folder
    sys.modules.pop("mapped", None)


@pytest.fixture(scope="module")
def cluster(work: Path) -> Iterator[Any]:
    """A head and a second node, one CPU each."""
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in patient(PATIENCE // 3).items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", str(ROOT), prepend=":")
        import ray

        nodes = two_nodes(object_store=100 * 1024**2)
        yield nodes
        ray.shutdown()
        nodes.shutdown()
    signal.signal(signal.SIGTERM, before)  # a head that this process started takes it


@pytest.fixture
def on_ray(cluster: Any) -> ExecutorParams:
    """The executor of the cluster."""
    return ExecutorParams(kind="ray", address=cluster.address, retries=3)


def test_a_map_uses_both_nodes_and_tells_of_faults_in_one_line(on_ray: ExecutorParams) -> None:
    import mapped

    def own(number: int, frame: object) -> None: ...

    signal.signal(signal.SIGTERM, own)  # as a tracked stage has one, which closes its MLflow run
    calm = list(map_shards(mapped.met, range(4), on_ray))
    assert len({node for node, _ in calm}) == 2
    assert {threads for _, threads in calm} == {"1"}
    assert signal.getsignal(signal.SIGTERM) is own
    with pytest.raises(VitrailError, match=r"^shard 0: unreadable$"):
        list(map_shards(mapped.refuse, range(3), on_ray))
    with pytest.raises(VitrailError, match="a shard was lost 1 times"):
        list(map_shards(mapped.die, range(1), on_ray.model_copy(update={"retries": 0})))
    with pytest.raises(VitrailError, match="not the same place on every node"):
        list(map_shards(mapped.elsewhere, range(2), on_ray))


def test_features_of_a_benchmark_are_those_of_one_process(
    on_ray: ExecutorParams, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(small_model(), tmp_path / "model")
    contenders = gather([tmp_path / "model"], FeatureParams(), BaselineParams(raw_side=8), "cpu")
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, file in enumerate(files):
        file.write_bytes(saved(noise(seed=number), "PNG"))
    pictures = spread.Pictured(ImageFiles(files), lambda: ["digests"], "features")
    place = spread.Placement(on_ray, "cpu", tmp_path / "features")
    monkeypatch.setattr(spread, "PART", 1)
    found, here = (spread.features_of(contenders, pictures, 1, where) for where in (place, spread.HERE))
    assert {name: rows.shape[0] for name, rows in found.items()} == {one.name: 4 for one in contenders}
    for name, expected in here.items():
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    assert not (tmp_path / "features").exists()


def crawled(folder: Path) -> Path:
    """A crawl of three pages that name 46 images: copies of some, likenesses of others, and two that cost too much."""
    rng = np.random.default_rng(12)
    small = [Image.fromarray(rng.integers(0, 255, (8, 8, 3), np.uint8)) for _ in range(32)]
    pictures = [one.resize((72, 72), Image.Resampling.BICUBIC) for one in small]
    images = [saved(one, "JPEG", quality=90) for one in pictures]
    images += images[:4] + [saved(one, "JPEG", quality=80) for one in pictures[4:8]]
    for one in pictures[8:12]:  # too unlike for the hash, alike for descriptors
        rough = np.asarray(one) + rng.normal(0, 15, (72, 72, 3))
        images.append(saved(Image.fromarray(rough.clip(0, 255).astype(np.uint8)), "JPEG", quality=90))
    images += [saved(Image.new("RGB", (5000, 5000)), "PNG"), bomb("PNG")]
    (folder / "in").mkdir()
    for name in ("pages", "images"):
        with open(folder / f"in/{name}.warc.gz", "wb") as file:
            writer = WarcWriter(file, "2026-01-01T00:00:00Z")
            for page in range(3) if name == "pages" else ():
                html = "".join(f'<img src="/{n}" alt="picture {n}">' for n in range(15 * page, 15 * page + 16))
                writer.response(f"http://h.test/page{page}", 200, "OK", [("Content-Type", "text/html")], html.encode())
            for number, data in enumerate(images) if name == "images" else ():
                writer.response(f"http://h.test/{number}", 200, "OK", [("Content-Type", "image/jpeg")], data)
    (folder / "crawl").mkdir()
    register(str(folder / "in"), STORAGE).save(folder / "crawl")
    return folder / "crawl"


def curate(crawl: Path, out: Path, executor: ExecutorParams) -> Path:
    sets = [
        "nsfw.enabled=false", "faces.enabled=false", "policy.restricted=[]", "policy.forgotten=[]",
        "sandbox.megabytes=64", "chunk=8", "least_kept=0",
        "filters=[{name: bright, call: mapped:bright, threshold: 0.53}]",
    ]  # fmt: skip
    params = load_params(ROOT / "params/curate.yaml", CurateParams, sets).model_copy(update={"executor": executor})
    curation.run(params, curation.CurateInputs(crawl), out, StageContext(STORAGE, None, None))
    return out


def dedup(curated: Path, out: Path, executor: ExecutorParams) -> Path:
    given = plain(chunk=8, graph={"threshold": 0.8}, executor=executor.model_dump())
    inputs = deduplication.DedupInputs(curated, BenchmarksFile(benchmarks={}))
    deduplication.run(given, inputs, out, StageContext(STORAGE, None, None))
    return out


def contents(out: Path, tables: dict[str, tuple[pa.Schema, Sequence[str]]]) -> dict[str, bytes]:
    """The bytes of an output's tables, each sorted by its key, and of its shards and arrays."""
    found = {path.name: path.read_bytes() for path in (*out.glob("shards/*.tar"), *out.glob("*.npy"))}
    for name, (schema, key) in tables.items():
        table = read_table(out / name, schema).sort_by([(column, "ascending") for column in key]).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        found[name] = sink.getvalue().to_pybytes()
    return found


CURATED = {"index": (INDEX, ["key"]), "links": (LINKS, ["position"]), "audit": (AUDIT, ["key", "check"])}
DECIDED = {"manifest": (MANIFEST, ["key"]), "decisions": (DECISIONS, ["key"]), "keys": (KEYS, ["key"])}


def test_stages_give_the_tables_of_one_machine_also_when_a_node_dies_in_a_join(
    cluster: Any, on_ray: ExecutorParams, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mapped

    honest = near.near_copies
    monkeypatch.setattr(near, "near_copies", lambda hashed, out, how: honest(hashed, out, replace(how, partition=8)))
    for check in ("validate", "validate_files"):
        monkeypatch.setattr(quality, check, lambda *_, **__: None)  # Great Expectations' seconds are tested elsewhere
    monkeypatch.setattr(deduplication, "check_edges", lambda *_: None)
    crawl = crawled(tmp_path)
    with threadpoolctl.threadpool_limits(1):  # a product's last bit depends on it, and nodes' tasks have one
        alone = curate(crawl, tmp_path / "alone", ExecutorParams(workers=0))
        decided = dedup(alone, tmp_path / "alone-dedup", ExecutorParams(workers=0))
        reasons = set(read_table(alone / "index", INDEX)["reason"].to_pylist())
        reasons |= set(read_table(decided / "decisions", DECISIONS)["reason"].to_pylist())
        assert reasons >= {"exact-duplicate", "near-duplicate", "too-much-memory", "too-many-pixels", "filter:bright"}
        assert "self-duplicate" in reasons
        assert len(read_table(alone / "audit", AUDIT)) > 30
        spread_out = curate(crawl, tmp_path / "both", on_ray)
        assert contents(spread_out, CURATED) == contents(alone, CURATED)
        also = dedup(alone, tmp_path / "both-dedup", on_ray)
        assert contents(also, DECIDED) == contents(decided, DECIDED)

    (second,) = cluster.worker_nodes
    (raylet,) = second.all_processes["raylet"]
    (work / "second").write_text(f"{second.node_id} {raylet.process.pid}")
    monkeypatch.setattr(passes, "examine", mapped.examine)
    monkeypatch.setattr(near, "find_pairs", mapped.find_pairs)
    struck = curate(crawl, tmp_path / "struck", on_ray)
    assert (work / "worker-killed").exists()
    assert (work / "node-killed").exists()
    assert raylet.process.wait(PATIENCE / 3) == -signal.SIGKILL
    assert contents(struck, CURATED) == contents(alone, CURATED)


def test_a_cluster_that_is_not_there_is_one_line() -> None:
    ray = sys.modules.get("ray")
    if ray is not None:
        ray.shutdown()  # the other tests' cluster, which this process is connected to
    for address, words in (("127.0.0.1:1", "refused"), ("nonsense", "HOST:PORT")):
        with pytest.raises(VitrailError, match=words) as fault:
            list(map_shards(len, ["a"], ExecutorParams(kind="ray", address=address)))
        assert "\n" not in str(fault.value)
