"""Models that come and go: weights of others in, ours out, and what a finished network is used for.

Here are the commands of ``python -m components.release``. The rooms below hold the work: ``weights``, then ``use``,
which imports ``weights``, then ``serve``, which imports both.
"""
