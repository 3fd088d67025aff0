"""The suites of Vitrail's tables: what must hold before the next stage may read one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from components.quality.rules import (
    Rule,
    Suite,
    between,
    has_columns,
    has_rows,
    holds,
    matches,
    one_of,
    present,
    unique,
)
from components.tables.schemas import DECISIONS, INDEX, MANIFEST

KEPT = 'status == "kept"'
DROPPED = 'status == "dropped"'
SHA256 = r"^[0-9a-f]{64}$"


def index_suite(
    reasons: Collection[str],
    *,
    min_side: int = 1,
    max_side: int = 1 << 16,
    nsfw_threshold: float | None = None,
    restricted: Collection[str] = (),
) -> Suite:
    """The suite of ``tables.INDEX``.

    Args:
        reasons: every reason that curation may give for dropping a row.
        min_side, max_side: allowed width and height of kept images, pixels.
        nsfw_threshold: kept images score at most this, and all have a score; None: the filter was off.
        restricted: domains (``example.org`` stands for its subdomains too) of which nothing may be kept.
    """
    rules: list[Rule] = [
        has_columns(
            [f.name for f in INDEX if not pa.types.is_nested(f.type)], "the index has the columns of its schema"
        ),
        has_rows("the index is not empty"),
        unique("key", "every key appears once"),
        matches("key", r"^[0-9a-f]{20}$", "keys are 20 hex digits"),
        one_of("status", ["kept", "dropped"], "a row is kept or dropped"),
        one_of("reason", [""], "kept rows give no reason for dropping", KEPT),
        one_of("reason", reasons, "dropped rows give a known reason", DROPPED),
        holds("duplicate_known", "a duplicate names a row of this index"),
        matches("sha256", SHA256, "kept rows have the SHA-256 of what was crawled", KEPT),
        matches("stored_sha256", SHA256, "kept rows have the SHA-256 of what is stored", KEPT),
        matches("shard", r"^.+\.tar$", "kept rows name their shard", KEPT),
        between("offset", "kept rows have an offset", 0, where=KEPT),
        between("length", "kept rows have a length", 1, where=KEPT),
        unique("place", "no two kept rows share bytes", KEPT),
        between("width", "kept widths are in the allowed range", min_side, max_side, where=KEPT),
        between("height", "kept heights are in the allowed range", min_side, max_side, where=KEPT),
        between("faces", "no negative number of faces", 0),
    ]
    computed: dict[str, Callable[[pd.DataFrame], Any]] = {
        "duplicate_known": lambda t: (t["duplicate_of"] == "") | t["duplicate_of"].isin(t["key"]),
        "place": lambda t: t["shard"].astype(str) + ":" + t["offset"].astype(str),
    }
    if nsfw_threshold is not None:
        rules += [
            present("nsfw", "kept rows have an NSFW score", KEPT),
            between("nsfw", "kept rows are under the NSFW threshold", 0.0, nsfw_threshold, where=KEPT),
        ]
    if restricted:
        domains = frozenset(domain.lower().strip(".") for domain in restricted)
        rules.append(holds("unrestricted", "nothing is kept from a restricted domain", KEPT))
        computed["unrestricted"] = lambda t: [not _below(url, domains) for url in t["url"]]
    queries = {
        "duplicate_known": """SELECT copy.key FROM {table} AS copy ANTI JOIN {table} AS known
                              ON copy.duplicate_of = known.key WHERE copy.duplicate_of <> ''""",
        "place": "shard || ':' || \"offset\"",
        "unrestricted": """SELECT DISTINCT key FROM (
                             SELECT key, unnest(list_transform(range(len(labels)),
                                                lambda i: array_to_string(labels[i + 1:], '.'))) AS domain
                             FROM (SELECT key, string_split(lower(regexp_extract(url,
                                   '^[a-z]+://(?:[^/@]*@)?([^/:?#]*)', 1)), '.') AS labels
                                   FROM {table} WHERE status = 'kept')
                           ) JOIN (SELECT unnest($domains) AS domain) AS restricted USING (domain)""",
    }
    values = {"domains": sorted(domain.lower().strip(".") for domain in restricted)}
    return Suite("index", "key", rules, computed, queries, values)


def links_suite(reasons: Collection[str]) -> Suite:
    """The suite of every image link met: absolute normal addresses, of known pages; ``reasons`` a page may give."""
    rules = [
        has_rows("there is at least one link"),
        unique("position", "every link has its own position"),
        present("url", "every link has an address"),
        matches("url", r"^https?://[!-~]+$", "addresses are absolute, http or https, and ASCII"),
        holds("whole", "addresses have a host, and neither credentials nor fragment"),
        matches("page", r"^(https?://.+)?$", "pages are addresses; none for a table of addresses"),
        one_of("reason", reasons, "a page gives a known reason against an image"),
        holds("explained", "a link is opted out exactly where the page's words say so"),
        present("source", "every link names the file that it was found in"),
    ]

    def whole(url: str) -> bool:
        parts = urlsplit(url)
        return bool(parts.hostname) and parts.username is None and not parts.fragment

    computed: dict[str, Callable[[pd.DataFrame], Any]] = {
        "whole": lambda t: [whole(url) for url in t["url"]],
        "explained": lambda t: t["opt_out"] == (t["said"] != ""),
    }
    queries = {
        "whole": r"regexp_matches(url, '^https?://[^/?#@]+([/?][^#]*)?$')",
        "explained": "opt_out = (said <> '')",
    }
    return Suite("links", "position", rules, computed, queries)


def images_suite(
    reasons: Collection[str], max_bytes: int, max_pixels: int, min_side: int, undecodable: Collection[str]
) -> Suite:
    """The suite of every image that was read: digests, and what is not dropped decoded within the limits.

    ``undecodable`` are the reasons with which an image may have no size.
    """
    decoded = "reason not in @undecodable".replace("@undecodable", str(sorted(undecodable)))
    rules = [
        unique("key", "every key appears once"),
        matches("sha256", SHA256, "every image has the SHA-256 of its bytes"),
        one_of("reason", ["", *reasons], "a dropped image gives a known reason"),
        between("bytes", "no image is larger than the limit", 0, max_bytes),
        matches("format", r"^[a-z0-9]+$", "a decoded image has a format", decoded),
        between("width", "a decoded image is as wide as the smallest allowed", min_side, where=decoded),
        between("height", "a decoded image is as high as the smallest allowed", min_side, where=decoded),
        between("pixels", "no decoded image has more pixels than the limit", 1, max_pixels, where=decoded),
    ]
    pixels: Callable[[pd.DataFrame], Any] = lambda t: t["width"].astype("int64") * t["height"]  # noqa: E731
    return Suite("images", "key", rules, {"pixels": pixels}, {"pixels": "width::BIGINT * height"})


def manifest_suite(index: Sequence[Path], copies: Collection[str] = (), digests: Collection[str] = ()) -> Suite:
    """The suite of ``tables.MANIFEST`` over the parts of its ``index``.

    ``copies`` are keys that copy a benchmark's held-out image, ``digests`` the SHA-256 of such images' files.
    """
    rules = [
        has_columns(set(MANIFEST.names) - {"sources"}, "the manifest has the columns of its schema"),
        has_rows("the manifest selects at least one image"),
        unique("key", "every key appears once"),
        holds("indexed", "every row is a kept row of the index"),
        holds("same_place", "shard, offset and length are the index's"),
        holds("training", "no image copies a held-out image of a benchmark"),
        present("weight", "every row has a weight"),
        between("weight", "weights are positive and finite", 0.0, float(np.finfo(np.float32).max), strict=True),
        matches("reason", r"^.+$", "every row says why it was selected"),
    ]
    kept = "(SELECT * FROM read_parquet($index) WHERE status = 'kept') AS i"
    same = 't.shard = i.shard AND t."offset" = i."offset" AND t.length = i.length'
    forbidden = "i.key IN (SELECT unnest($copies)) OR i.sha256 IN (SELECT unnest($digests))"
    forbidden += " OR i.stored_sha256 IN (SELECT unnest($digests))"
    queries = {
        "indexed": f"SELECT t.key FROM {{table}} AS t ANTI JOIN {kept} ON t.key = i.key",
        "same_place": f"SELECT t.key FROM {{table}} AS t JOIN {kept} ON t.key = i.key WHERE NOT ({same})",
        "training": f"SELECT t.key FROM {{table}} AS t JOIN {kept} ON t.key = i.key WHERE {forbidden}",
    }
    values = {"index": [str(path) for path in index], "copies": [*copies], "digests": [*digests]}
    return Suite("manifest", "key", rules, queries=queries, values=values)


def decisions_suite(index: Sequence[Path], images: int, reasons: Collection[str] | None = None) -> Suite:
    """The suite of ``tables.DECISIONS``: exactly the ``images`` kept rows of the parts of ``index``, each once."""
    rules = [
        has_columns(DECISIONS.names, "the decisions have the columns of their schema"),
        Rule(
            f"every kept row of the index ({images:,}) is decided",
            "expect_column_values_to_be_in_set",
            {"column": "decided", "value_set": [True]},
        ),
        unique("key", "every key is decided once"),
        holds("indexed", "only kept rows of the index are decided"),
        one_of("status", ["selected", "dropped"], "a row is selected or dropped"),
        matches("reason", r"^.+$", "every decision gives its reason"),
        between("similarity", "similarities are cosines", -1.001, 1.001),
    ]
    if reasons is not None:
        rules.append(one_of("reason", reasons, "dropped rows give a known reason", DROPPED))
    kept = "(SELECT key FROM read_parquet($index) WHERE status = 'kept') AS i"
    queries = {
        "decided": f"SELECT i.key FROM {kept} ANTI JOIN {{table}} AS t ON t.key = i.key",
        "indexed": f"SELECT t.key FROM {{table}} AS t ANTI JOIN {kept} ON t.key = i.key",
    }
    return Suite("decisions", "key", rules, queries=queries, values={"index": [str(path) for path in index]})


def edges_suite(images: int, floor: float) -> Suite:
    """The suite of the copy graph's edges among ``images`` rows: ordered pairs, cosines over ``floor``."""
    rules = [
        has_columns(["a", "b", "similarity"], "the edges have the columns of their schema"),
        holds("ordered", "an edge names two different rows, the smaller first"),
        between("a", "edges name rows of the pool", 0, images - 1),
        between("b", "edges name rows of the pool", 0, images - 1),
        present("similarity", "every edge has a cosine"),
        between("similarity", f"cosines are over {floor:g} and no more than 1", floor, 1.001),
    ]
    computed: dict[str, Callable[[pd.DataFrame], Any]] = {
        "ordered": lambda t: t["a"] < t["b"],
        "pair": lambda t: t["a"].astype(str) + "-" + t["b"].astype(str),
    }
    return Suite("edges", "pair", rules, computed)


