"""Counts the bytes and launches of the kernels on the host, and predicts times from the counts."""
