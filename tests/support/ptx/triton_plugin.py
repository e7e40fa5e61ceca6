"""A pytest plugin that runs the tests of a process with Triton's kernels as PTX on the CPU.

TRITON_INTERPRET=0 python -m pytest -p ptx.triton_plugin tests/backends -k triton
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def compiled_kernels() -> Iterator[None]:
    """Send every launch to the executor."""
    from ptx import triton_ptx

    with triton_ptx.installed():
        yield
