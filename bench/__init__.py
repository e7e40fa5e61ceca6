"""Benchmarks of fused_optim against torch.optim and the peers: `python -m bench`, in a checkout."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # The checkout

# `python -m` puts the checkout first on the path, where its fused_optim/ hides the installed one,
# which alone has the Triton kernels and the CUDA extension.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != ROOT]
