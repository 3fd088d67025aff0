"""The tables that travel between stages, as Arrow schemas with a name, a version and the one stage that writes them.

* **named links**: every image link that a fetch began with, as the crawl stage hands them to curation.
* **outcomes**: how each address ended that the crawl stage asked for.
* **index**: one row an image link found by curation, kept or dropped, with the reason. Image bytes are in tar shards
  beside it; ``shard``, ``offset`` and ``length`` say where. A row's story is complete here: every later decision is a
  manifest over these rows, and no stage rewrites an image.
* **links**: every image link that was met, not only the first to an address.
* **audit**: what the safety models found, with their thresholds and what was done.
* **manifest**: the rows that a stage selected, with weight and reason.
* **decisions**: what dedup decided about every kept index row, and against which other image.
* **keys**: the images that were read for dedup's descriptors, row by row.
"""

from __future__ import annotations

import pyarrow as pa

# of a file that is no whole Parquet: what it calls its columns need not be UTF-8
PARQUET_FAULTS = (pa.ArrowException, OSError, UnicodeDecodeError)


def declared(name: str, version: int, stage: str, fields: list[tuple[str, pa.DataType]]) -> pa.Schema:
    """The schema of table ``name``, written by ``stage`` alone."""
    facts = {"vitrail.table": name, "vitrail.version": str(version), "vitrail.stage": stage}
    return pa.schema(fields, metadata=facts)


def said(schema: pa.Schema, fact: str) -> str:
    """What a declared schema, or that of a file, says of its "table", "version" or "stage"; "" when nothing."""
    return ((schema.metadata or {}).get(f"vitrail.{fact}".encode()) or b"").decode("utf-8", "replace")


INDEX = declared(
    "index", 3, "curate",  # 2: licence; 3: decisions, face_scores
    [
        ("key", pa.string()),  # first 20 hex digits of SHA-256 of the URL: unique a row
        ("url", pa.string()),  # http(s) address, or file:relative/path for a folder of images
        ("page", pa.string()),  # address of the page whose <img> named it; "" for a folder
        ("alt", pa.string()),
        ("licence", pa.string()),  # what the page or table states: an address or a name; "" when nothing
        ("source", pa.string()),  # WARC file or folder that held the bytes
        ("source_offset", pa.int64()),  # of the WARC record; -1 where there is none
        ("status", pa.string()),  # "kept" or "dropped"
        ("reason", pa.string()),  # why it was dropped (components.curate.results.reasons); "" when kept
        ("decisions", pa.list_(pa.string())),  # what each source said up to the one that decided: "source: finding"
        ("duplicate_of", pa.string()),  # key of the kept image that this one repeats; "" otherwise
        ("sha256", pa.string()),  # of the bytes as crawled; "" when there are none
        ("format", pa.string()),  # "jpeg", "png", ...; "" when unknown
        ("width", pa.int32()),  # pixels, after EXIF orientation; 0 when unknown
        ("height", pa.int32()),
        ("pca_hash", pa.string()),  # hex; "" when not computed
        ("nsfw", pa.float32()),  # score in [0, 1]; NaN when not computed
        ("faces", pa.int32()),  # faces found and blurred
        ("face_boxes", pa.list_(pa.list_(pa.float32(), 4))),  # x, y, width, height in pixels
        ("face_scores", pa.list_(pa.float32())),  # confidence of each box, in [0, 1]
        ("shard", pa.string()),  # tar file name, relative to the shards' base; "" when dropped
        ("offset", pa.int64()),  # of the image's first byte in the tar
        ("length", pa.int64()),  # bytes
        ("stored_sha256", pa.string()),  # of the bytes in the shard (differs from sha256 after blurring)
    ],
)  # fmt: skip

LINKS = declared(
    "links", 1, "curate",
    [
        ("position", pa.int64()),  # unique over all tables of a run: see web/sources/link_table.py, first_position
        ("url", pa.string()),
        ("page", pa.string()),
        ("alt", pa.string()),
        ("licence", pa.string()),  # what page or table says: an address or a name; "" when nothing
        ("reason", pa.string()),  # "", "declared-tracker" or "vector"
        ("opt_out", pa.bool_()),
        ("said", pa.string()),  # the words with which the page or its headers opt out; "" when they do not
        ("source", pa.string()),  # the file that names it
        ("source_offset", pa.int64()),  # of the page's record in it; -1 where there is none
    ],
)  # fmt: skip

# The same of a crawl that fetched what WARC pages, WAT records or tables of addresses name
NAMED_LINKS = declared("links", 1, "crawl", [(field.name, field.type) for field in LINKS])

OUTCOMES = declared(
    "outcomes", 1, "crawl",
    [
        ("url", pa.string()),
        ("outcome", pa.string()),  # components.crawl.fetch.OUTCOMES
        ("status", pa.int16()),  # of HTTP; 0 where there was no answer
        ("kind", pa.string()),  # "image", or "page" of a crawl of sites
    ],
)  # fmt: skip

AUDIT = declared(
    "audit", 1, "curate",
    [
        ("key", pa.string()),
        ("check", pa.string()),  # "nsfw", "face" or "filter:NAME"
        ("model", pa.string()),
        ("score", pa.float32()),  # in [0, 1]
        ("threshold", pa.float32()),
        # x, y, width, height in pixels; null: the whole image. Parquet gives no null of a fixed-size list back
        ("box", pa.list_(pa.float32())),
        ("action", pa.string()),  # "kept", "dropped" or "blurred"
    ],
)  # fmt: skip

MANIFEST = declared(
    "manifest", 1, "dedup",
    [
        ("key", pa.string()),
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("weight", pa.float32()),  # how often the sampler draws it, relative to 1
        ("reason", pa.string()),  # why it was selected, e.g. "retrieved:elpv" or "pool"
        ("sources", pa.list_(pa.string())),  # every data set that brought it, by query or as is; none without retrieval
    ],
)  # fmt: skip

DECISIONS = declared(
    "decisions", 2, "dedup",  # 2: the cosine that decided, view, match_view
    [
        ("key", pa.string()),
        ("status", pa.string()),  # "selected" or "dropped"
        ("reason", pa.string()),  # "self-duplicate", "held-out", "not-retrieved"; the manifest's reason when selected
        ("component", pa.int64()),  # connected component of the copy graph
        ("representative", pa.string()),  # the component's kept key; "" when the component was dropped whole
        ("match", pa.string()),  # the image that decided: a key, or "benchmark/row" for a held-out image or a query
        ("similarity", pa.float32()),  # the cosine that decided, between these views; NaN where none did
        ("view", pa.int16()),  # of this image: 0 the whole, then the windows in order, then the mirror image; -1: none
        ("match_view", pa.int16()),  # of the image that decided
    ],
)  # fmt: skip

KEYS = declared(
    "keys", 1, "dedup",
    [("key", pa.string())],  # of the image that was read for row i of descriptors.npy
)  # fmt: skip
