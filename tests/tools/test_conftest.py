"""Which backends the tests run over, with a GPU and without."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
VARIABLE = "FUSED_OPTIM_TEST_BACKEND"


@pytest.mark.parametrize(
    ("gpu", "named", "expected"),
    [
        (True, "cuda,triton", "['cuda', 'triton'] cuda None"),
        (False, "triton", "['triton'] cpu triton"),
        (True, None, "['eager', 'cpu', 'cuda', 'triton'] cpu None"),
        (False, None, "['eager', 'cpu', 'cuda', 'triton'] cpu None"),
    ],
)
def test_backends(gpu: bool, named: str | None, expected: str) -> None:
    """On a GPU no CPU tensor may reach the kernels that are tested: the variable is gone there."""
    code = f"""if True:
        import os, sys, torch
        torch.cuda.is_available = lambda: {gpu}
        sys.path[:0] = {[str(TESTS), str(TESTS / "support")]!r}
        import conftest, cases
        print(cases.BACKENDS, cases.device_of(cases.BACKENDS[0]), os.environ.get({VARIABLE!r}))
        from fused_optim.backends import dispatch
        if {gpu}:
            assert dispatch.choose("auto", "adamw_", torch.device("cpu")) == "eager"
    """
    variables = {k: v for k, v in os.environ.items() if not k.startswith("FUSED_OPTIM_TEST")}
    variables |= {VARIABLE: named} if named else {}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, capture_output=True, text=True
    )
    assert done.stdout.strip() == expected, done.stderr


def test_what_torch_says_of_itself_on_a_gpu_is_no_error() -> None:
    """The first from the first backward pass with a matrix, the second from `test_graphs`."""
    warnings.warn(
        "Attempting to run cuBLAS, but there was no current CUDA context! Attempting to set the "
        "primary context... (Triggered internally at CublasHandlePool.cpp:270.)",
        stacklevel=1,
    )
    warnings.warn(
        "Synchronization debug mode is a prototype feature and does not yet detect all "
        "synchronizing operations (Triggered internally at Module.cpp:1000.)",
        stacklevel=1,
    )
    with pytest.raises(UserWarning):
        warnings.warn("anything else", stacklevel=1)
