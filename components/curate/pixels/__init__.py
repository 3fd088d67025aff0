"""What is done with one image's pixels: sandboxed decoding, NSFW scores, faces, the user's filters, storing.

``results`` and the passes come in, and plug-ins for :mod:`components.curate.pixels.safety`. It promises that an image
that cannot be decoded is a reason, never the end of the run, and that an image's outcome depends on no other image.
"""
