"""The formats of the web that crawl and curate share: WARC, WAT, links, robots.txt, policy, sources.

``crawl``, ``curate``, ``provenance``, ``release`` and ``cli`` may use this room. It promises that an address is
normalised once, that one rule judges it for all, and that damaged files cost their damage only.
"""
