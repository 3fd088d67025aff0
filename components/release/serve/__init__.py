"""A model behind HTTP, and the registry that decides which one.

Only the commands of ``release`` come in. It promises that servers listen on this machine alone unless told otherwise,
and that requests cannot reach private addresses or spend unbounded bytes.
"""
