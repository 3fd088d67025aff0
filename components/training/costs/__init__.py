"""What a step costs, by counting: memory of a rank, operations, bytes sent; and whether this machine can pay it.

``planning``, the launch and the methods come in. It promises an answer in milliseconds, before any data is touched.
"""
