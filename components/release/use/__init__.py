"""What a finished model is used for: features of many images, a classifier, retrieval, pictures, a map.

``serve``, ``benchmark`` and users' own code may come in. It promises that each image is either answered or named with
its fault, that long work resumes, and that a model is never changed.
"""
