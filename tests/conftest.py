"""What every test runs under; it must set the environment before anything imports triton."""

import os
import random
import sys
import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import interpreter
import numpy
import pytest
import torch

from fused_optim.backends import dispatch

GPU = torch.cuda.is_available() or torch.xpu.is_available()

if not GPU:
    # Triton reads it while it is imported, and constructing any torch optimizer imports triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")
elif dispatch.TEST_VARIABLE in os.environ:
    # It sends CPU tensors to kernels, which here would be the GPU's. For cases.py, which makes
    # tensors of the GPU, it gets another name.
    os.environ["FUSED_OPTIM_TEST_ON_GPU"] = os.environ.pop(dispatch.TEST_VARIABLE)

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


@pytest.fixture(autouse=True)
def auto_is_eager() -> Iterator[None]:
    """Lets no kernel have CPU tensors, whatever backends a run tests, but where a test asks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(dispatch.TEST_VARIABLE, raising=False)
        yield


@pytest.fixture(autouse=True)
def strict_interpreter() -> None:
    """Has Triton's interpreter, once anything has imported it, hide no use of masked lanes."""
    if not GPU and "triton.runtime.interpreter" in sys.modules:
        interpreter.harden()


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """A backend's name, of `cases.each_backend`; while it is in use, it takes the tests' tensors.

    Kernels take CPU tensors where there is no GPU, but for `backend="auto"`, which stays eager.
    """
    name = request.param
    if name == "eager":
        yield name
        return
    if GPU:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the skip gives the reason too
            reason = dispatch.why_not(name, "adamw_")
        if reason is not None:
            pytest.skip(reason)
        yield name
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.TEST_VARIABLE, f"eager,{name}")
        if name == "cuda":
            import host_module  # skips where there is no C++ compiler

            patch.setitem(sys.modules, "fused_optim.backends.cuda", host_module.backend())
        elif name == "cpu":
            pytest.importorskip("fused_optim._cpu", reason="there are no CPU kernels")
        else:
            pytest.importorskip("triton")
            interpreter.quicken()
            interpreter.harden()
        yield name
