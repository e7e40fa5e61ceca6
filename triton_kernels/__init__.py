"""The Triton backend of docs/internals/kernel_contract.md, for NVIDIA, AMD and Intel GPUs.

The folder lies at the top of the repository, beside `csrc`, but is installed and imported as
`fused_optim.triton_kernels`. Its modules import each other relatively. Beside torch and triton they
import the registry of ops and the types of `fused_optim.backends.interface` alone.
"""

from fused_optim.backends.interface import Needs, of_shape

from .adafactor import (
    adafactor_apply_,
    adafactor_finalise_,
    adafactor_statistics,
    adafactor_update_sums,
)
from .adafactor_geometry import adafactor_scratch, block_count, tile_count
from .adamw import adamw_
from .elementwise import chunk_count
from .gradients import grad_square_sums
from .lion import lion_

eight_bit_updates = ("adamw",)  # those that have moments in 8 bits

_scratch = of_shape(adafactor_scratch)
_TILES = Needs({"tiles": of_shape(tile_count)}, _scratch)
_CHUNKS = Needs({"chunks": chunk_count})
_NEEDS = {
    "adamw_": _CHUNKS,
    "lion_": _CHUNKS,
    "grad_square_sums": Needs({"chunks": chunk_count}, chunk_count),
    "adafactor_statistics": _TILES,
    "adafactor_finalise_": Needs({"blocks": of_shape(block_count)}, _scratch),
    "adafactor_update_sums": _TILES,
    "adafactor_apply_": _TILES,
}


def needs(op: str, launch) -> Needs:
    """Return the maps and the scratch memory that an op reads."""
    return _NEEDS[op]


__all__ = [
    "adafactor_apply_",
    "adafactor_finalise_",
    "adafactor_statistics",
    "adafactor_update_sums",
    "adamw_",
    "eight_bit_updates",
    "grad_square_sums",
    "lion_",
    "needs",
]
