"""Deduplication and retrieval: copy graph, relative dedup, the curated manifest."""
