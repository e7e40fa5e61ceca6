"""What is summed over processes."""
