"""Checkpoints compared on labelled images: ``python -m components.benchmark run``."""
