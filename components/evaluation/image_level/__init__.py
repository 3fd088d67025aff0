"""What one feature an image is worth: kNN, linear classifiers, few labels, robustness, retrieval.

``benchmark``, ``release``, ``dense`` and ``probing`` may come in. It promises the published rules of each method.
It knows features and labels; it decodes no image and knows nothing of patches.
"""
