"""Checkpoints compared on labelled images: ``python -m components.benchmark run``.

Nobody imports this room but ``inputs``, which reads its parameters. It promises equal conditions: every model meets
the same images, the same features' settings and the same protocols, and every score has an interval. It trains no
backbone. The stage and what takes its whole parameters are here; the rooms below import only those before them:
``features``, ``methods``, ``pages``.
"""
