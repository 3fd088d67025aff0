"""The tables that travel between stages: their schemas, their files, and the database that joins them.

A table is a folder of Parquet parts, ``index/part-00000-of-00003.parquet`` and so on, which DuckDB, Polars, pandas,
pyarrow and ``datasets`` read as one table. Each part carries the table's name, its version and the stage that writes
it; the names say how many parts there are, so a missing one is noticed. Parts are written and read one at a time.

Every room may use this one. It promises bounded memory: a part in :mod:`parts`, ``memory.megabytes`` in
:mod:`database`. :mod:`schemas` declares the tables, :mod:`layout` every file of a stage's output and what becomes of
it when an image is taken down.
"""
