"""Tensors only: the model, heads, losses, schedules, augmentation and the DeepSpeed engine."""
