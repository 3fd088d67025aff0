"""Curation: from crawled pages to clean, sharded, indexed images.

Only ``inputs`` imports this room, for its parameters; later stages read its tables (``tables.schemas``). It promises
a row in the index for every image that was found, kept or dropped, with the reason, and a driver whose memory does
not grow with them. The stage, its passes and what takes its whole parameters are here; the rooms below import only
those before them: ``links``, ``duplicates``, ``pixels``, ``results``.
"""
