"""What runs in a checkout, seen from another terminal: each run that holds a folder, and how far it is.

``doctor`` may use this room. It promises to change nothing.
"""
