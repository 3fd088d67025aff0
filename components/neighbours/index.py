"""FAISS indexes: made, trained, filled and searched. Rows of an inner-product index are cosines of unit vectors."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from components.neighbours.checks import ROWS, fp32
from components.neighbours.factory import training_rows
from components.neighbours.params import NeighbourParams
from components.neighbours.rehearse import rehearse

# A list found through an HNSW graph costs as much as so many centres in a matrix product: some 16 comparisons (FAISS'
# wiki: 10 to 20), each about ten times as dear, being out of order.
GRAPH_PRICE = 160
TABLE = 1 << 28  # bytes of the scores of queries with all centres, at a time
SHARDED = ("IndexShards", "IndexShardsIVF", "IndexReplicas")  # how FAISS spreads an index over several GPUs


def gpus(device: Literal["auto", "cpu"]) -> int:
    """How many GPUs FAISS sees and ``device`` allows."""
    import faiss

    return int(faiss.get_num_gpus()) if device == "auto" else 0


def make(factory: str, dim: int) -> Any:
    """An empty inner-product index in main memory. One that is not flat is rehearsed in another process first.

    Raises:
        VitrailError: FAISS refuses the factory string, or ends the process over it.
    """
    if factory != "Flat":
        rehearse(factory, dim)
    return made(factory, dim)


def made(factory: str, dim: int) -> Any:
    """As :func:`make`, without a rehearsal."""
    import faiss

    return faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)


def train(index: Any, base: NDArray[Any], factory: str, params: NeighbourParams) -> None:
    """Train ``index`` on a seeded sample of ``base`` [N, d]."""
    if index.is_trained:
        return
    count = training_rows(len(base), factory, params)
    chosen = np.sort(np.random.default_rng(params.seed).choice(len(base), count, replace=False))
    index.train(fp32(base[chosen]))


def fill(index: Any, base: NDArray[Any], first: int = 0) -> None:
    """Add all rows of ``base`` [N, d] under the numbers ``first``, ``first + 1``, ..."""
    lists = _plain_lists(index)
    for start in range(0, len(base), ROWS):
        block = fp32(base[start : start + ROWS])
        if lists is None:
            if first:
                ids = np.arange(first + start, first + start + len(block))
                index.add_with_ids(block, ids)
            else:
                index.add(block)
        else:
            from faiss.contrib.ivf_tools import add_preassigned

            rotated = _rotated(index, block)
            ids = np.arange(first + start, first + start + len(block))
            nearest = (rotated @ _centroids(lists).T).argmax(1)
            add_preassigned(lists, rotated, nearest, ids)
            index.ntotal = lists.ntotal


def to_device(index: Any, device: Literal["auto", "cpu"]) -> Any:
    """``index`` spread over the GPUs, or itself where there is none or it is of a kind that no GPU takes."""
    import faiss

    if not gpus(device) or not _fits_gpu(index):
        return index
    options = faiss.GpuMultipleClonerOptions()
    options.useFloat16 = True  # half-precision look-up tables: codes of 56 bytes and more need them
    options.shard = True
    return faiss.index_cpu_to_all_gpus(index, options)


def to_host(index: Any) -> Any:
    """The index in main memory, to be written."""
    import faiss

    return faiss.index_gpu_to_cpu(index) if on_gpu(index) else index


def on_gpu(index: Any) -> bool:
    """Whether ``index``, or what is below its rotation, is on a GPU: OPQ stays on the host, its lists do not."""
    import faiss

    inner = index
    while isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return type(inner).__name__.startswith("Gpu") or type(inner).__name__ in SHARDED


def in_memory(index: Any) -> Any:
    """``index`` with memory-mapped lists copied into memory, and codes of 4 bits packed (:func:`packed`)."""
    import faiss

    lists: Any = _lists(index)
    mapped: Any = faiss.downcast_InvertedLists(lists.invlists)
    if isinstance(mapped, faiss.OnDiskInvertedLists):
        held: Any = faiss.ArrayInvertedLists(mapped.nlist, mapped.code_size)
        for number in range(mapped.nlist):
            size = mapped.list_size(number)
            if size:
                held.add_entries(number, size, mapped.get_ids(number), mapped.get_codes(number))
        lists.replace_invlists(held, True)
        held.this.disown()  # the index owns them now
    return packed(index)


def packed(index: Any) -> Any:
    """``index`` with codes of 4 bits laid out for scanning in registers, about ten times as fast; others unchanged."""
    import faiss

    lists: Any = _lists(index)
    if not isinstance(lists, faiss.IndexIVFPQ) or lists.pq.nbits != 4:
        return index
    fast: Any = faiss.IndexIVFPQFastScan(lists)
    old: Any = lists.invlists
    old.reset()  # the codes are copied; what is kept of the old index is its list of centres
    if isinstance(index, faiss.IndexPreTransform):
        wrapped: Any = faiss.IndexPreTransform(_rotation(index), fast)
        wrapped.referenced_objects = [index, lists, fast]  # what FAISS refers to must outlive it
        return wrapped
    fast.referenced_objects = [index, lists]
    return fast


class Searcher:
    """An index with its number of visited lists set (0: it has none); finds candidates for blocks of fp32 queries."""

    def __init__(self, index: Any, probes: int) -> None:
        import faiss

        self.index = index
        self._probes = probes
        lists = _lists(index)
        if lists is not None:
            lists.nprobe = probes
        elif probes and on_gpu(index):  # goes down through rotations and shards
            faiss.GpuParameterSpace().set_index_parameter(index, "nprobe", probes)
        by_graph = lists is not None and _plain_lists(index) is None and probes * GRAPH_PRICE < lists.nlist
        self._lists: Any = None if lists is None or by_graph or _centre_table(lists) is None else lists

    def __call__(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Scores and row numbers [n, k], best first as the index sees it; -1 where there are no more."""
        if self._lists is None:
            scores, ids = self.index.search(queries, k)
            return scores, ids
        # The lists' centres by one matrix product: with one in a hundred of them wanted and more, FAISS' own heaps or
        # the walk through a graph cost more than the product.
        step = max(1, TABLE // (4 * self._lists.nlist))
        parts = [self._search(queries[start : start + step], k) for start in range(0, len(queries), step)]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([ids for _, ids in parts])

    def _search(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        rotated = _rotated(self.index, queries)
        nearness = rotated @ _centroids(self._lists).T
        if self._probes < nearness.shape[1]:
            lists = np.argpartition(nearness, -self._probes, axis=1)[:, -self._probes :]
        else:
            lists = np.broadcast_to(np.arange(nearness.shape[1]), nearness.shape)
        scores, ids = self._lists.search_preassigned(rotated, k, lists, np.take_along_axis(nearness, lists, axis=1))
        return scores, ids


def _lists(index: Any) -> Any:
    """The inverted lists inside ``index`` (below a rotation, if any), or None."""
    import faiss

    inner = index
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexIVF) else None


def _plain_lists(index: Any) -> Any:
    """As :func:`_lists`, where the lists are found by comparing with every centre, else None."""
    import faiss

    lists = _lists(index)
    if lists is None:
        return None
    return lists if isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexFlat) else None


