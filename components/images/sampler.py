"""Which row is drawn at which position: a seeded, weighted, endless stream, the same for any worker and rank.

Position p of epoch e depends on the seed, e and p alone. A row of weight w appears floor(w) or floor(w) + 1 times an
epoch, w times on average (stochastic rounding). Small sets are permuted as a whole; a set longer than ``block`` is
permuted in two levels, first runs of rows that are neighbours in a shard and then every draw inside a block of runs,
so that memory and locality of reading stay bounded at hundreds of millions of rows.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from components.errors import VitrailError

BLOCK = 1 << 22  # draws permuted together: 16 MiB of row numbers
RUN = 1 << 10  # rows kept together by the first level

_COUNTS, _RUNS, _DRAWS, _REPLACE, _AUGMENT = range(5)  # what a generator is for; no two purposes share a stream


class Sampler:
    """The stream of rows for ``rows`` images, or for ``weights`` (one a row).

    Raises:
        VitrailError: no rows, a negative or non-finite weight, or weights that expect less than one draw an epoch.
    """

    def __init__(
        self,
        rows: int,
        seed: int,
        weights: npt.NDArray[np.float32] | None = None,
        block: int = BLOCK,
        run: int = RUN,
    ) -> None:
        if rows < 1:
            raise VitrailError("manifest: holds no image; loosen the stage that made it")
        if weights is not None:
            if len(weights) != rows:
                raise VitrailError(f"manifest: {len(weights)} weights for {rows} rows")
            if not np.isfinite(weights).all() or (weights < 0).any():
                raise VitrailError("manifest: a weight is negative or not a number; rerun the stage that made it")
            if weights.sum(dtype=np.float64) < 1:
                raise VitrailError("manifest: the weights expect less than one draw an epoch; raise them")
            if (weights == 1).all():
                weights = None
        self.rows, self.seed = rows, seed
        self._weights, self._block, self._run = weights, block, min(run, block)
        self._epoch = -1
        self._loaded = -1
        self._lengths: dict[int, int] = {}

    def length(self, epoch: int) -> int:
        """Draws in ``epoch``."""
        if self._weights is None:
            return self.rows
        if epoch not in self._lengths:  # kept, for a reader and its prefetcher may be in different epochs
            self._open(epoch)
            self._lengths[epoch] = int(self._ends[-1])
        return self._lengths[epoch]

    def draws(self, epoch: int, position: int, count: int) -> list[tuple[int, int, int]]:
        """``count`` draws ``(epoch, position, row)`` from a position on, running into the next epochs."""
        found: list[tuple[int, int, int]] = []
        while len(found) < count:
            if position >= self.length(epoch):
                epoch, position = epoch + 1, position - self.length(epoch)
                continue
            self._open(epoch)
            block = int(np.searchsorted(self._ends, position, side="right"))
            start = int(self._ends[block - 1]) if block else 0
            order = self._block_rows(block)
            rows = order[position - start : position - start + count - len(found)]
            found += [(epoch, position + i, int(row)) for i, row in enumerate(rows)]
            position += len(rows)
        return found

    def after(self, epoch: int, position: int, count: int) -> tuple[int, int]:
        """The epoch and position ``count`` draws later."""
        position += count
        while position >= self.length(epoch):
            position -= self.length(epoch)
            epoch += 1
        return epoch, position

    def _open(self, epoch: int) -> None:
        """Draw the counts of ``epoch`` and the order of its runs."""
        if epoch == self._epoch:
            return
        starts = np.arange(0, self.rows, self._run)
        if self._weights is None:
            self._counts: npt.NDArray[np.uint32] | None = None
            sizes = np.minimum(self._run, self.rows - starts)
        else:
            uniform = np.random.default_rng([self.seed, _COUNTS, epoch]).random(self.rows, np.float32)
            floor = np.floor(self._weights)
            self._counts = (floor + (uniform < self._weights - floor)).astype(np.uint32)
            sizes = np.add.reduceat(self._counts, starts, dtype=np.int64)
        order = np.random.default_rng([self.seed, _RUNS, epoch]).permutation(len(starts))
        # Runs fill a block until it holds `block` draws; one run never straddles two blocks.
        filled = np.cumsum(sizes[order])
        number = (filled - 1) // self._block
        last = np.append(np.flatnonzero(np.diff(number)), len(order) - 1)
        self._runs = np.split(starts[order], last[:-1] + 1)
        self._ends = filled[last]
        self._epoch, self._loaded = epoch, -1

    def _block_rows(self, block: int) -> npt.NDArray[np.uint32]:
        if block != self._loaded:
            # Sorted, so that the order before the shuffle does not depend on how runs were cut where one block is all.
            runs = np.sort(self._runs[block])
            rows = np.concatenate([np.arange(s, min(s + self._run, self.rows), dtype=np.uint32) for s in runs])
            if self._counts is not None:
                rows = np.repeat(rows, self._counts[rows])
            np.random.default_rng([self.seed, _DRAWS, self._epoch, block]).shuffle(rows)
            self._rows, self._loaded = rows, block
        return self._rows


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of everything random about one draw; the same for any number of workers and ranks."""
    return np.random.default_rng([seed, _AUGMENT, epoch, position])


def replacements(rows: int, seed: int, epoch: int, position: int) -> Iterator[int]:
    """Rows to try, endlessly, when the one drawn at this position cannot be read."""
    generator = np.random.default_rng([seed, _REPLACE, epoch, position])
    while True:
        yield int(generator.integers(rows))
