"""The backends, the choice between them, and what their ops receive."""
