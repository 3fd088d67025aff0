"""The forms of ``source`` in ``params/pipeline.yaml``. A test compares documents and help pages with this list."""

from __future__ import annotations

FORMS: tuple[tuple[str, str], ...] = (  # what to write, what happens
    ("`params/site/demo.yaml`", "the demo: a site of real photographs is built, served on this machine and crawled"),
    ("a folder, or one file", "images in any depth, tar shards, WARC files (gzip, zstd or plain), or all of these"),
    ("a list (`.txt`, `.paths`, `.list`)", "the files it names, one a line: paths or `s3://` addresses"),
    ("`s3://bucket/prefix`", "the same as a folder, on S3"),
    ("a `.yaml` with `kind: web`", "these sites are crawled, politely and resumably"),
    ("a `.yaml` with `kind: fetch`", "images that WARC, WAT or Parquet files only name are fetched in the same way"),
)


def table() -> str:
    """The forms as a Markdown table."""
    return "\n".join(["| source | what happens |", "|---|---|", *(f"| {form} | {what} |" for form, what in FORMS)])


def plain() -> str:
    """The forms in one line, for a help page."""
    return "; ".join(form.replace("`", "") for form, _ in FORMS)