def components_suite(images: int, largest: int) -> Suite:
    """The suite of one row (images, components, largest, represented): a partition, no part over ``largest``."""
    rules = [
        between("components", "there is at least one component", 1),
        between("images", "the components hold every image once", images, images),
        between("largest", "no component holds more than its largest share", 1, largest),
        holds("whole", "every component has a representative of its own"),
    ]
    computed: dict[str, Callable[[pd.DataFrame], Any]] = {"whole": lambda t: t["represented"] == t["components"]}
    return Suite("components", "images", rules, computed)


def descriptors_suite(dim: int, *, tolerance: float = 5e-3) -> Suite:
    """The suite of a :func:`descriptor_table`: unit length within ``tolerance`` (fp16 rounds), no NaN, row-aligned."""
    rules = [
        has_rows("there is at least one descriptor"),
        unique("key", "every key appears once"),
        one_of("dim", [dim], f"descriptors have {dim} numbers"),
        holds("finite", "no descriptor holds NaN or infinity"),
        between("norm", "descriptors have unit length", 1 - tolerance, 1 + tolerance),
        holds("aligned", "row i describes the image of row i"),
    ]
    return Suite("descriptors", "key", rules)


def descriptor_table(
    descriptors: npt.NDArray[np.floating],
    keys: Sequence[str],
    expected: Sequence[str],
    block: int = 65536,
    strangers: Collection[int] = (),
) -> pd.DataFrame:
    """One row a descriptor: key, dim, finite, norm (fp32), aligned.

    Args:
        descriptors: [n, d], fp16 or wider; may be memory-mapped, ``block`` rows are read at a time.
        keys: the keys beside the descriptors.
        expected: the keys in the order of the table that the descriptors are aligned with.
        block: rows read at a time.
        strangers: rows that are known not to describe the image of their row.
    """
    rows, dim = descriptors.shape
    norm = np.empty(rows, np.float32)
    for start in range(0, rows, block):
        part = np.asarray(descriptors[start : start + block], np.float32)
        norm[start : start + block] = np.sqrt(np.einsum("nd,nd->n", part, part))
    length = max(rows, len(keys), len(expected))
    ours, theirs = [*keys, *[""] * (length - len(keys))], [*expected, *[""] * (length - len(expected))]
    padded = np.full(length, np.nan, np.float32)
    padded[:rows] = norm
    return pd.DataFrame(
        {
            "key": [key or f"(row {i}: no key)" for i, key in enumerate(ours)],
            "dim": np.where(np.arange(length) < rows, dim, 0),
            "finite": np.isfinite(padded),
            "norm": padded,
            "aligned": [
                a == b and i < rows and i not in strangers for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
            ],
        }
    )


def _below(url: str, domains: frozenset[str]) -> bool:
    """Whether the host of ``url`` is one of ``domains`` or below one."""
    parts = (urlsplit(url).hostname or "").lower().split(".")
    return any(".".join(parts[i:]) in domains for i in range(len(parts)))
