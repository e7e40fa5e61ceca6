"""Checks the package on a machine with a GPU: ``make gpu-check``, ``python -m tools.gpu_check``."""
