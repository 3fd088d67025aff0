"""The ``vitrail`` command: one command for every stage and question."""
