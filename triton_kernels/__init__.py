"""The Triton backend of docs/kernel_contract.md, for NVIDIA, AMD and Intel GPUs.

Imported as `fused_optim.triton_kernels`: the folder sits at the top of the repository, beside
`csrc`, but is installed inside the package. Its modules import each other relatively, and nothing
else but torch and triton: buckets and launches are read by their attributes.
"""

from .adafactor import (
    adafactor_apply_,
    adafactor_finalise_,
    adafactor_statistics,
    adafactor_update_sums,
)
from .adamw import adamw_
from .gradients import accumulate_, grad_square_sums

__all__ = [
    "accumulate_",
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "grad_square_sums",
]
