"""What a stage needs before it runs (hosts, hours, bytes, memory), and why a training run does not learn.

Only ``cli`` imports this room. It promises to start nothing and to write nothing. Its numbers come from the same
parameters that the stage reads; editing it makes no stage stale.
"""
