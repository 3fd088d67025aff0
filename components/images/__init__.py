"""Image bytes at rest and on the move: shards, index, manifests, decoding with limits, the resumable loader.

Every room that reads pictures uses this one, and no other decodes. It promises that a hostile file costs no more than
the limits say, that a loader goes on where it stopped, and that a worker holds a bounded part of a manifest.
"""
