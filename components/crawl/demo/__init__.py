"""The demo web site: pages and photographs from installed packages, served on loopback to be crawled."""
