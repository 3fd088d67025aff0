"""What a training run shows of itself: probes on a fixed sample, curves, pictures of a few images.

``pretrain``, ``distill`` and ``benchmark`` may come in. It promises that a probe changes neither weights nor random
numbers of the run. It is the only room of ``evaluation`` that knows ``training``.
"""
