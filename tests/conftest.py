"""What every test runs under; it must set the environment before anything imports triton."""

import os
import random
from importlib.util import find_spec

import numpy
import pytest
import torch

GPU = torch.cuda.is_available() or torch.xpu.is_available()

if not GPU:
    # Triton reads it while it is imported, and constructing any torch optimizer imports triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")

else:
    # The variable sends CPU tensors to kernels, which here would be the GPU's. Those that cases.py
    # reads get tensors of the GPU.
    named = os.environ.pop("FUSED_OPTIM_TEST_BACKEND", None)
    if named:
        os.environ["FUSED_OPTIM_TEST_ON_GPU"] = named

if "PYTEST_XDIST_WORKER" in os.environ:
    # The workers share the cores already.
    torch.set_num_threads(1)

if find_spec("hypothesis"):
    from hypothesis import settings

    # The first example of a shape may compile a kernel, so no deadline fits them all.
    settings.register_profile("local", deadline=None)
    settings.register_profile("ci", deadline=None, derandomize=True)
    settings.load_profile("ci" if os.environ.get("CI") else "local")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests marked `gpu` where there is no GPU."""
    if not GPU:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(autouse=True)
def seed() -> None:
    """Starts every test from the same random state."""
    random.seed(0)
    numpy.random.seed(0)
    torch.manual_seed(0)
