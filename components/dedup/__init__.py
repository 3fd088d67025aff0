"""Deduplication and retrieval: copy graph, relative dedup, the curated manifest.

Only ``planning`` and ``inputs`` import this room. It promises a decision for every kept image of the index, with the
image that decided, and at most 16 bytes an image in the driver. It changes no image: its manifest points into
curation's shards. The stage and what takes its whole parameters are here; the rooms below import only those before
them: ``pool``, ``copy_graph``, ``decisions``, ``pages``.
"""
