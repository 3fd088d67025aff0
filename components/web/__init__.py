"""The web as crawl and curate share it. ``formats`` reads it, ``rules`` judges it, ``sources`` lists what is there.

``crawl``, ``curate``, ``provenance``, ``release`` and ``cli`` may use these rooms. They promise that an address is
normalised once, that one rule judges it for all, and that damaged files cost their damage only. A room imports only
those before it.
"""
