"""Labelled sets on disk, read as images with their truth: classes, masks, depths, copies, videos.

``benchmark``, ``dedup``, ``inputs``, ``release`` and the rooms that measure may come in. It promises that images are
read when they are asked for, that what a layout lacks is named, and that nothing is measured here.
"""
