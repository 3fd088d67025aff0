"""Models that come and go: weights of others in, ours out, and what a finished network is used for.

The stages may use this room to load weights. It promises that no weights can run code when they are read, and that
what it writes appears whole or not at all.
"""
