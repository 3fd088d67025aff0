"""Measurements, as ratios in one run: machines are shared and noisy, so no absolute time is a test."""
