"""Distillation of a frozen teacher into a smaller student.

Only ``planning`` and ``inputs`` import this room, for its parameters. It promises that the teacher does not change;
engine, loop and checkpoints are those of ``training``.
"""
