"""Vitrail's building blocks: one folder a room, with import-linter holding the walls (see docs/architecture.md)."""
