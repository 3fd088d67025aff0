"""The documents as a site: pages that are made from the code, and the hook that MkDocs calls (``make docs``)."""
