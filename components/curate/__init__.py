"""Curation: from crawled pages to clean, sharded, indexed images."""
