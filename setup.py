"""Builds fused_optim; the metadata is in pyproject.toml.

`FUSED_OPTIM_CUDA` says what to do about the CUDA extension: `0` leaves it out, `1` insists on it,
`auto` (the default) builds it where that is possible. No CUDA kernels exist yet, so `auto` and `0`
build the same pure-Python wheel and `1` is refused.
"""

import os

from setuptools import find_packages, setup


def check_cuda_request() -> None:
    """Refuses a build that asks for what this version can't give."""
    request = os.environ.get("FUSED_OPTIM_CUDA") or "auto"
    if request not in ("auto", "0", "1"):
        raise SystemExit(f"FUSED_OPTIM_CUDA={request}: expected 0, 1 or auto")
    if request == "1":
        raise SystemExit(
            "FUSED_OPTIM_CUDA=1 requires the CUDA extension, but this version of fused_optim has "
            "no CUDA kernels to build; unset it, or set it to 0, for the pure-Python package"
        )


check_cuda_request()
setup(
    # Installed at top level, triton_kernels/ would shadow another project's package of that name.
    packages=[
        *find_packages(include=["fused_optim", "fused_optim.*"]),
        "fused_optim.triton_kernels",
    ],
    package_dir={"fused_optim.triton_kernels": "triton_kernels"},
)
