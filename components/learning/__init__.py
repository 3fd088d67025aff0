"""Tensors only: the model, heads, losses, schedules and augmentation.

Training, evaluation, descriptors and release may use this room. It promises to know no platform: no tracking, no
quality suites, no orchestrator, no engine; the device is passed in.
"""
