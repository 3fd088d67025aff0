"""The losses of self-supervised learning as pure functions, one concern a file."""
