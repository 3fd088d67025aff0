"""The only module that imports FAISS: nearest neighbours by cosine, k-means, and indexes on disk, in bounded memory.

The index is chosen by size: exact (Flat) for small sets, inverted lists with product-quantised codes above. Whatever a
coded index proposes is scored again with the exact fp16 descriptors before anyone compares it with a threshold: the
codes' error is as large as the thresholds' margin.
"""

from components.neighbours.binary import hamming_pairs
from components.neighbours.checks import check_descriptors
from components.neighbours.clusters import KMeans, kmeans
from components.neighbours.factory import expected_recall, factory_for, lists_of, probes_for
from components.neighbours.files import IndexFolder
from components.neighbours.params import NeighbourParams
from components.neighbours.search import Neighbours, exact_knn, knn

__all__ = [
    "IndexFolder",
    "KMeans",
    "NeighbourParams",
    "Neighbours",
    "check_descriptors",
    "exact_knn",
    "expected_recall",
    "factory_for",
    "hamming_pairs",
    "kmeans",
    "knn",
    "lists_of",
    "probes_for",
]
