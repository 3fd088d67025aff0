"""Frozen features: one forward pass of each image, kept on disk, for whole images and for patches.

``benchmark``, ``release`` and the rooms that measure may come in. It promises that each image is decoded once for all
extractors, and that no weight changes.
"""
