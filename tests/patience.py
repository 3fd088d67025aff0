"""How long tests wait for what takes seconds: a hang ends one, not a slow machine or another suite beside it."""

PATIENCE = 900  # seconds; below pytest's own limit for a test (pyproject.toml)
