"""The backends, the choice of one for each bucket, and the types that ops receive."""
