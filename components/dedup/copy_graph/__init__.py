"""The copy graph: edges between images that look alike, the threshold of an edge, and the components.

``decisions``, ``pages``, the stage and ``planning`` come in. It promises that memory does not grow with the edges, and
the same components whatever the parts. It decides on no image.
"""
