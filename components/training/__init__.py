"""What makes a run of the learning core: DeepSpeed engine, loop, checkpoints, launch, watch, resolution.

``pretrain`` and ``distill`` share this room's one engine; ``planning`` and ``evaluation`` read its parameters. It
promises that a run that was killed goes on from its last checkpoint as if nothing had happened, and that a lost rank
ends all.
"""
