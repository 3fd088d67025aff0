"""Prefect flows: order, retries, cancel, artifacts. No ML code."""
