"""Copy descriptors: SSCD and its training, and the closed-form ones; rows of fp16 on disk."""
