"""Frozen features and what is measured on them: kNN, linear probe, PCA pictures, intervals."""
