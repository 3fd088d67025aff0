"""Image bytes at rest and on the move: shards, index, manifests, decoding with limits, the resumable loader."""
