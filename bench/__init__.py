"""Benchmarks of fused_optim against torch.optim and the peers. Run from a checkout: `python -m bench`."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The checkout."""

# `python -m` puts the checkout first on the path, where its fused_optim/ hides the installed one,
# which alone has the Triton kernels and the CUDA extension.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
