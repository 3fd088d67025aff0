"""Which images there are: every address once, whether it may be used, and where its bytes are.

The other rooms of ``curate`` come in. It promises that addresses are numbered in the order in which they were met, part
by part, and that it opens no image.
"""
