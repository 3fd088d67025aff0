"""How sure a figure is, what it must reach, and how a setting is chosen. Numbers in, numbers out.

Every room that scores may come in. This room reads no images and knows no network; it imports no other room of
``evaluation``.
"""
