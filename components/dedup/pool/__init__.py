"""The pool's images by number: their places and pictures, what is computed of them, and where that is kept.

The other rooms of ``dedup`` come in. It promises that the pool is read part by part, that finished chunks are never
computed twice, and that it knows no other image than the pool's.
"""
