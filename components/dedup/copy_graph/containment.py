"""Collages: pictures that are alike only in that a third one contains them are no copies of each other.

An edge between a whole image and a small window of another one says that the other contains the image, not that both
show the same. Where the containing image is dropped, such edges must not join what it contains: of a collage and the
two originals in it, both originals stay. An image goes for the kept one if it contains it, or is contained in it, by
any number of steps in one direction; copies that show the same count as one image.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from components.dedup.copy_graph.disjoint import DisjointSet
from components.dedup.copy_graph.edges import Edges
from components.dedup.copy_graph.graph import STRIDE
from components.descriptors.views import Views

SMALL = 0.5  # of an image's area: a window of less is a part of it; of more, nearly the image itself

ComponentLabels = NDArray[np.integer[Any]]


def small_windows(views: Views) -> NDArray[np.int64]:
    """The numbers of the views that show less than :data:`SMALL` of an image's area."""
    numbers, start = list[int](), 1
    for keep, count in views.windows:
        if keep * keep < SMALL:
            numbers += range(start, start + count * count)
        start += count * count
    return np.array(numbers, np.int64)


class _Component(NamedTuple):
    """The edges inside some components, by places in the sorted ``rows``."""

    rows: NDArray[np.int64]
    alike: DisjointSet  # images that show the same
    inner: NDArray[np.int64]  # [E] the contained image of each other edge
    outer: NDArray[np.int64]  # [E] and the image that contains it


def split(
    labels: ComponentLabels, kept: ComponentLabels, edges: Iterable[Edges], threshold: float, small: NDArray[np.int64]
) -> ComponentLabels | None:
    """``labels`` [N] with the images that do not go for the kept one in components of their own; None: there are none.

    Only components with an edge to one of the views ``small`` are looked at; they are held in memory. A component that
    is split off may have to be split again, by what is kept of it.

    Args:
        labels: the component of each row, by its smallest row.
        kept: [N] at the number of a component, the row that is kept of it.
        edges: read twice; those over ``threshold`` inside a component count.
    """
    inside = _inside(labels, edges, threshold, small)
    affected = np.unique(np.concatenate([labels[:0], *(labels[block.a[part]] for block, part in inside)]))
    if not len(affected):
        return None
    found = _gathered(labels, affected, edges, threshold, small)
    core = found.alike.labels().astype(np.int64)
    own = labels[found.rows]
    first = np.zeros(len(core), bool)  # the cores of kept rows
    first[core[np.searchsorted(found.rows, np.unique(kept[affected]))]] = True
    inner, outer = core[found.inner], core[found.outer]
    goes = (_reached(first, inner, outer) | _reached(first, outer, inner))[core]
    if goes.all():
        return None
    # What goes for the kept row stays together; the rest is joined anew, by the edges among it alone.
    rest = DisjointSet(len(core))
    rest.union(np.arange(len(core)), core)
    among = ~goes[found.inner] & ~goes[found.outer]
    rest.union(found.inner[among], found.outer[among])
    group = np.where(goes, -1 - own.astype(np.int64), rest.labels().astype(np.int64))
    _, place, inverse = np.unique(group, return_index=True, return_inverse=True)
    new = np.array(labels)
    new[found.rows] = found.rows[place][inverse]
    return new


def _inside(
    labels: ComponentLabels, edges: Iterable[Edges], threshold: float, small: NDArray[np.int64]
) -> Iterator[tuple[Edges, NDArray[np.bool_]]]:
    """The edges inside components, and which of them lead to a small window."""
    for block in edges:
        strong = block.where((block.similarity > threshold) & (labels[block.a] == labels[block.b]))
        yield strong, np.isin(strong.a_view, small) | np.isin(strong.b_view, small)


def _gathered(
    labels: ComponentLabels,
    affected: ComponentLabels,
    edges: Iterable[Edges],
    threshold: float,
    small: NDArray[np.int64],
) -> _Component:
    starts = range(0, len(labels), STRIDE)
    rows = np.concatenate([at + np.flatnonzero(np.isin(labels[at : at + STRIDE], affected)) for at in starts])
    alike, inner, outer = DisjointSet(len(rows)), list[NDArray[np.int64]](), list[NDArray[np.int64]]()
    for strong, part in _inside(labels, edges, threshold, small):
        of_these = np.isin(labels[strong.a], affected)
        same = strong.where(of_these & ~part)
        alike.union(np.searchsorted(rows, same.a), np.searchsorted(rows, same.b))
        parts = strong.where(of_these & part)
        a, b = np.searchsorted(rows, parts.a), np.searchsorted(rows, parts.b)
        a_contains = np.isin(parts.a_view, small)
        inner.append(np.where(a_contains, b, a))
        outer.append(np.where(a_contains, a, b))
    return _Component(rows, alike, np.concatenate(inner), np.concatenate(outer))


def _reached(first: NDArray[np.bool_], start: NDArray[np.int64], end: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Who is reached from ``first`` [n] by steps from ``start`` [E] to ``end`` [E]."""
    reached = first.copy()
    while True:
        new = end[reached[start] & ~reached[end]]
        if not len(new):
            return reached
        reached[new] = True
