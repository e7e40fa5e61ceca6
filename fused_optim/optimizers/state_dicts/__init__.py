"""What a state dict shows, and what may be loaded: this package's own layout and its peers'."""
