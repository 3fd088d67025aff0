"""A network in shards over the ranks: ZeRO-3 engine, moving average, gram teacher, compiled blocks.

The other rooms of ``training``, the methods and ``evaluation`` come in; ``zero`` alone imports DeepSpeed. It promises
the same step, however many ranks share it. It reads and writes no file.
"""