def _centroids(lists: Any) -> NDArray[np.float32]:
    """The centres [lists, d], a view of FAISS' memory."""
    import faiss

    table: Any = _centre_table(lists)
    shape = table.ntotal, table.d
    return np.asarray(faiss.rev_swig_ptr(table.get_xb(), shape[0] * shape[1]).reshape(shape))


def _centre_table(lists: Any) -> Any:
    """The exact index of the centres, below a graph over them if there is one; None where they are coded."""
    import faiss

    quantizer: Any = faiss.downcast_index(lists.quantizer)
    if isinstance(quantizer, faiss.IndexHNSW):
        quantizer = faiss.downcast_index(quantizer.storage)
    return quantizer if isinstance(quantizer, faiss.IndexFlat) else None


def _rotated(index: Any, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    import faiss

    if not isinstance(index, faiss.IndexPreTransform):
        return rows
    return np.asarray(_rotation(index).apply(rows))


def _rotation(index: Any) -> Any:
    import faiss

    return faiss.downcast_VectorTransform(index.chain.at(0))


def _fits_gpu(index: Any) -> bool:
    import faiss

    lists = _lists(index)
    if lists is None:
        return True
    if not isinstance(faiss.downcast_index(lists.quantizer), faiss.IndexFlat):
        return False  # a graph over the centres
    return not (isinstance(lists, faiss.IndexIVFPQ) and lists.pq.nbits != 8)
