"""What the protocol asks of the features: classification, few labels, dense methods, retrieval; the scores.

``pages`` and the stage come in. It promises that a protocol's digest names everything a score depends on, and that
held-out labels choose nothing but where the paper's own rule is asked for by name.
"""
