"""Who is compared, and the features of each contender: computed over the executor, kept, reused.

The other rooms of ``benchmark`` come in. It promises the same pictures and settings for every contender, and that
finished features are not computed again. It reads no labels.
"""
