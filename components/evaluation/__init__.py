"""Frozen features and what is measured on them: kNN, linear probe, PCA pictures, intervals.

``benchmark``, ``release``, ``dedup`` and the stages that probe while they train may use this room. It promises that
nothing here trains a backbone and that nothing is chosen by held-out labels.
"""
