"""Whether this machine and checkout are fit to run, and what to do about each thing that is not."""
