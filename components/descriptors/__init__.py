"""Copy descriptors: SSCD and its training, and the closed-form ones; rows of fp16 on disk.

``dedup``, ``benchmark`` and ``provenance`` may use this room. It promises unit rows of one width for each kind, the
same for the same bytes, and files that can be read in parts.
"""
