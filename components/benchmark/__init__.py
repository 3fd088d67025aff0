"""Checkpoints compared on labelled images."""
