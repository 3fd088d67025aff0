"""What decides on an image: a held-out match, queries or an even sample, and the joins that write decisions down.

``pages``, the stage and ``planning`` come in. It promises one reason an image, and joins that DuckDB makes outside of
memory.
"""
