"""What deduplicating N images takes: index, memory, disk, hours, from rates measured on the machine at hand.

Every figure is a product of a count and a rate (components/planning/dedup_costs.py). The rates come from half a
minute of the same work on random descriptors, on all cores at once; other numbers of cores
scale them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from components.dedup.reference import one_ended
from components.dedup.retrieve import SampleParams
from components.errors import VitrailError
from components.neighbours import expected_recall, factory_for, lists_of, probes_for
from components.neighbours.params import NeighbourParams
from components.planning import dedup_costs as costs
from components.planning.dedup_costs import Join, Machines
from components.planning.dedup_rates import Rates, load_rates, measure
from components.progress import duration

if TYPE_CHECKING:
    from components.dedup.params import DedupParams

__all__ = ["Rates", "load_rates", "measure", "plan"]

LARGEST = 2_000_000_000  # images that a plan is made for
SURVIVE = 744 / 1300  # of the pool, after self-dedup and relative dedup: the paper's


def plan(
    images: float,
    dim: int,
    params: DedupParams,
    rates: Rates,
    cores: int | None = None,
    described: float | None = None,
    held_out: float = 1e6,
    queries: float = 1e6,
    gpu_gigabytes: float = 80,
) -> str:
    """The plan, to read.

    Args:
        images: of the pool.
        dim: of a descriptor.
        params: of the stage.
        rates: of one machine.
        cores: to plan for; None: those of the rates.
        described: images described a second; None: that line says what to measure.
        held_out: images that relative dedup keeps out, of all benchmarks together.
        queries: images that retrieve, of all sets together, one way (``retrieval.how``).
        gpu_gigabytes: of one GPU.

    Raises:
        VitrailError: a number of images or cores that no plan is made for.
    """
    for name, value in (("--images", images), ("--held-out", held_out), ("--queries", queries)):
        if not 1 <= value <= LARGEST:
            raise VitrailError(f"{name} {value:g}: choose between 1 and {LARGEST:,}")
    if cores is not None and cores < 1:
        raise VitrailError(f"--cores {cores}: choose 1 or more")
    count, each, near = int(images), len(params.described_views()), params.neighbours
    cores = cores or rates.cores
    on = Machines(rates, cores / rates.cores)
    pool = join(count * each, count, dim, near)
    disk = {
        "descriptors, fp16": costs.descriptor_bytes(pool.rows, dim),
        "index and its pieces while merging": 2 * costs.index_bytes(pool) if pool.lists else 0.0,
        "edges": costs.edge_bytes(count),
        "decisions, manifest and their joins": costs.join_disk_bytes(count),
    }
    memory = _memory(pool, count, dim, params)
    seconds = _seconds(pool, count, each, dim, params, on, int(held_out), int(queries))
    if described:
        seconds = {"describe": images / described} | seconds
    lines = [
        f"{count:,} images, {pool.rows:,} descriptors of {dim}, on {cores} cores (rates of {rates.cores})",
        *_index_lines(pool, near, dim, gpu_gigabytes),
        *_block(
            "memory, step by step", {n: _bytes(v) for n, v in memory.items()}, "most", _bytes(max(memory.values()))
        ),
        *_block("disk", {n: _bytes(v) for n, v in disk.items()}, "in all", _bytes(sum(disk.values()))),
        *_block("time", {n: duration(v) for n, v in seconds.items()}, "in all", duration(sum(seconds.values()))),
        f"for {int(held_out):,} held-out images (--held-out) and {int(queries):,} queries (--queries); "
        f"{SURVIVE:.0%} of the pool survives, as the paper's",
    ]
    if not described:
        lines.append("describing is left out: give --images-per-second of your descriptor and machines")
    return "\n".join(lines)


def join(rows: int, queries: int, dim: int, near: NeighbourParams, *, gpu: bool = False) -> Join:
    """The search that ``near`` makes of ``queries`` among ``rows``."""
    factory = factory_for(rows, dim, near, gpu=gpu)
    lists = lists_of(factory)
    return Join(
        rows=rows,
        queries=queries,
        dim=dim,
        lists=lists,
        probes=probes_for(factory, near, gpu=gpu),
        graph="HNSW" in factory,
        code=near.pq_bytes,
        train=min(rows, near.train_per_list * lists),
    )


def _memory(pool: Join, count: int, dim: int, params: DedupParams) -> dict[str, float]:
    """Bytes that each step holds; pieces and searches hold theirs in each process."""
    survivors = int(count * SURVIVE)
    found = {
        "training the lists": costs.training_bytes(pool) + costs.centre_bytes(pool),
        "search, a process": costs.index_bytes(pool) + costs.centre_bytes(pool),
        "components and representatives": costs.label_bytes(count),
        "joins (memory.megabytes)": params.memory.megabytes * 1e6,
    }
    if params.retrieval is not None and not isinstance(params.retrieval.how, SampleParams):
        found["clusters of what survives"] = costs.kmeans_bytes(survivors, params.retrieval.how.clusters, dim)
    if params.balance is not None:
        found["balancing"] = costs.kmeans_bytes(survivors, params.balance.levels[0].clusters, dim)
    return found


def _seconds(
    pool: Join, count: int, each: int, dim: int, params: DedupParams, on: Machines, held_out: int, queries: int
) -> dict[str, float]:
    near, survivors = params.neighbours, max(1, int(count * SURVIVE))
    at_relative = 0.45 if params.relative.threshold == "calibrated" else float(params.relative.threshold)
    found = {
        "train the lists": costs.kmeans_seconds(pool.train, pool.lists, dim, costs.ITERATIONS, on),
        "fill the index": costs.fill_seconds(pool, on),
    }
    if pool.lists:
        found |= {
            "search: centres": costs.centres_seconds(pool, on),
            "search: codes": costs.codes_seconds(pool, on),
            "search: exact scores": costs.rescore_seconds(pool, on),
            "recall of a sample": costs.product_seconds(min(near.recall_sample, count), pool.rows, dim, on),
        }
    else:
        found["search: exact"] = costs.product_seconds(count, pool.rows, dim, on)
    found["components"] = costs.component_seconds(count, on)
    # Whole pool images among the held-out images' views, and the pool's views among whole held-out images.
    ways = [
        join(among, asked, dim, one_ended(among, at_relative, near))
        for among, asked in ((held_out * each, count), (held_out, count * each))
    ]
    found["relative dedup"] = sum(costs.build_seconds(way, on) + costs.search_seconds(way, on) for way in ways)
    if params.retrieval is not None:
        how = params.retrieval.how
        if isinstance(how, SampleParams):
            among = join(survivors, queries, dim, near)
            found["retrieval"] = costs.build_seconds(among, on) + costs.search_seconds(among, on)
        else:
            found["retrieval: clusters"] = costs.kmeans_seconds(survivors, how.clusters, dim, how.iterations + 1, on)
            found["retrieval: queries"] = costs.product_seconds(queries, how.clusters, dim, on)
    if params.balance is not None:
        levels = [(level.clusters, level.resampling, level.points) for level in params.balance.levels]
        found["balancing"] = costs.balance_seconds(survivors, levels, dim, params.balance.iterations, on)
    return found


def _index_lines(pool: Join, near: NeighbourParams, dim: int, gpu_gigabytes: float) -> list[str]:
    if not pool.lists:
        return ["index: Flat (exact)"]
    factory, cosine = factory_for(pool.rows, dim, near, gpu=False), near.edge_cosine
    on_gpu = join(pool.rows, pool.queries, dim, near, gpu=True)
    gpus = costs.gpus_for(on_gpu, gpu_gigabytes * 1e9)
    return [
        f"index: {factory}, {pool.probes:,} of {pool.lists:,} lists visited",
        f"  expected recall of edges at cosine {cosine:g} among rows uniform on the sphere: "
        f"{expected_recall(pool.lists, pool.probes, cosine):.3f}; closer edges and rows in clusters are found more "
        "often; a run measures its own",
        f"on GPUs: {factory_for(pool.rows, dim, near, gpu=True)}, {on_gpu.probes:,} lists visited (FAISS takes "
        f"no more than 2,048), expected recall {expected_recall(on_gpu.lists, on_gpu.probes, cosine):.3f}; "
        f"{gpus} of {gpu_gigabytes:g} GB hold it. Their time was not measured; the paper: 2 days on 160 of 32 GB",
    ]


def _block(title: str, values: dict[str, str], last: str, total: str) -> list[str]:
    width = max(map(len, values))
    return [
        f"{title}:",
        *(f"  {name:{width}}  {value:>12}" for name, value in values.items()),
        f"  {last:{width}}  {total:>12}",
    ]


def _bytes(value: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
