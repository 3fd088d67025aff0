"""The ``vitrail`` command: one command for every stage and question.

Nobody imports this room. It promises quick help pages: a command's room is imported when the command runs.
"""
