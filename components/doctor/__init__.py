"""Whether this machine and checkout are fit to run, and what to do about each thing that is not.

Nobody imports this room. It promises to change nothing: it looks, and says.
"""
