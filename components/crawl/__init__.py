"""Crawling: addresses fetched politely, resumably and within limits, into WARC files that curate reads."""
