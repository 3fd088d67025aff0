"""The local stack as plain processes."""
