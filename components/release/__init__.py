"""Models that come and go: weights of others in, ours out, and what a finished network is used for."""
