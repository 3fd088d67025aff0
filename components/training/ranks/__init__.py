"""One rank as a process: which one it is, whether the others live, the signals it obeys and the memory it keeps.

The other rooms of ``training``, the methods and ``evaluation`` come in. It promises the same calls for one process and
for many, and that no rank waits for one that is gone. It knows no network.
"""
