"""What frozen features are worth, and the labelled sets they are measured on. One room below for each concern.

``benchmark``, ``release``, ``dedup`` and the stages that probe while they train may use these rooms. They promise that
nothing here trains a backbone and that nothing is chosen by held-out labels. A room imports only those before it:
``statistics``, ``sets``, ``features``, ``image_level``, ``dense``, ``probing``.
"""
