"""The content of state dicts, and loading them: in this package's layout and in its peers'."""
