"""Distillation of a frozen teacher into a smaller student."""
