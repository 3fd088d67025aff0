"""Training state that outlives its process: checkpoints, their copies on an object store, and whose they are.

The rest of ``training`` and the methods come in. It promises that a checkpoint is whole or not there, is verified
before it is used, and can be loaded by another number of ranks or a network for larger images.
"""
