"""Crawling: addresses fetched politely, resumably and within limits, into WARC files that curate reads.

Only ``planning`` and ``inputs`` import this room, for its parameters. It promises that no host is asked against its
robots.txt or faster than the parameters say, that a killed crawl asks for the rest only, and that memory does not
grow with the addresses, in crawls of sites (:mod:`met`) and in lists (:mod:`ledger`: 3 bytes each).
"""
