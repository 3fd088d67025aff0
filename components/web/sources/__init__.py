"""Sources of images: crawls, folders, tar shards and lists, brought to one table of links.

``crawl``, ``curate``, ``release``, ``provenance`` and ``cli`` may come in. It promises that everything that lies at a
source is either read or named, and that memory does not grow with the source.
"""
