"""What the files and folders that parameters name hold, so that DVC sees them change.

Nobody imports this room. It promises a digest for everything that a stage's parameters name, and reads no more of the
stages than their parameters.
"""
