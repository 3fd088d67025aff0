"""What the features of patches are worth: segmentation, depth, matching, masks propagated through a video.

``benchmark`` and ``probing`` may come in. It promises scores at the pixels of the original pictures. Linear classifiers
and neighbours' votes come from ``image_level``, which never imports this room.
"""
