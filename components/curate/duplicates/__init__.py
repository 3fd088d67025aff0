"""Which images are copies: of equal bytes, or near copies by PCA hash.

``pixels``, ``results`` and the passes come in. It promises the same copies whatever the parts, found on disk and not
in memory. It decodes no image: it works on digests, thumbnails and hashes.
"""
