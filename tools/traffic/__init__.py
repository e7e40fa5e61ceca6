"""Bytes and launches of the kernels, counted on the host, and the times predicted from them."""
