"""The ``vitrail`` command: one door to every room's own command."""
