"""Weights in and out: released files and our own are read, checked, named and written in the layouts of others.

The stages may come in to load weights, and so may ``use`` and ``serve``. It promises that no weights can run code when
they are read, that nothing is loaded in part, and that what it writes appears whole or not at all.
"""
