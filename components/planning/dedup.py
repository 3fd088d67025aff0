"""What deduplicating N images takes: index, memory, disk, hours, from rates measured on the machine at hand.

Every figure is a product of a count and a rate (components/planning/dedup_costs.py). The rates come from half a
minute of the same work on random descriptors, on all cores at once; other numbers of cores
scale them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from components.dedup.decisions.reference import one_ended
from components.dedup.decisions.retrieve import SampleParams
from components.errors import VitrailError
from components.neighbours import expected_recall, factory_for, lists_of, probes_for
from components.neighbours.params import NeighbourParams
from components.planning import dedup_costs as costs
from components.planning.dedup_costs import Join, Machines
from components.planning.dedup_rates import DedupRates, load_rates, measure
from components.progress import duration

if TYPE_CHECKING:
    from components.dedup.params import DedupParams

__all__ = ["DedupRates", "Workload", "load_rates", "measure", "plan"]

LARGEST = 2_000_000_000  # images that a plan is made for
SURVIVE = 744 / 1300  # of the pool, after self-dedup and relative dedup: the paper's


@dataclass(frozen=True)
class Workload:
    """What is to be deduplicated, and on what.

    Raises:
        VitrailError: a number of images or cores that no plan is made for.
    """

    images: float  # of the pool
    dim: int  # of a descriptor
    cores: int | None = None  # to plan for; None: those of the rates
    described: float | None = None  # images described a second; None: that line says what to measure
    held_out: float = 1e6  # images that relative dedup keeps out, of all benchmarks together
    queries: float = 1e6  # images that retrieve, of all sets together, one way (``retrieval.how``)
    gpu_gigabytes: float = 80  # of one GPU

    def __post_init__(self) -> None:
        for name in ("images", "held_out", "queries"):
            value = getattr(self, name)
            if not 1 <= value <= LARGEST:
                raise VitrailError(f"--{name.replace('_', '-')} {value:g}: choose between 1 and {LARGEST:,}")
        if self.cores is not None and self.cores < 1:
            raise VitrailError(f"--cores {self.cores}: choose 1 or more")


def plan(work: Workload, params: DedupParams, rates: DedupRates) -> str:
    """The plan, to read: ``work`` under the stage's ``params``, with the ``rates`` of one machine."""
    count, dim, near = int(work.images), work.dim, params.neighbours
    each, cores = len(params.described_views()), work.cores or rates.cores
    on = Machines(rates, cores / rates.cores)
    pool = join(count * each, count, dim, near)
    disk = {
        "descriptors, fp16": costs.descriptor_bytes(pool.rows, dim),
        "index and its pieces while merging": 2 * costs.index_bytes(pool) if pool.lists else 0.0,
        "edges": costs.edge_bytes(count),
        "decisions, manifest and their joins": costs.join_disk_bytes(count),
    }
    memory = _memory(pool, count, dim, params)
    seconds = _seconds(pool, work, params, on)
    if work.described:
        seconds = {"describe": work.images / work.described} | seconds
    lines = [
        f"{count:,} images, {pool.rows:,} descriptors of {dim}, on {cores} cores (rates of {rates.cores})",
        *_index_lines(pool, near, work),
        *_block(
            "memory, step by step", {n: _bytes(v) for n, v in memory.items()}, "most", _bytes(max(memory.values()))
        ),
        *_block("disk", {n: _bytes(v) for n, v in disk.items()}, "in all", _bytes(sum(disk.values()))),
        *_block("time", {n: duration(v) for n, v in seconds.items()}, "in all", duration(sum(seconds.values()))),
        f"for {int(work.held_out):,} held-out images (--held-out) and {int(work.queries):,} queries (--queries); "
        f"{SURVIVE:.0%} of the pool survives, as the paper's",
    ]
    if not work.described:
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


def _seconds(pool: Join, work: Workload, params: DedupParams, on: Machines) -> dict[str, float]:
    count, dim, held_out, queries = int(work.images), work.dim, int(work.held_out), int(work.queries)
    each, near, survivors = len(params.described_views()), params.neighbours, max(1, int(count * SURVIVE))
    # before the run nobody knows what a measured threshold comes to: its least, for which most lists are visited
    least = {"auto": params.auto.least_relative, "calibrated": 0.45}
    given = params.relative.threshold
    at_relative = least[given] if isinstance(given, str) else float(given)
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


def _index_lines(pool: Join, near: NeighbourParams, work: Workload) -> list[str]:
    if not pool.lists:
        return ["index: Flat (exact)"]
    dim = work.dim
    factory, cosine = factory_for(pool.rows, dim, near, gpu=False), near.edge_cosine
    on_gpu = join(pool.rows, pool.queries, dim, near, gpu=True)
    gpus = costs.gpus_for(on_gpu, work.gpu_gigabytes * 1e9)
    return [
        f"index: {factory}, {pool.probes:,} of {pool.lists:,} lists visited",
        f"  expected recall of edges at cosine {cosine:g} among rows uniform on the sphere: "
        f"{expected_recall(pool.lists, pool.probes, cosine):.3f}; closer edges and rows in clusters are found more "
        "often; a run measures its own",
        f"on GPUs: {factory_for(pool.rows, dim, near, gpu=True)}, {on_gpu.probes:,} lists visited (FAISS takes "
        f"no more than 2,048), expected recall {expected_recall(on_gpu.lists, on_gpu.probes, cosine):.3f}; "
        f"{gpus} of {work.gpu_gigabytes:g} GB hold it. Their time was not measured; the paper: 2 days on 160 of 32 GB",
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
