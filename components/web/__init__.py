"""The formats of the web that crawl and curate share: WARC, WAT, links, robots.txt, policy, sources."""
